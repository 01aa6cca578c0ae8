"""The overlay disk: a sparse raw file with an empty ext4, made once per Instance.

The host formats it and never mounts it; the guest puts its own directories on it. What does not
live here: the read-only root filesystem below it (an image), and snapshots of disks.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path

from controller.errors import Blocked, Retry, Timeout
from controller.host import files

MKE2FS_DEADLINE = 120.0
SMALLEST = 16 * 1024 * 1024  # a journal of 4 MiB may take no more than half
# lazy: nothing in proportion to the size is written now; the guest's kernel does it when idle
_EXT4 = (
    *("-q", "-F", "-t", "ext4", "-m", "0"),
    *("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
    *("-O", "^resize_inode", "-J", "size=4"),
)


async def create_overlay(path: Path, size_bytes: int, *, mke2fs: str = "mke2fs") -> None:
    """Make ``path`` an empty ext4 disk of ``size_bytes``, mode 0600, durable when this returns.

    A disk of that size that is there already is left as it is, whatever it holds. Raises Retry
    (NoSpace, ReadOnly, IOError, DiskFormatFailed), Timeout, Blocked (DiskMismatch: something else
    is there; DiskTooSmall; ToolMissing). After an error no half-made disk is left.
    """
    if _exists(path, size_bytes):
        return
    if size_bytes < SMALLEST:
        raise Blocked(
            f"{path}: {size_bytes} bytes are too few for a disk; ask for {SMALLEST} or more",
            reason="DiskTooSmall",
        )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{files.TEMPORARY_SUFFIX}")
    try:
        await asyncio.to_thread(_truncate, temporary, size_bytes)
        await _format(temporary, mke2fs)
        await asyncio.to_thread(_publish, temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a disk, durably; nothing there is success. Only when no VMM can have it open.

    Blocking. Raises Retry.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise files.failed("remove", path, err) from err
    if path.parent.is_dir():
        files.fsync_dir(path.parent)


def _exists(path: Path, size_bytes: int) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as err:
        raise files.failed("look at", path, err) from err
    if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
        raise Blocked(
            f"{path} is there and is no disk of {size_bytes} bytes (it has {found.st_size});"
            " it is left alone: move it away, or delete the Instance",
            reason="DiskMismatch",
        )
    return True


def _truncate(path: Path, size_bytes: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size_bytes)
        finally:
            os.close(fd)
    except OSError as err:
        if err.errno == errno.EFBIG:
            raise Blocked(
                f"{path}: this filesystem holds no file of {size_bytes} bytes; ask for less",
                reason="DiskTooLarge",
            ) from err
        raise files.failed("create", path, err) from err


async def _format(path: Path, mke2fs: str) -> None:
    program = shutil.which(mke2fs, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise Blocked(
            f"the program {mke2fs} is not on this node; install e2fsprogs", reason="ToolMissing"
        )
    process = await asyncio.create_subprocess_exec(
        *(program, *_EXT4, str(path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(MKE2FS_DEADLINE):
            _, stderr = await process.communicate()
    except TimeoutError as err:
        raise Timeout(f"mke2fs on {path} did not finish in {MKE2FS_DEADLINE:g} s") from err
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode != 0:
        raise _format_failed(path, stderr.decode(errors="replace"))


def _format_failed(path: Path, said: str) -> Retry:
    if os.strerror(errno.ENOSPC) in said:
        return Retry(f"cannot format {path}: no space left; free some", reason="NoSpace")
    words = " ".join(said.split())[:300]
    return Retry(f"cannot format {path}: {words}; check the disk", reason="DiskFormatFailed")


def _publish(temporary: Path, path: Path) -> None:
    files.fsync_file(temporary)
    try:
        temporary.rename(path)
    except OSError as err:
        raise files.failed("create", path, err) from err
    files.fsync_dir(path.parent)
