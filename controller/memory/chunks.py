"""Pages, chunks and their digests: the one scheme by which every body of a file is checked.

A body is a row of pages. A page of zeros is not stored (a hole). 1,024 pages, 4 MiB, are a chunk,
and a chunk's digest is SHA-256 over its pages that are not zero, in order, followed by a bitmap of
which they are (bit n of byte m: page 8m + n). So a digest is a function of the bytes alone,
whether a file system kept the holes or not; it costs time in proportion to what is stored; and a
flipped bit shows in exactly one chunk, wherever it is. A chunk without a page has the digest of
32 zero bytes, which is checked to be one.

What does not live here: where bodies and digests are kept (``image``), moving them (``copier``).
"""

import hashlib
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from controller.memory.pages import PAGE

CHUNK_PAGES = 1024
CHUNK = CHUNK_PAGES * PAGE
DIGEST = 32
EMPTY = bytes(DIGEST)  # of a chunk in which all is zero

_WORDS = PAGE // 8
_SAMPLE = 64  # words: pages of real data nearly always show in one of eight


class ChunkDigest:
    """The digest of one chunk; give it its pages in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._stored = np.zeros(CHUNK_PAGES, dtype=bool)

    def add(self, first: int, view: memoryview, stored: NDArray[np.bool_]) -> None:
        """Pages ``first``… of the chunk, of which ``stored`` says which are not zero."""
        self._stored[first : first + len(stored)] = stored
        for start, end in stretches(stored):
            self._hash.update(view[start * PAGE : end * PAGE])

    def finish(self) -> bytes:
        """32 bytes."""
        if not self._stored.any():
            return EMPTY
        self._hash.update(np.packbits(self._stored, bitorder="little").tobytes())
        return self._hash.digest()


def pages_with_data(view: memoryview) -> NDArray[np.bool_]:
    """Which pages of ``view`` (whole pages) are not all zeros."""
    words = np.frombuffer(view, dtype=np.uint64).reshape(-1, _WORDS)
    stored: NDArray[np.bool_] = np.any(words[:, ::_SAMPLE], axis=1)
    if not stored.all():
        doubtful = np.flatnonzero(~stored)
        stored[doubtful] = np.bitwise_or.reduce(words[doubtful], axis=1) != 0
    return stored


def stretches(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(start, end) of each unbroken row of True."""
    if flags.all():
        if len(flags):
            yield 0, len(flags)
        return
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)


def data_extents(fd: int, length: int) -> list[tuple[int, int]]:
    """(start, end) in pages, of what is not a hole in the first ``length`` bytes of a file.

    A file system without holes answers with everything. Raises OSError.
    """
    found: list[tuple[int, int]] = []
    at = 0
    while at < length:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == 6:  # ENXIO: only a hole is left
                break
            raise
        if start >= length:
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), length)
        first, end = start // PAGE, -(-at // PAGE)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found
