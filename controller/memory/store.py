"""The store: bases, deltas and device states as immutable files named by digest, and shared.

::

    ROOT/lock                        shared: somebody saves; exclusive: unused files are removed
    ROOT/verified.json               what was found whole in this boot
    ROOT/GID/{base,delta,state}-DIGEST   0440 root:GID in a directory 0710 root:GID

A lineage, the Instances that share memory by being forked from each other, has one GID, and its
VMMs run with it; no other uid can read or list its files. A file is never written, linked or
chmod'ed after it got its name.

======= ================================== ====================================================
step    effect                             a crash before it leaves
======= ================================== ====================================================
write   a temporary file, filled           nothing
sync    owner, mode, then the data synced  the temporary file: removed by ``start``
publish its name, the directory synced     the temporary file: removed by ``start``
unlink  a file that nobody names removed   the file: removed the next time
======= ================================== ====================================================

Publishing is not committing: references are the committed manifests, read again under the lock
before anything is unlinked, and what records say is held. One that cannot be read stops all
deletion. Between publishing and the commit the saver's shared lock keeps the files (``saving``).

Integrity (``verify``): delta and device state are read in full before every start. A base is read
in full once per boot of the host and whenever it looks different (``verified``); writing it counts
as reading it, since its digests were made of the bytes on their way to the file. So a disk that
returns other bytes within one boot is found by ``full=True`` or after the next boot, not before.

What handles pages is imported where it is used: numpy takes 13 MiB, which an agent whose guests
never sleep does not pay. What does not live here: the commit (``commit``), formats (``image``,
``manifest``).
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controller.errors import Rejected, Retry
from controller.host import diskspace, failpoint, files
from controller.host.process import Identity
from controller.memory import commit
from controller.memory.manifest import Manifest, Problem, StoredFile
from controller.memory.verified import Verified

if TYPE_CHECKING:
    from controller.memory.saving import Saving

_SMALL = 256 * 1024  # bytes beside the pages: tables, manifests, directories
NAME = re.compile(r"(base|delta|state)-([0-9a-f]{64})")

failpoint.register("memory.unlink.before", "memory.unlink.after")


@dataclass(frozen=True)
class References:
    """Who may name files: directories of all Instances, and digests that records hold."""

    homes: tuple[Path, ...]
    held: frozenset[str] = frozenset()


class MemoryStore:
    """Owns ``root``. ``references`` lists all there are, and raises when it cannot be sure."""

    def __init__(
        self, root: Path, references: Callable[[], References], *, boot: str | None = None
    ) -> None:
        self.root = root
        self._references = references
        self._boot = boot
        self.verified = Verified(root / "verified.json", boot)

    def start(self) -> None:
        """Make the directory and remove what an earlier process left half done. Raises Retry."""
        try:
            self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.root.chmod(0o711)
        except OSError as err:
            raise files.failed("create", self.root, err) from err
        files.fsync_dir(self.root.parent)
        self.verified = Verified(self.root / "verified.json", self._boot)
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if alone:
                files.remove_temporaries(self.root)
                for lineage in self._lineages():
                    files.remove_temporaries(lineage)

    def path(self, file: StoredFile) -> Path:
        """Where a file lies."""
        return self.root / str(file.gid) / file.name

    def check_space(self, needed: int) -> None:
        """Raise Retry (NoSpace) unless ``needed`` bytes and a tenth more are free."""
        wanted, free = needed + needed // 10 + _SMALL, diskspace.free_bytes(self.root)
        if free < wanted:
            raise Retry(
                f"{self.root}: saving memory needs {wanted} bytes, {free} are free; free some",
                reason="NoSpace",
            )

    @contextlib.contextmanager
    def saving(self) -> "Iterator[Saving]":
        """Everything from the first file to the commit happens in here; nothing is collected.

        Waits while unused files are being removed. What was not finished is removed at the end.
        Who names files of another manifest, as a fork does, reads that one in here as well.
        """
        from controller.memory.saving import Saving

        with self._lock(fcntl.LOCK_SH), contextlib.closing(Saving(self)) as saving:
            yield saving

    def verify(self, manifest: Manifest, *, full: bool = False) -> tuple[Problem, ...]:
        """Read what must be read before a start, or everything: all that is wrong with it.

        Raises Retry when a file cannot be read: that says nothing about its content.
        """
        from controller.memory import check

        return check.verify(manifest, self.path, self.verified, full=full)

    def put_back(self, who: Identity, manifest: Manifest) -> None:
        """Write the delta into a process that maps the base and has not run.

        Raises Blocked (MemoryNotFound), Rejected (SnapshotCorrupt), Gone, Retry.
        """
        from controller.memory import capture, image
        from controller.memory.pages import FileId, ProcessMemory

        path = self.path(manifest.base)
        try:
            with ProcessMemory(who, writable=True) as memory:
                ram = memory.ram(FileId.of(path.stat()), manifest.platform.memory)
                if manifest.delta is None:
                    return
                path = self.path(manifest.delta)
                with opened(path) as fd:
                    layout = image.read(fd, path, manifest.delta.digest)
                    if layout.base != manifest.base.digest or layout.ram != ram.size:
                        raise image.corrupt(path, "it belongs to another base")
                    capture.put_back(memory, ram, fd, layout)
        except OSError as err:
            raise files.failed("restore memory from", path, err) from err

    def open_state(self, manifest: Manifest) -> int:
        """A descriptor to read the device state from; the caller closes it. Raises Retry."""
        path = self.path(manifest.state)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as err:
            raise files.failed("open", path, err) from err

    def collect(self) -> tuple[Path, ...]:
        """Remove every file that nobody names; returns them. Does nothing while somebody saves.

        Raises Retry (ReferencesUnknown) when a manifest or record cannot be read: nothing is
        removed then.
        """
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            return self._collect() if alone else ()

    def _collect(self) -> tuple[Path, ...]:
        named = self._named()
        removed: list[Path] = []
        for lineage in self._lineages():
            gone = [path for path in _listed(lineage) if _is_unnamed(path, named)]
            for path in gone:
                failpoint.hit("memory.unlink.before")
                files.remove_tree(path)
                failpoint.hit("memory.unlink.after")
            if gone:
                files.fsync_dir(lineage)
            removed += gone
            with contextlib.suppress(OSError):  # not empty: still in use
                lineage.rmdir()
        self.verified.drop({_key(path) for path in removed})
        return tuple(removed)

    def _named(self) -> frozenset[str]:
        """Every digest that somebody names."""
        try:
            found = self._references()
            paths = [path for home in found.homes for path in commit.manifests(home)]
            manifests = [commit.read_file(path) for path in paths]
        except (Rejected, Retry) as err:
            raise Retry(
                f"{self.root}: nothing is removed as long as not everything can be read: {err}",
                reason="ReferencesUnknown",
            ) from err
        files_named = {file.digest for m in manifests if m is not None for file in m.files}
        return found.held | files_named

    def _lineages(self) -> tuple[Path, ...]:
        return tuple(path for path in _listed(self.root) if path.name.isdigit() and path.is_dir())

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[bool]:
        """The store's lock; False when it is taken and ``how`` says not to wait."""
        path = self.root / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as err:
            raise files.failed("open", path, err) from err
        try:
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)


def changed_bytes(who: Identity, mapped: Path, ram: int) -> int:
    """What saving would write at most; ``mapped``: the image that ``who`` maps. It may run.

    Raises Blocked (MemoryNotFound), Gone, Retry.
    """
    from controller.memory.pages import PAGE, FileId, ProcessMemory

    with ProcessMemory(who) as memory:
        found = memory.ram(FileId.of(mapped.stat()), ram)
        return len(memory.changed_pages(found)) * PAGE


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to read ``path``. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_unnamed(path: Path, named: frozenset[str]) -> bool:
    """Whether ``path`` is a file of ours that nobody names. What is not ours stays."""
    match = NAME.fullmatch(path.name)
    return files.is_temporary(path.name) or (match is not None and match[2] not in named)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as err:
        raise files.failed("list", directory, err) from err


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
