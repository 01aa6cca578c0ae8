"""Durable files: replace, sync, remove, open below a directory.

Every return is checked. After a failed fsync the kernel may already have dropped the dirty pages
and marked them clean, so the file is thrown away and written anew, never synced a second time.
Blocking: callers on an event loop use a thread. What does not live here: formats, checksums, and
any knowledge of which files exist.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import struct
import time
from pathlib import Path

from controller.errors import Retry

TEMPORARY_SUFFIX = ".tmp~"
TRASH_PREFIX = ".trash~"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REASONS = {errno.ENOSPC: "NoSpace", errno.EDQUOT: "NoSpace", errno.EROFS: "ReadOnly"}
_REMEDIES = {
    "NoSpace": "free space or raise the quota",
    "ReadOnly": "remount the file system writable",
    "IOError": "check the disk and the kernel log",
}
_REMOVE_PASSES = 10_000  # one level of directories each; deeper trees are an attack
_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_BENEATH_NO_SYMLINKS = 0x08 | 0x04
_libc = ctypes.CDLL(None, use_errno=True)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` (permissions exactly ``mode``), durably: all of it or nothing.

    Raises Retry (reason NoSpace, ReadOnly or IOError). The old file is then still there, unless
    only the last step, the sync of the directory, failed: then the new one is visible but may not
    survive a power cut. Writing again is right in both cases.
    """
    try:
        directory = os.open(path.parent, _DIRECTORY)
    except OSError as error:
        raise failed("write", path, error) from error
    try:
        _replace(directory, path.name, data, mode)
    except OSError as error:
        raise failed("write", path, error) from error
    finally:
        os.close(directory)


def _replace(directory: int, name: str, data: bytes, mode: int) -> None:
    temporary = f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        _write_new(directory, temporary, data, mode)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _write_new(directory: int, name: str, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, mode, dir_fd=directory)
    try:
        os.fchmod(fd, mode)  # open() applied the umask
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the content of ``path`` durable. Raises Retry; the file must then be written anew."""
    _fsync(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def fsync_dir(path: Path) -> None:
    """Make the names in directory ``path`` durable. Raises Retry."""
    _fsync(path, _DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    try:
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise failed("sync", path, error) from error


def is_temporary(name: str) -> bool:
    """Whether a crash may have left a file of this name behind: nobody will ever read it."""
    return name.endswith(TEMPORARY_SUFFIX) or name.startswith(TRASH_PREFIX)


def remove_temporaries(directory: Path) -> None:
    """Remove what an interrupted write or removal left in ``directory``. Raises Retry.

    Only for the one writer of that directory, while it writes nothing there.
    """
    try:
        leftovers = [entry for entry in os.scandir(directory) if is_temporary(entry.name)]
    except OSError as error:
        raise failed("list", directory, error) from error
    for entry in leftovers:
        remove_tree(Path(entry.path))


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a whole directory; nothing there is success. Raises Retry.

    It first gets a trash name, so that it is gone for everybody at once and a crash in the middle
    leaves something ``remove_temporaries`` finishes. Stays on one file system: a mount below is
    refused (reason Busy) and its content is untouched. Writers that still hold the directory only
    make it take longer.
    """
    trash = path.with_name(f"{TRASH_PREFIX}{secrets.token_hex(8)}")
    try:
        path.rename(trash)
        if not stat.S_ISDIR(trash.lstat().st_mode):
            trash.unlink()
            return
        _empty(trash)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed("remove", path, error) from error


def _empty(trash: Path) -> None:
    """Remove ``trash``. Directories below are moved up before they are entered.

    So the depth of a hostile tree costs neither stack nor descriptors, a mount point stops the
    move with EBUSY instead of being entered, and no link is ever followed.
    """
    top = os.open(trash, _DIRECTORY | os.O_NOFOLLOW)
    moved = 0
    try:
        for attempt in range(_REMOVE_PASSES):
            directories = _unlink_files(top)
            if not directories and _removed(trash, attempt):
                return
            for name in directories:
                moved += _flatten(top, name, f"{trash.name}.{moved}", attempt)
    finally:
        os.close(top)
    raise OSError(errno.EBUSY, "somebody keeps writing there")


def _flatten(top: int, name: str, prefix: str, attempt: int) -> int:
    """Remove directory ``name`` of ``top``, its own directories moved to ``top``: how many."""
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        children = _unlink_files(fd)
        for number, child in enumerate(children):
            os.rename(child, f"{prefix}.{number}", src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)
    _removed(name, attempt, dir_fd=top)
    return len(children)


def _unlink_files(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=directory)
    return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


def _removed(directory: Path | str, attempt: int, dir_fd: int | None = None) -> bool:
    try:
        os.rmdir(directory, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        time.sleep(min(attempt * 0.001, 0.02))  # a racing writer: let it see that it lost
        return False
    return True


def open_beneath(directory: int, relative: str, flags: int, mode: int = 0) -> int:
    """Open ``relative`` below directory descriptor ``directory``; no link, no way out (openat2).

    Returns a close-on-exec descriptor. Raises OSError: ELOOP for a link, EXDEV for an escape.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH_NO_SYMLINKS)
    fd = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(relative)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), relative)
    return int(fd)


def failed(verb: str, path: Path, error: OSError) -> Retry:
    """Return the Retry that an OSError on ``path`` becomes; a caller raises it."""
    if error.errno == errno.EBUSY:
        return Retry(f"cannot {verb} {path}: {error.strerror}; unmount it", reason="Busy")
    reason = _REASONS.get(error.errno or 0, "IOError")
    return Retry(f"cannot {verb} {path}: {error.strerror}; {_REMEDIES[reason]}", reason=reason)
