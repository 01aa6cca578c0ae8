"""The run lock: held by the kernel for as long as the process that inherited it lives.

Taken by us before a spawn, passed on as a descriptor, closed by us after. It survives a kill -9 of
us and frees only when the last holder of the descriptor is gone: immune to reused pids, zombies,
stale sockets and reboots. Local file systems only.

Two locks on one open file description make it: a flock, which people can see with ``flock -n`` and
``lslocks``, and an open-file-description lock, which can be asked about without being taken. A
probe that took a lock, for however short, would make a concurrent ``acquire`` fail; this one only
asks, so it disturbs nobody and needs no coordination. It tells a moment: FREE may be HELD by the
time the caller reads it. Only ``acquire`` decides who may start.

The file is never unlinked while its directory lives: a second file would be a second lock.
What does not live here: what is done under the lock.
"""

import contextlib
import enum
import errno
import fcntl
import os
import struct
from pathlib import Path

from controller.errors import Retry
from controller.host.files import failed
from controller.host.process import Gone, Identity, identity

_FLOCK = "hhqqi4x"  # struct flock with 64-bit offsets
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


class LockState(enum.Enum):
    """What a look at the lock said. UNKNOWN: the look failed; it licenses nothing."""

    HELD = "held"
    FREE = "free"
    UNKNOWN = "unknown"


def acquire(path: Path) -> int | None:
    """Take the lock and return its descriptor (close-on-exec), or None when it is held.

    Pass the descriptor to exactly one child, then close it: the lock is the child's. Raises Retry
    when the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
    except OSError as error:
        raise failed("open run lock", path, error) from error
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The directory may have been removed and made again between the open and the lock.
        if os.fstat(fd).st_ino != path.stat().st_ino:
            raise Retry(f"run lock {path} was replaced while it was taken", reason="Unknown")
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise failed("take run lock", path, error) from error
    except Retry:
        os.close(fd)
        raise
    return fd


def probe(path: Path) -> LockState:
    """Whether somebody holds the lock now. Never takes it, never raises.

    A lock file that was never made is FREE where its directory exists, UNKNOWN where it does not.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _OPEN)
    except FileNotFoundError:
        return LockState.FREE if path.parent.is_dir() else LockState.UNKNOWN
    except OSError:
        return LockState.UNKNOWN
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    except OSError:
        return LockState.UNKNOWN
    finally:
        os.close(fd)
    free = struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK
    return LockState.FREE if free else LockState.HELD


def holder(path: Path) -> Identity | None:
    """Return a process, not us, that has the lock's descriptor; None when there is none to be seen.

    For the moment after a crash when nobody noted who was started. Looks at every process: some
    milliseconds. Meaningful only while ``probe`` says HELD.
    """
    try:
        wanted = path.stat()
    except OSError:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError, Gone):
                who = identity(int(process.name))
                if _holds(process, wanted) and identity(who.pid) == who:
                    return who
    return None


def _holds(process: Path, wanted: os.stat_result) -> bool:
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(fd.stat(), wanted):
                info = (process / "fdinfo" / fd.name).read_text()
                if "\nlock:" in info:  # opened to look at is not held
                    return True
    return False


def _whole_file(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
