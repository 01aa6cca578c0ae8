"""Crash points: named places in the code where a test makes the process die or fail.

Off unless the environment says otherwise at the start: TORPOR_FAILPOINTS is a comma-separated list
of ``name[:n]=action``, meaning that the n-th passage (default: the first) does it, once. Actions:
``kill`` (SIGKILL to ourselves, as a power cut would look), ``exit`` (code 70, without clean-up),
``raise`` (Retry, reason Failpoint), ``raise-ERRNO`` (OSError, as in raise-ENOSPC),
``sleep-SECONDS`` (blocks the whole process), ``stop`` (SIGSTOP to ourselves: until somebody
continues us). Each is said on stderr first.

A second use is in tests within one process: ``arm``. What does not live here: any point.
"""

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from controller.errors import Rejected, Retry

VARIABLE = "TORPOR_FAILPOINTS"
EXIT_CODE = 70

_registered: set[str] = set()
_armed: dict[str, tuple[int, str]] = {}  # name -> (passages left, action)


def register(*names: str) -> None:
    """Make points known to ``registered``, so that a sweep over all of them misses none."""
    _registered.update(names)


def registered() -> tuple[str, ...]:
    """Return every registered point, sorted."""
    return tuple(sorted(_registered))


def hit(name: str) -> None:
    """Pass the point ``name``: nothing happens unless armed. Raises Retry or OSError if told to."""
    if not _armed:
        return
    left, action = _armed.get(name, (0, ""))
    if left > 1:
        _armed[name] = (left - 1, action)
    elif left == 1:
        del _armed[name]
        _act(name, action)


def load(text: str) -> None:
    """Arm what ``text`` says, in the form of the environment variable. Raises Rejected."""
    _armed.clear()
    for entry in filter(None, text.split(",")):
        point, _, action = entry.partition("=")
        name, _, count = point.partition(":")
        if not _is_action(action) or not (count or "1").isdigit() or int(count or "1") < 1:
            raise Rejected(f"{VARIABLE}: cannot read {entry!r}; write name[:n]=kill|exit|raise")
        _armed[name] = (int(count or "1"), action)


@contextmanager
def arm(text: str) -> Iterator[None]:
    """Arm points for the length of a with block, for tests in one process."""
    load(text)
    try:
        yield
    finally:
        _armed.clear()


def _is_action(action: str) -> bool:
    verb, _, seconds = action.partition("-")
    if verb == "sleep":
        return seconds.replace(".", "", 1).isdigit()
    if verb == "raise" and seconds:
        return hasattr(errno, seconds)
    return action in ("kill", "exit", "raise", "stop")


def _act(name: str, action: str) -> None:
    os.write(2, f"failpoint {name}: {action}\n".encode())
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(EXIT_CODE)
    elif action == "raise":
        raise Retry(f"failpoint {name}", reason="Failpoint")
    elif action.startswith("raise-"):
        number = getattr(errno, action.removeprefix("raise-"))
        raise OSError(number, os.strerror(number), name)
    else:
        time.sleep(float(action.partition("-")[2]))


load(os.environ.get(VARIABLE, ""))
