"""Supervision, with real children: restarts, hopeless ones, a stop that is certain."""

import os
import signal
import sys
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry, Timeout
from controller.host.process import is_alive
from controller.local import process
from controller.local.process import Program, Supervised
from tests.waiting import until

SLEEPS = (sys.executable, "-c", "import signal; signal.pause()")
NOBODY = "http://127.0.0.1:1/"  # port 1: refused at once
STUBBORN = (
    sys.executable,
    "-c",
    "import signal\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\n"
    "while True: signal.pause()",
)


def _program(tmp_path: Path, *argv: str, **more: object) -> Program:
    return Program("thing", argv, tmp_path / "log" / "thing.log", **more)  # type: ignore[arg-type]


async def test_killed_child_is_started_again(tmp_path: Path) -> None:
    changes: list[None] = []
    child = Supervised(_program(tmp_path, *SLEEPS), lambda: changes.append(None))
    child.start()
    try:
        first = child.identity
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: child.identity not in (None, first))
        assert child.running
        assert child.restarts == 1
        assert child.last_exit == -signal.SIGKILL
        assert len(changes) == 3  # start, exit, start
    finally:
        child.stop()


async def test_child_is_restarted_though_its_end_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LONGEST_PAUSE", 0.05)
    full, told = False, 0

    def changed() -> None:
        nonlocal told
        if full:
            raise Retry("no space left on device", reason="NoSpace")
        told += 1

    child = Supervised(_program(tmp_path, *SLEEPS), changed)
    child.start()
    try:
        first = child.identity
        assert first is not None
        full = True
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: child.identity not in (None, first))
        assert told == 1
        full = False
        await until(lambda: told == 2)  # and what could not be told is told later
    finally:
        child.stop()


async def test_stopped_child_stays_gone(tmp_path: Path) -> None:
    child = Supervised(_program(tmp_path, *SLEEPS))
    child.start()
    who = child.identity
    assert who is not None
    child.stop()
    child.stop()
    assert not is_alive(who)
    assert not child.running
    assert child.restarts == 0


async def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    program = _program(tmp_path, *STUBBORN, stop_seconds=0.1)
    child = Supervised(program)
    child.start()
    await until(lambda: "deaf" in process.tail(program.log, 100))
    child.stop()
    assert child.last_exit == -signal.SIGKILL


def test_child_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    child = Supervised(_program(tmp_path, *SLEEPS))
    child.start()
    try:
        assert child.identity is not None
        assert os.getsid(child.identity.pid) == child.identity.pid
    finally:
        child.stop()


def test_wait_ends_when_the_child_keeps_exiting(tmp_path: Path) -> None:
    argv = ("/bin/sh", "-c", "echo bad flag >&2; exit 7")
    child = Supervised(_program(tmp_path, *argv, probe=NOBODY))
    child.start()
    try:
        with pytest.raises(Blocked, match=r"\(7\): bad flag"):
            child.wait_ready(30)
    finally:
        child.stop()


def test_wait_ends_when_the_child_is_never_ready(tmp_path: Path) -> None:
    program = _program(tmp_path, *SLEEPS, probe=NOBODY)
    child = Supervised(program)
    child.start()
    try:
        with pytest.raises(Timeout, match="not ready"):
            child.wait_ready(0.2)
    finally:
        child.stop()


def test_program_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="cannot start thing: /nowhere/x"):
        Supervised(_program(tmp_path, "/nowhere/x")).start()


def test_long_log_is_put_aside_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 10)
    program = _program(tmp_path, "/bin/sh", "-c", "echo new; sleep 60")
    program.log.parent.mkdir()
    program.log.write_text("x" * 11)
    child = Supervised(program)
    child.start()
    try:
        assert (tmp_path / "log" / "thing.log.1").read_text() == "x" * 11
    finally:
        child.stop()


async def test_pid_of_another_process_is_never_signalled(tmp_path: Path) -> None:
    child = Supervised(_program(tmp_path, *SLEEPS))
    child.start()
    try:
        assert child.identity is not None
        stranger = type(child.identity)(child.identity.pid, 1, child.identity.boot_id)
        process.terminate(stranger, 0.1)
        assert child.running
        assert child.restarts == 0
    finally:
        child.stop()
