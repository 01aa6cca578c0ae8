"""A new base from a base and a delta, while its Instance sleeps.

Worth it when the delta has grown past half of its base: every later Standby writes it again.

======= ===================================== =================================================
step    effect                                a crash before it leaves
======= ===================================== =================================================
verify  both files read in full               the old snapshot
write   the new base, as in ``store``         the old snapshot; a temporary file
publish its name                              the old snapshot; a file nobody names
commit  the manifest replaced (``commit``)    the old snapshot, or the new one of the same memory
======= ===================================== =================================================

Nothing is stopped by it: a wake cancels it, and uses the old snapshot. The old files stay until
nobody names them. What does not live here: when (the caller knows who sleeps), and the commit,
which the caller makes within the same ``saving``.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.errors import Rejected, Retry
from controller.host import failpoint, files
from controller.memory import copier, image
from controller.memory.chunks import data_extents
from controller.memory.image import Kind, Layout, RunKind
from controller.memory.manifest import Manifest, StoredFile
from controller.memory.pages import PAGE
from controller.memory.saving import Saving, Taken
from controller.memory.store import MemoryStore, opened

failpoint.register("memory.rebase.before", "memory.rebase.after")


def is_due(manifest: Manifest) -> bool:
    """Whether the delta is larger than half of its base, both as they lie on the disk."""
    return manifest.delta is not None and manifest.delta.on_disk * 2 > manifest.base.on_disk


def rebase(
    store: MemoryStore,
    saving: Saving,
    manifest: Manifest,
    cancelled: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Make the new base durable; return the manifest to replace ``manifest`` by.

    Raises Rejected (SnapshotCorrupt: damage must not get fresh digests), Cancelled, Retry.
    """
    if manifest.delta is None:
        return manifest
    if damage := store.verify(manifest, full=True):
        raise Rejected(damage[0].message, reason=damage[0].reason)
    store.check_space(manifest.base.on_disk + manifest.delta.on_disk)
    failpoint.hit("memory.rebase.before")
    base = saving.finish(_merged(store, saving, manifest, manifest.delta, cancelled))
    failpoint.hit("memory.rebase.after")
    return manifest.model_copy(update={"base": base, "delta": None})


def _merged(
    store: MemoryStore,
    saving: Saving,
    manifest: Manifest,
    delta: StoredFile,
    cancelled: Callable[[], bool],
) -> Taken:
    gid, pages = manifest.base.gid, manifest.platform.memory // PAGE
    path, out = saving.new(gid)
    try:
        with opened(store.path(manifest.base)) as base_fd, opened(store.path(delta)) as delta_fd:
            layout = image.read(delta_fd, store.path(delta), delta.digest)
            os.ftruncate(out, pages * PAGE)
            pieces = merge(data_extents(base_fd, pages * PAGE), layout.runs, pages)
            copied = copier.copy(
                copier.Order([base_fd, delta_fd], pieces, pages, out, cancelled=cancelled)
            )
    except BaseException as err:
        saving.drop(path)
        if isinstance(err, OSError | EOFError):
            raise _failed(path, err) from err
        raise
    new = Layout(Kind.BASE, manifest.platform.memory, pages, image.no_runs(), copied.digests)
    return Taken(path, out, new, gid)


def merge(extents: list[tuple[int, int]], runs: image.Runs, pages: int) -> copier.Pieces:
    """Where each page of the new base comes from: source 0 the base, source 1 the delta.

    ``extents``: (start, end) of the pages that the base has. A page of neither is a hole.
    """
    source: NDArray[np.int64] = np.full(pages, -1, dtype=np.int64)
    place: NDArray[np.int64] = np.arange(pages, dtype=np.int64)
    for start, end in extents:
        source[start:end] = 0
    for page, body, count, kind in runs.tolist():
        if kind == RunKind.DATA:
            source[page : page + count] = 1
            place[page : page + count] = np.arange(body, body + count)
        else:
            source[page : page + count] = -1
    page = np.flatnonzero(source >= 0)
    if not len(page):
        return np.empty((0, 4), dtype=np.int64)
    source, place = source[page], place[page]
    new = np.diff(page, prepend=page[0] - 2) != 1
    new[1:] |= (source[1:] != source[:-1]) | (place[1:] != place[:-1] + 1)
    first = np.flatnonzero(new)
    count = np.diff(first, append=len(page))
    return np.stack([source[first], place[first] * PAGE, page[first], count], axis=1)


def _failed(path: Path, err: OSError | EOFError) -> Retry:
    if isinstance(err, EOFError):
        return Retry(f"{path}: a file became shorter while it was read", reason="IOError")
    return files.failed("write", path, err)
