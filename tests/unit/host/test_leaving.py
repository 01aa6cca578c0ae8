"""A process that was told to leave leaves, whatever of it still hangs."""

import subprocess
import sys

HANGS = """
import asyncio, time
from controller.host.leaving import leave_within

async def main():
    leave_within({seconds}, 3)
    asyncio.get_running_loop().run_in_executor(None, time.sleep, {work})

asyncio.run(main())
"""


def run(**words: float) -> subprocess.CompletedProcess[str]:
    code = HANGS.format(**words)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_thread_that_hangs_does_not_keep_a_process():
    ended = run(seconds=0.2, work=120)
    assert ended.returncode == 3
    assert "Thread" in ended.stderr  # what hung is told


def test_a_process_that_ends_in_time_keeps_its_own_exit_code():
    assert run(seconds=30, work=0).returncode == 0
