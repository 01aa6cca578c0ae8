"""Wait for a condition in a test: never for a time."""

import asyncio
import subprocess
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once ``condition()`` is true. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(0.002)


def unmount(point: str, seconds: float = 30.0) -> None:
    """Unmount once the last process that was ended has let go of it: a log keeper goes last."""
    deadline = time.monotonic() + seconds
    while subprocess.run(["umount", point], check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{point} is still in use after {seconds} s"
        time.sleep(0.02)
