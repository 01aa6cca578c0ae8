"""One save: from an empty temporary file to a name in the store. The step table is in ``store``.

``take`` is what happens while the guest stands still; ``finish`` makes it durable and gives it its
name, which may be done while the guest goes on. What does not live here: the lock that keeps the
files until the commit (``store``), and which pages go where (``capture``).
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from controller.errors import Blocked, Rejected
from controller.host import failpoint, files
from controller.host.process import Identity
from controller.memory import capture, image
from controller.memory.image import Kind, Layout
from controller.memory.manifest import Role, Seen, StoredFile
from controller.memory.pages import FileId, ProcessMemory
from controller.memory.verified import Verified

STATE_LIMIT = 64 * 1024 * 1024  # bytes of device state; a quarter MiB is usual
MODE = 0o440
LINEAGE_MODE = 0o710
_POINTS = ("memory.write", "memory.sync", "memory.publish")
failpoint.register(*(f"{point}.{when}" for point in _POINTS for when in ("before", "after")))


class Place(Protocol):
    """What a save needs of its store."""

    root: Path
    verified: Verified

    def path(self, file: StoredFile) -> Path: ...


@dataclass(frozen=True)
class Taken:
    """Pages in a temporary file, not yet durable and without a name."""

    path: Path
    fd: int
    layout: Layout
    gid: int


class Saving:
    """The files of one snapshot in the making."""

    def __init__(self, store: Place) -> None:
        self._store = store
        self._open: dict[Path, int] = {}

    def take(
        self,
        who: Identity,
        *,
        mapped: Path,
        ram: int,
        gid: int,
        base: StoredFile | None,
        digests: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Taken:
        """Copy what ``who``, which stands still, changed since it mapped ``mapped``.

        ``ram`` in bytes. ``base``: the file of the store that ``mapped`` is; None: it is all
        holes, and a base is made. ``digests=False`` makes it shorter and ``finish`` longer.
        Raises Blocked (MemoryNotFound), Gone, Cancelled, Retry (NoSpace, IOError); nothing is left.
        """
        failpoint.hit("memory.write.before")
        path, fd = self.new(gid)
        try:
            with ProcessMemory(who) as memory, contextlib.ExitStack() as stack:
                found = memory.ram(FileId.of(mapped.stat()), ram)
                based_on = None
                if base is not None:
                    base_fd = os.open(self._store.path(base), os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, base_fd)
                    based_on = capture.Base(base_fd, base.digest)
                layout = capture.take(
                    memory, found, fd, based_on, digests=digests, cancelled=cancelled
                )
        except BaseException as err:
            self.drop(path)
            if isinstance(err, OSError):
                raise files.failed("save memory to", path, err) from err
            raise
        failpoint.hit("memory.write.after")
        return Taken(path, fd, layout, gid)

    def finish(self, taken: Taken) -> StoredFile:
        """Make it durable under its digest. Raises Retry (NoSpace, IOError); nothing is left."""
        try:
            digest, layout = capture.finish(taken.fd, taken.layout)
        except (OSError, EOFError) as err:
            self.drop(taken.path)
            error = err if isinstance(err, OSError) else OSError(5, "it became shorter")
            raise files.failed("write", taken.path, error) from err
        role = Role.BASE if layout.kind is Kind.BASE else Role.DELTA
        return self._publish(taken.path, taken.fd, role, taken.gid, digest)

    def state(self, data: bytes, gid: int) -> StoredFile:
        """Store device state durably. Raises Retry (NoSpace, IOError); nothing is left."""
        failpoint.hit("memory.write.before")
        path, fd = self.new(gid)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        except OSError as err:
            self.drop(path)
            raise files.failed("write", path, err) from err
        failpoint.hit("memory.write.after")
        return self._publish(path, fd, Role.STATE, gid, hashlib.sha256(data).hexdigest())

    def drop(self, path: Path) -> None:
        """Give up a temporary file; not being there is success."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()

    def close(self) -> None:
        """Give up whatever was not finished."""
        for path in list(self._open):
            self.drop(path)

    def new(self, gid: int) -> tuple[Path, int]:
        """An empty temporary file, to be filled and made a Taken: path, descriptor. Raises Retry.

        The descriptor stays this object's.
        """
        lineage = self._store.root / str(gid)
        path = lineage / f".{secrets.token_hex(8)}{files.TEMPORARY_SUFFIX}"
        try:
            _make_lineage(lineage, gid)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise files.failed("create", path, err) from err
        self._open[path] = fd
        return path, fd

    def _publish(self, path: Path, fd: int, role: Role, gid: int, digest: str) -> StoredFile:
        target = path.with_name(f"{role.value}-{digest}")
        try:
            failpoint.hit("memory.sync.before")
            os.fchown(fd, -1, gid)
            os.fchmod(fd, MODE)
            os.fsync(fd)
            failpoint.hit("memory.sync.after")
            failpoint.hit("memory.publish.before")
            # a base may be mapped by somebody who must find it again by its inode: keep it
            if not (role is Role.BASE and self._is_whole(target, digest, gid)):
                path.rename(target)
            files.fsync_dir(target.parent)
            failpoint.hit("memory.publish.after")
            status = target.stat()
        except OSError as err:
            raise files.failed("publish", target, err) from err
        finally:
            self.drop(path)
        seen = Seen.of(status)
        if role is Role.BASE:
            self._store.verified.add(f"{gid}/{target.name}", seen)
        return StoredFile(
            role=role, gid=gid, digest=digest, seen=seen, on_disk=status.st_blocks * 512
        )

    def _is_whole(self, base: Path, digest: str, gid: int) -> bool:
        """Whether the same base is there, undamaged."""
        try:
            fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if self._store.verified.holds(f"{gid}/{base.name}", Seen.of(os.fstat(fd))):
                return True
            return not image.damaged_chunks(fd, image.read(fd, base, digest))
        except (Rejected, EOFError):
            return False
        finally:
            os.close(fd)


def _make_lineage(directory: Path, gid: int) -> None:
    """The directory of a lineage, as it must be, also after a crash in the middle of this."""
    try:
        status = directory.stat()
        if (stat.S_IMODE(status.st_mode), status.st_gid) == (LINEAGE_MODE, gid):
            return
    except FileNotFoundError:
        directory.mkdir(mode=0o700)
    os.chown(directory, -1, gid)
    directory.chmod(LINEAGE_MODE)
    files.fsync_dir(directory.parent)


class StateSink:
    """Where a VMM writes its device state: ``fd`` is open for writing only, ``data`` what it wrote.

    It is memory, not a file: what is written counts against the cgroup of the VMM, and one gone
    wild cannot fill the disk. It starts by truncating it, so no size can be set beforehand.
    """

    def __init__(self) -> None:
        self._memory = os.memfd_create("state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.fd = os.open(f"/proc/self/fd/{self._memory}", os.O_WRONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self._memory)

    def data(self) -> bytes:
        """The device state; nobody can write any more. Raises Blocked when it makes no sense."""
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, seals)
        length = os.fstat(self._memory).st_size
        if not 0 < length <= STATE_LIMIT:
            raise Blocked(
                f"the VMM wrote {length} bytes of device state; stop the Instance",
                reason="DeviceStateMissing",
            )
        return os.pread(self._memory, length, 0)
