"""Who holds the run lock, and what a look at it may disturb."""

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.errors import Retry
from controller.host import process, runlock
from controller.host.process import Sandbox
from controller.host.runlock import LockState

ME = Sandbox(uid=os.geteuid(), gid=os.getegid())


@contextmanager
def held(path: Path) -> Iterator[int]:
    fd = runlock.acquire(path)
    assert fd is not None
    try:
        yield fd
    finally:
        os.close(fd)


def test_lock_is_one_holders_and_free_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert runlock.probe(path) is LockState.FREE
    with held(path) as fd:
        assert not os.get_inheritable(fd)
        assert path.stat().st_mode & 0o777 == 0o600
        assert runlock.acquire(path) is None
        assert runlock.probe(path) is LockState.HELD
    assert runlock.probe(path) is LockState.FREE
    with held(path):
        pass


async def test_child_keeps_the_lock_we_let_go_of_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held(path) as fd:
        child = await process.spawn(["/bin/sleep", "1000"], sandbox=ME, pass_fds=(fd,))
    assert runlock.probe(path) is LockState.HELD
    assert runlock.acquire(path) is None
    assert runlock.holder(path) == child.identity
    child.signal(signal.SIGSTOP)
    assert runlock.probe(path) is LockState.HELD
    child.signal(signal.SIGKILL)
    await process.wait_dead(child.pidfd)
    assert runlock.probe(path) is LockState.FREE  # a zombie holds nothing
    assert runlock.holder(path) is None
    child.close()


def test_probing_never_disturbs_an_acquire(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held(path):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            runlock.probe(path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with held(path):
                pass
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_people_see_the_lock_with_the_tools_they_have(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    ask = ["flock", "--nonblock", str(path), "true"]
    with held(path):
        assert subprocess.run(ask, check=False).returncode == 1
    assert subprocess.run(ask, check=False).returncode == 0


def test_foreign_flock_refuses_us_too(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert runlock.acquire(path) is None


def test_failed_look_is_unknown_and_never_free(tmp_path: Path) -> None:
    assert runlock.probe(tmp_path / "unmounted" / "run.lock") is LockState.UNKNOWN
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert runlock.probe(tmp_path / "link") is LockState.UNKNOWN
    with pytest.raises(Retry):
        runlock.acquire(tmp_path / "unmounted" / "run.lock")


async def test_holder_is_not_whoever_only_opened_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with held(path):
        pass
    with path.open() as file:
        child = await process.spawn(["/bin/sleep", "1000"], sandbox=ME, pass_fds=(file.fileno(),))
    with held(path):
        assert runlock.holder(path) is None
    child.signal(signal.SIGKILL)
    await child.wait()
    child.close()
