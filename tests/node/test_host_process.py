"""Processes as root starts them: confined, detached, in their cgroup, surviving us."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.errors import Retry
from controller.host import cgroup, process, runlock
from controller.host.cgroup import Cgroup
from controller.host.process import Process, Sandbox
from controller.host.runlock import LockState
from tests import leaks
from tests.waiting import until

pytestmark = pytest.mark.node
SLEEP = ["/bin/sleep", "1000"]
PREFIX = f"tt{os.getpid()}-cgroups"
ROOT_OF_PROJECT = Path(__file__).parents[2]


@pytest.fixture
async def group() -> AsyncIterator[Cgroup]:
    made = Cgroup.create(PREFIX, "one")
    if made.path is None:
        pytest.skip("no writable cgroup2 here")
    yield made
    made.kill()
    await until(lambda: not made.pids())
    made.remove()
    cgroup.remove_prefix(PREFIX)


async def executed(child: Process) -> Path:
    """Return its /proc directory once it has become what was asked for."""
    proc = Path(f"/proc/{child.identity.pid}")
    await until(lambda: (proc / "cmdline").read_bytes().startswith(b"/bin/sleep\0"))
    return proc


async def end(child: Process) -> None:
    child.signal(signal.SIGKILL)
    await child.wait()
    child.close()


async def test_child_has_its_uid_its_groups_and_no_rights() -> None:
    box = Sandbox(uid=65001, gid=65002, groups=(65003,))
    child = await process.spawn(SLEEP, sandbox=box)
    proc = await executed(child)
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65001"] * 4
    assert status["Gid"].split() == ["65002"] * 4
    assert status["Groups"].split() == ["65003"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    stat = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    assert [int(field) for field in stat[2:5]] == [child.identity.pid, child.identity.pid, 0]
    limits = (proc / "limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max open files +4096 +4096 ", limits)
    assert {fd.name for fd in (proc / "fd").iterdir()} == {"0", "1", "2"}
    await end(child)


async def test_root_without_groups_gives_none() -> None:
    child = await process.spawn(SLEEP, sandbox=Sandbox(uid=65001, gid=65001))
    proc = await executed(child)
    assert "Groups:\t \n" in (proc / "status").read_text()
    await end(child)


async def test_child_is_in_its_cgroup_and_dies_with_it(group: Cgroup) -> None:
    child = await process.spawn(SLEEP, sandbox=Sandbox(65001, 65001, cgroup=group.path))
    await executed(child)
    assert group.pids() == [child.identity.pid]
    with pytest.raises(Retry) as caught:
        group.remove()
    assert caught.value.reason == "Busy"
    group.kill()
    assert await child.wait() == -signal.SIGKILL
    child.close()


async def test_missing_cgroup_is_no_start_at_all(tmp_path: Path) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    box = Sandbox(65001, 65001, cgroup=tmp_path)  # a directory, but not of the kernel's
    tmp_path.chmod(0o500)
    (tmp_path / "cgroup.procs").mkdir()
    child = await process.spawn(SLEEP, sandbox=box, stderr=write)
    os.close(write)
    assert await child.wait() not in (0, None)
    assert b"cgroup.procs" in os.read(read, 1000)
    os.close(read)
    child.close()


async def test_removing_and_killing_nothing_is_fine() -> None:
    gone = Cgroup.at(PREFIX, "never-made")
    gone.kill()
    gone.remove()
    assert gone.pids() == []


async def test_host_without_cgroups_has_none_and_all_still_works() -> None:
    none = Cgroup(None)
    none.kill()
    none.remove()
    child = await process.spawn(SLEEP, sandbox=Sandbox(65001, 65001, cgroup=none.path))
    await end(child)


async def test_kill_9_of_the_parent_leaves_child_and_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    agent = f"""
import asyncio, os
from pathlib import Path
from controller.host import process, runlock
async def main():
    fd = runlock.acquire(Path({str(path)!r}))
    box = process.Sandbox(65001, 65001)
    child = await process.spawn({SLEEP!r}, sandbox=box, pass_fds=(fd,))
    os.close(fd)
    print(child.identity.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    parent = subprocess.Popen(  # noqa: ASYNC220 - starts at once
        [sys.executable, "-c", agent],
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=ROOT_OF_PROJECT,
    )
    assert parent.stdout
    with parent:
        child = Process.adopt(process.identity(int(parent.stdout.readline())))
        os.killpg(parent.pid, signal.SIGKILL)  # the whole group, as a service's stop would
    assert not child.dead
    assert runlock.probe(path) is LockState.HELD
    assert runlock.acquire(path) is None
    assert runlock.holder(path) == child.identity
    child.signal(signal.SIGKILL)
    assert await child.wait() is None  # not ours: only its death is known
    assert runlock.probe(path) is LockState.FREE
    child.close()


async def test_a_child_left_alone_is_reaped_when_it_dies() -> None:
    child = await process.spawn(SLEEP, sandbox=Sandbox(65001, 65001))
    who = child.identity
    child.leave()
    process.kill(who, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{who.pid}").exists())


async def test_cancelled_start_leaves_no_child(leak_scope: leaks.Scope) -> None:
    before = leaks.snapshot(leak_scope)
    for ticks in range(1, 5):
        start = asyncio.create_task(process.spawn(SLEEP, sandbox=Sandbox(65001, 65001)))
        for _ in range(ticks):
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    await until(lambda: not leaks.diff(before, leaks.snapshot(leak_scope)))


def test_cgroup_of_the_dead_goes_with_the_one_above(group: Cgroup) -> None:
    left = Cgroup.create(PREFIX, "of-a-vmm-that-died-alone")
    cgroup.remove_prefix(PREFIX)
    assert left.path is not None
    assert not left.path.exists()
    assert not left.path.parent.exists()
