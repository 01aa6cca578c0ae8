"""Stores, images and manifests made of bytes in files, without a process."""

import contextlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from controller.host import failpoint
from controller.memory import capture, copier, image
from controller.memory.chunks import data_extents
from controller.memory.image import Kind, Layout
from controller.memory.manifest import Manifest, Platform, StoredFile
from controller.memory.pages import PAGE
from controller.memory.saving import Saving, Taken
from controller.memory.store import MemoryStore, References

GID = os.getegid()
UID = str(uuid.UUID(int=7))
DIGEST = "ab" * 32


def pattern(page: int, salt: int = 0) -> bytes:
    """A page that is like no other."""
    return (page * 1000 + salt + 1).to_bytes(8, "little") * (PAGE // 8)


def ram_of(pages: dict[int, bytes], size: int) -> bytes:
    """RAM of ``size`` pages."""
    return b"".join(pages.get(number, bytes(PAGE)) for number in range(size))


def write_base(out: int, ram: bytes) -> Layout:
    """What ``capture.take`` does for a base, of bytes that are in a file."""
    source = os.memfd_create("ram")
    os.write(source, ram)
    pages = len(ram) // PAGE
    os.ftruncate(out, len(ram))
    rows = copier.pieces(0, [(0, 0, pages)])
    copied = copier.copy(copier.Order([source], rows, pages, out))
    os.close(source)
    return Layout(Kind.BASE, len(ram), pages, image.no_runs(), copied.digests)


def write_delta(out: int, base: int, digest: str, old: bytes, new: bytes) -> Layout:
    """What ``capture.take`` does for a delta: the pages in which ``new`` is not ``old``."""
    count = len(new) // PAGE
    changed = [
        n for n in range(count) if old[n * PAGE : (n + 1) * PAGE] != new[n * PAGE : (n + 1) * PAGE]
    ]
    source = os.memfd_create("ram")
    os.write(source, new)
    os.ftruncate(out, len(changed) * PAGE)
    rows = copier.pieces(0, [(page * PAGE, at, 1) for at, page in enumerate(changed)])
    copied = copier.copy(copier.Order([source], rows, len(changed), out))
    os.close(source)
    has = np.zeros(count, dtype=bool)
    for start, end in data_extents(base, len(old)):
        has[start:end] = True
    runs = capture.delta_runs(np.array(changed, dtype=np.int64), copied.stored, has)
    return Layout(Kind.DELTA, len(new), len(changed), runs, copied.digests, digest)


def put(saving: Saving, store: MemoryStore, ram: bytes, on: StoredFile | None = None) -> StoredFile:
    """``ram`` as a base, or as a delta on the base ``on``."""
    path, out = saving.new(GID)
    if on is None:
        return saving.finish(Taken(path, out, write_base(out, ram), GID))
    base = os.open(store.path(on), os.O_RDONLY)
    old = os.pread(base, len(ram), 0)
    layout = write_delta(out, base, on.digest, old, ram)
    os.close(base)
    return saving.finish(Taken(path, out, layout, GID))


def read_back(store: MemoryStore, manifest: Manifest) -> bytes:
    """The RAM that a manifest amounts to."""
    ram = os.memfd_create("ram")
    with store.path(manifest.base).open("rb") as file:
        os.write(ram, file.read(manifest.platform.memory))
    if manifest.delta is not None:
        path = store.path(manifest.delta)
        with path.open("rb") as file:
            layout = image.read(file.fileno(), path, manifest.delta.digest)
            rows = [
                (page * PAGE, body * PAGE if kind == 0 else -1, count)
                for page, body, count, kind in layout.runs.tolist()
            ]
            copier.write_back(file.fileno(), rows, ram)
    data = os.pread(ram, manifest.platform.memory, 0)
    os.close(ram)
    return data


def platform(memory: int, **changes: object) -> Platform:
    """A hypervisor with everything that counts."""
    whole = {
        "hypervisor": "qemu",
        "version": "10.0.2",
        "build": "deb13u1",
        "machine_type": "pc-q35-10.0",
        "cpu_model": "max",
        "cpu_features": ("sse4.2", "avx"),
        "accelerator": "tcg",
        "devices": DIGEST,
        "memory": memory,
        "kernel": DIGEST,
        "initrd": DIGEST,
    }
    return Platform.model_validate({**whole, **changes})


def manifest_of(
    memory: int, base: StoredFile, delta: StoredFile | None, state: StoredFile
) -> Manifest:
    """A manifest of these files."""
    return Manifest(
        uid=UID,
        epoch=1,
        run=3,
        taken_at="2026-01-01T00:00:00Z",
        disks={"overlay": 4},
        platform=platform(memory),
        base=base,
        delta=delta,
        state=state,
    )


def die_at(point: str, work: Callable[[], None]) -> None:
    """Do ``work`` in another process, which is killed as it passes ``point``."""
    pid = os.fork()
    if pid == 0:
        failpoint.load(f"{point}=kill")
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


class Shelf:
    """A store and the Instances that may name its files."""

    def __init__(self, root: Path) -> None:
        self.homes: list[Path] = []
        self.held: set[str] = set()
        self.trouble: Exception | None = None
        self.root = root
        self.store = MemoryStore(root / "memory", self._references)
        self.store.start()

    def _references(self) -> References:
        if self.trouble is not None:
            raise self.trouble
        return References(tuple(self.homes), frozenset(self.held))

    def home(self, name: str = "one") -> Path:
        """A directory of an Instance."""
        path = self.root / name
        path.mkdir()
        self.homes.append(path)
        return path

    def snapshot(self, old: bytes, new: bytes | None = None, state: bytes = b"device") -> Manifest:
        """A base of ``old``, perhaps a delta to ``new``, and device state; not committed."""
        with self.store.saving() as saving:
            base = put(saving, self.store, old)
            delta = put(saving, self.store, new, base) if new is not None else None
            return manifest_of(len(old), base, delta, saving.state(state, GID))

    def names(self) -> list[str]:
        """Every file in the store."""
        return sorted(path.name for path in (self.root / "memory").glob("*/*"))
