"""Moving pages: out of a process or files into a body, with digests on the way, and back in.

One engine does all of it. It is given pieces, rows of (source, offset in it, page of the body,
count), and walks the body chunk by chunk in a few threads. Each thread reads up to 256 KiB into
one buffer that it keeps, which stays in the processor's cache while it is looked through for zero
pages, digested and written: reading, digesting and writing leave Python's lock free, so threads
add up. Zero pages are not written: where the target is new, they are holes.

Reading a process works only while it stands still; writing one only before it runs. What does not
live here: which pages (``pages``), what a digest is (``chunks``), file formats
(``image``).
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from controller.errors import Retry
from controller.memory.chunks import CHUNK_PAGES, EMPTY, ChunkDigest, pages_with_data, stretches
from controller.memory.pages import PAGE

BUFFER_PAGES = 64
_GAP = -1  # in place of a source
_GAP_PAGES = 3
_ZEROS = memoryview(bytes(BUFFER_PAGES * PAGE))
THREADS = min(4, os.cpu_count() or 1)

# rows of (index of the source, offset in it in bytes, page of the body, count of pages)
Pieces = NDArray[np.int64]
_Reads = list[tuple[int, int, int]]  # (source, offset in bytes, count of pages)
_Task = TypeVar("_Task")


class Cancelled(Retry):
    """Somebody asked to stop; nothing of what was begun counts."""

    default_reason = "Cancelled"


@dataclass(frozen=True)
class Copied:
    """What a walk over a body saw: the digest of every chunk, and which pages are not zero."""

    digests: tuple[bytes, ...]  # empty when none were asked for
    stored: NDArray[np.bool_]


@dataclass(frozen=True)
class Order:
    """One walk. ``target``: descriptor to write to, None to read only; ``digests``: make them."""

    sources: Sequence[int]
    pieces: Pieces
    body_pages: int
    target: int | None = None
    digests: bool = True
    cancelled: Callable[[], bool] = lambda: False


def pieces(source: int, rows: Sequence[Sequence[int]] | NDArray[np.int64]) -> Pieces:
    """Rows of (offset in bytes, page of the body, count) as pieces of ``source``."""
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 3)
    return np.insert(table, 0, source, axis=1)


def copy(order: Order) -> Copied:
    """Walk the body of ``order``. Raises OSError, EOFError (a source is too short), Cancelled."""
    stored = np.zeros(order.body_pages, dtype=bool)
    digests = [EMPTY] * -(-order.body_pages // CHUNK_PAGES)
    rows = split(order.pieces)
    chunks, starts = np.unique(rows[:, 2] // CHUNK_PAGES, return_index=True)
    groups = np.split(rows, starts[1:]) if len(rows) else []
    keep = threading.local()

    def walk(task: tuple[int, Pieces]) -> None:
        if order.cancelled():
            raise Cancelled("copying memory was cancelled")
        chunk, mine = task
        first = chunk * CHUNK_PAGES
        buffer = _buffer_of(keep)
        digest = _chunk(order, first, mine, buffer, stored[first : first + CHUNK_PAGES])
        digests[chunk] = digest

    _run(walk, list(zip(chunks.tolist(), groups, strict=True)))
    return Copied(tuple(digests) if order.digests else (), stored)


def write_back(source: int, rows: Sequence[tuple[int, int, int]], target: int) -> None:
    """Write pages of ``source`` into ``target``: rows of (offset there, offset here or -1, count).

    -1 writes zeros. Offsets in bytes, counts in pages. Raises OSError, EOFError.
    """
    keep = threading.local()

    def write(row: tuple[int, int, int]) -> None:
        to, origin, count = row
        buffer = _buffer_of(keep)
        for done in range(0, count * PAGE, BUFFER_PAGES * PAGE):
            size = min(BUFFER_PAGES * PAGE, count * PAGE - done)
            if origin >= 0:
                read_into(source, buffer[:size], origin + done)
            _write_all(target, (buffer if origin >= 0 else _ZEROS)[:size], to + done)

    def write_many(some: list[tuple[int, int, int]]) -> None:
        for row in some:
            write(row)

    _run(write_many, list(_shares(rows)))


def split(rows: Pieces) -> Pieces:
    """Cut pieces, sorted by their place in the body, where a chunk of the body ends."""
    if not len(rows):
        return rows.reshape(-1, 4)
    first, last = rows[:, 2] // CHUNK_PAGES, (rows[:, 2] + rows[:, 3] - 1) // CHUNK_PAGES
    copies = last - first + 1
    out = np.repeat(rows, copies, axis=0)
    nth = np.arange(len(out)) - np.repeat(np.cumsum(copies) - copies, copies)
    chunk = np.repeat(first, copies) + nth
    start = np.maximum(out[:, 2], chunk * CHUNK_PAGES)
    end = np.minimum(out[:, 2] + out[:, 3], (chunk + 1) * CHUNK_PAGES)
    out[:, 1] += (start - out[:, 2]) * PAGE
    out[:, 2], out[:, 3] = start, end - start
    return out


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset``. Raises OSError, EOFError."""
    while view:
        done = os.preadv(fd, [view], offset)
        if done == 0:
            raise EOFError(f"nothing at byte {offset}")
        view, offset = view[done:], offset + done


def _chunk(
    order: Order, first: int, rows: Pieces, buffer: memoryview, stored: NDArray[np.bool_]
) -> bytes:
    digest = ChunkDigest()
    for page, reads in _batches(rows):
        filled = 0
        for source, offset, count in reads:
            end = filled + count * PAGE
            if source == _GAP:
                buffer[filled:end] = _ZEROS[: end - filled]
            else:
                read_into(order.sources[source], buffer[filled:end], offset)
            filled = end
        view = buffer[:filled]
        flags = pages_with_data(view)
        stored[page - first : page - first + len(flags)] = flags
        if order.target is not None:
            for start, end in stretches(flags):
                _write_all(order.target, view[start * PAGE : end * PAGE], (page + start) * PAGE)
        if order.digests:
            digest.add(page - first, view, flags)
    return digest.finish()


def _batches(rows: Pieces) -> Iterator[tuple[int, _Reads]]:
    """Neighbours in the body together, a buffer at most: (first page, what to read).

    A small gap is filled with zeros, which are not written: scattered pages cost less that way.
    """
    start, have = -1, 0
    reads: _Reads = []
    for source, offset, page, count in rows.tolist():
        gap = page - start - have
        if reads and 0 < gap <= min(_GAP_PAGES, BUFFER_PAGES - have - 1):
            reads.append((_GAP, 0, gap))
            have += gap
        while count:
            if have == BUFFER_PAGES or (reads and start + have != page):
                yield start, reads
                reads, have = [], 0
            if not reads:
                start = page
            take = min(count, BUFFER_PAGES - have)
            reads.append((source, offset, take))
            have += take
            offset, page, count = offset + take * PAGE, page + take, count - take
    if reads:
        yield start, reads


def _shares(rows: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Rows in portions of about a chunk; a long row is cut."""
    share: list[tuple[int, int, int]] = []
    size = 0
    for to, origin, count in rows:
        for done in range(0, count, CHUNK_PAGES):
            part = min(CHUNK_PAGES, count - done)
            share.append((to + done * PAGE, origin + done * PAGE if origin >= 0 else -1, part))
            size += part
            if size >= CHUNK_PAGES:
                yield share
                share, size = [], 0
    if share:
        yield share


def _run(work: Callable[[_Task], None], tasks: list[_Task]) -> None:
    if len(tasks) <= 1 or THREADS == 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(min(THREADS, len(tasks)), thread_name_prefix="pages") as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _buffer_of(keep: threading.local) -> memoryview:
    """This thread's buffer, made once: fresh memory for each read would cost most of the time."""
    view: memoryview | None = getattr(keep, "view", None)
    if view is None:
        view = keep.view = memoryview(mmap.mmap(-1, BUFFER_PAGES * PAGE))
    return view


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        if done == 0:  # what the memory of a dead process answers
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        view, offset = view[done:], offset + done
