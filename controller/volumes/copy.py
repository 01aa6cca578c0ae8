"""A second disk like a first one: by reflink where the filesystem can, else hole by hole.

Never dense: a hole of the source is a hole of the copy. Nobody writes to the source meanwhile, or
its guest stands still: that is the caller's promise. What does not live here: who may have it.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Blocked
from controller.host import failpoint, files

_FICLONE = 0x40049409
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})
failpoint.register("disk.copy.before", "disk.copy.after")  # around its name
_PIECE = 64 * 1024 * 1024  # bytes for one call of the kernel


@dataclass(frozen=True)
class Copied:
    """What a copy cost: ``written`` bytes, 0 for a ``reflink``."""

    reflink: bool
    written: int


def copy(source: Path, target: Path, *, owner: int) -> Copied:
    """Make ``target`` a disk like ``source``, of uid and gid ``owner``, mode 0600; not yet durable.

    What is at ``target`` is replaced, by a rename. Blocking; ``sync`` makes it durable. Raises
    Retry (NoSpace, IOError), Blocked (DiskMismatch: the source is no file); then nothing is left.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{files.TEMPORARY_SUFFIX}")
    try:
        copied = _copy(source, temporary)
        os.chown(temporary, owner, owner)
        failpoint.hit("disk.copy.before")
        temporary.rename(target)
        failpoint.hit("disk.copy.after")
    except OSError as err:
        raise files.failed("copy a disk to", target, err) from err
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return copied


def sync(target: Path) -> None:
    """Make a copy durable, and its name. Blocking. Raises Retry."""
    files.fsync_file(target)
    files.fsync_dir(target.parent)


def _copy(source: Path, temporary: Path) -> Copied:
    with contextlib.ExitStack() as stack:
        origin = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, origin)
        status = os.fstat(origin)
        if not stat.S_ISREG(status.st_mode):
            raise Blocked(f"{source} is no file, so it cannot be copied", reason="DiskMismatch")
        out = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, out)
        if _reflinked(origin, out):
            return Copied(reflink=True, written=0)
        os.ftruncate(out, status.st_size)
        return Copied(reflink=False, written=_copy_data(origin, out, status.st_size))


def _reflinked(origin: int, out: int) -> bool:
    try:
        fcntl.ioctl(out, _FICLONE, origin)
    except OSError as err:
        if err.errno in _NO_REFLINK:
            return False
        raise
    return True


def _copy_data(origin: int, out: int, size: int) -> int:
    written = at = 0
    while at < size:
        try:
            start = os.lseek(origin, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # nothing but a hole to the end
                break
            raise
        end = os.lseek(origin, start, os.SEEK_HOLE)
        written += _copy_range(origin, out, start, end)
        at = end
    return written


def _copy_range(origin: int, out: int, start: int, end: int) -> int:
    at = start
    while at < end:
        done = os.copy_file_range(origin, out, min(end - at, _PIECE), at, at)
        if done == 0:  # it became shorter
            raise OSError(errno.EIO, "the source ended early")
        at += done
    return end - start
