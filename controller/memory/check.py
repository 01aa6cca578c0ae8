"""Whether the files that a manifest names are what it says. When is said in ``store``.

Each problem names the file, and the chunk or byte where it is wrong. What does not live here:
whether the host and the disks fit (``manifest.problems``).
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from controller.errors import Rejected
from controller.host import files
from controller.memory import image
from controller.memory.chunks import CHUNK
from controller.memory.copier import read_into
from controller.memory.image import Kind, Layout
from controller.memory.manifest import Manifest, Problem, Role, Seen, StoredFile
from controller.memory.saving import MODE, STATE_LIMIT
from controller.memory.verified import Verified

_NO_FILE = {
    errno.ENOENT: "it is gone",
    errno.ENOTDIR: "it is gone",
    errno.EISDIR: "it is no file",
    errno.ELOOP: "it is a link, which is never followed",
}
_KINDS = {Role.BASE: Kind.BASE, Role.DELTA: Kind.DELTA}


def verify(
    manifest: Manifest, path_of: Callable[[StoredFile], Path], verified: Verified, *, full: bool
) -> tuple[Problem, ...]:
    """All that is wrong with the files of ``manifest``; nothing when they may be used."""
    found: list[str] = []
    for file in manifest.files:
        path = path_of(file)
        try:
            found += _file(manifest, file, path, verified, full)
        except Rejected as err:  # already says which file and what to do
            found.append(str(err))
        except OSError as err:
            if err.errno not in _NO_FILE:
                raise files.failed("read", path, err) from err
            found.append(str(image.corrupt(path, _NO_FILE[err.errno])))
    return tuple(Problem("SnapshotCorrupt", message) for message in found)


def _file(
    manifest: Manifest, file: StoredFile, path: Path, verified: Verified, full: bool
) -> Iterator[str]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        now = os.fstat(fd)
        if wrong := _wrong_look(file, now):
            yield str(image.corrupt(path, wrong))
            return
        if file.role is Role.STATE:
            yield from _state(fd, file, path)
            return
        layout = image.read(fd, path, file.digest)
        if wrong := _wrong_place(manifest, file, layout):
            yield str(image.corrupt(path, wrong))
        yield from _body(fd, file, path, layout, verified, full, Seen.of(now))
    except EOFError:
        yield str(image.corrupt(path, "it became shorter while it was read"))
    finally:
        os.close(fd)


def _wrong_look(file: StoredFile, now: os.stat_result) -> str:
    if not stat.S_ISREG(now.st_mode):
        return "it is no file"
    if now.st_size != file.seen.size:
        return f"it has {now.st_size} bytes, not {file.seen.size}"
    if (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) != (MODE, os.geteuid(), file.gid):
        return (
            f"it is {stat.S_IMODE(now.st_mode):04o} {now.st_uid}:{now.st_gid},"
            f" not {MODE:04o} {os.geteuid()}:{file.gid}: others may have read or changed it"
        )
    return ""


def _wrong_place(manifest: Manifest, file: StoredFile, layout: Layout) -> str:
    if layout.kind is not _KINDS[file.role]:
        return f"it is no {file.role.value}"
    if layout.ram != manifest.platform.memory:
        return f"it is of {layout.ram} bytes of RAM, not {manifest.platform.memory}"
    if file.role is Role.DELTA and layout.base != manifest.base.digest:
        return "it is the delta of another base"
    return ""


def _state(fd: int, file: StoredFile, path: Path) -> Iterator[str]:
    if file.seen.size > STATE_LIMIT:
        yield str(image.corrupt(path, f"{file.seen.size} bytes are no device state"))
        return
    buffer = bytearray(file.seen.size)
    read_into(fd, memoryview(buffer), 0)
    if hashlib.sha256(buffer).hexdigest() != file.digest:
        yield str(image.corrupt(path, "its content does not match its digest"))


def _body(
    fd: int,
    file: StoredFile,
    path: Path,
    layout: Layout,
    verified: Verified,
    full: bool,
    now: Seen,
) -> Iterator[str]:
    key = f"{file.gid}/{file.name}"
    if file.role is Role.BASE and not full and verified.holds(key, now):
        return
    damaged = image.damaged_chunks(fd, layout)
    for chunk in damaged[:8]:
        yield str(image.corrupt(path, f"chunk {chunk} (byte {chunk * CHUNK}) is damaged"))
    if damaged:
        verified.drop({key})
    elif file.role is Role.BASE:
        verified.add(key, now)
