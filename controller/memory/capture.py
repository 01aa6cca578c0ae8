"""RAM of a process into a file and back: what goes out, what is left out, what is put in.

The first time (the process maps an image of holes) every page that is not zero makes a base. Later
the pages that changed make a delta against the base that the process maps. A page that is zero is
left out where the base has a hole, and is a ZERO run where it has not: otherwise the guest would
find the old content again. Where a hole cannot be proven, the page is kept: one too many is right.

``take`` is all that must happen while the guest stands still. Digests are made on the way unless
told otherwise; then ``finish`` reads them from the file, which is for a guest that goes on. What
does not live here: names, permissions and durability of files (``store``).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controller.memory import copier, image
from controller.memory.chunks import data_extents
from controller.memory.image import Kind, Layout, RunKind
from controller.memory.pages import PAGE, Mapping, PageNumbers, ProcessMemory, raise_for, runs_of


@dataclass(frozen=True)
class Base:
    """The base that a process maps: an open descriptor of it, and its digest (hex)."""

    fd: int
    digest: str


def take(
    memory: ProcessMemory,
    ram: Mapping,
    out: int,
    based_on: Base | None,
    *,
    digests: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Layout:
    """Copy what ``memory`` changed since its image into the new, empty file ``out``.

    ``based_on``: None when its image is all holes. The process must stand still. Raises Gone,
    Cancelled, OSError (of ``out``: NoSpace and the like).
    """
    pages = memory.changed_pages(ram)
    kind = Kind.DELTA if based_on else Kind.BASE
    size = len(pages) if based_on else ram.size // PAGE
    os.ftruncate(out, size * PAGE)
    order = copier.Order(
        [memory.mem], _pieces(ram, pages, kind), size, out, digests, cancelled=cancelled
    )
    try:
        copied = copier.copy(order)
    except (EOFError, ProcessLookupError) as err:
        raise_for(memory.who, "read the memory of", ProcessLookupError(str(err)))
    runs = delta_runs(pages, copied.stored, _data_pages(based_on.fd, ram)) if based_on else None
    return Layout(
        kind=kind,
        ram=ram.size,
        body_pages=size,
        runs=image.no_runs() if runs is None else runs,
        digests=copied.digests,
        base=based_on.digest if based_on else "",
    )


def finish(out: int, layout: Layout) -> tuple[str, Layout]:
    """Make the digests that are missing and write the trailer: (digest of the file, layout).

    Raises OSError, EOFError. The caller syncs.
    """
    if not layout.digests and layout.body_pages:
        layout = replace(layout, digests=image.digests_of(out, layout.body_pages))
    trailer = image.encode(layout)
    view, at = memoryview(trailer), layout.body_pages * PAGE
    while view:
        done = os.pwrite(out, view, at)
        view, at = view[done:], at + done
    return image.digest_of(trailer), layout


def put_back(memory: ProcessMemory, ram: Mapping, delta: int, layout: Layout) -> None:
    """Write a delta into a process that maps its base and has not run. Raises Gone, OSError."""
    rows = [
        (ram.start + page * PAGE, body * PAGE if kind == RunKind.DATA else -1, count)
        for page, body, count, kind in layout.runs.tolist()
    ]
    try:
        copier.write_back(delta, rows, memory.mem)
    except ProcessLookupError as err:
        raise_for(memory.who, "write the memory of", err)


def delta_runs(
    pages: PageNumbers, stored: NDArray[np.bool_], base_has: NDArray[np.bool_]
) -> image.Runs:
    """The run table: page n of the body is ``pages[n]``, with data where ``stored[n]`` says so.

    ``base_has``: for each page of RAM, whether the base may hold something there.
    """
    kept = stored | base_has[pages]
    page, body = pages[kept], np.arange(len(pages))[kept]
    kind = np.where(stored[kept], RunKind.DATA, RunKind.ZERO)
    if not len(page):
        return image.no_runs()
    new = np.diff(page, prepend=page[0] - 2) != 1
    new[1:] |= kind[1:] != kind[:-1]
    first = np.flatnonzero(new)
    count = np.diff(first, append=len(page))
    body = np.where(kind == RunKind.DATA, body, 0)
    return np.stack([page[first], body[first], count, kind[first]], axis=1).astype(np.uint32)


def _pieces(ram: Mapping, pages: PageNumbers, kind: Kind) -> copier.Pieces:
    runs = runs_of(pages)
    counts = runs[:, 1]
    body = runs[:, 0] if kind is Kind.BASE else np.cumsum(counts) - counts
    return copier.pieces(0, np.stack([ram.start + runs[:, 0] * PAGE, body, counts], axis=1))


def _data_pages(fd: int, ram: Mapping) -> NDArray[np.bool_]:
    has = np.zeros(ram.size // PAGE, dtype=bool)
    for start, end in data_extents(fd, ram.size):
        has[start:end] = True
    return has
