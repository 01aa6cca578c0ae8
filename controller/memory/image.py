"""The format of memory images: a body of pages, then a trailer that says what the body is.

::

    base    body    byte n of the file is byte n of RAM; zero pages are holes
    delta   body    the pages that changed, one after the other; zero pages are holes
    both    trailer run table (delta only) | digest of each chunk of the body | footer

A VMM maps the first bytes of a base, as many as it has RAM, and never sees the trailer. A run says
where pages of RAM are: (page, page of the body, count, kind), kind DATA or ZERO; a ZERO run is not
in the body: those pages are zero now and were not in the base. A delta is complete against its
base, whose digest it names; there are no chains.

A file is named by the SHA-256 of its trailer, so the name vouches for the footer, the runs and the
digests, and these for every page (``chunks``). All numbers are little-endian. Whatever is read is
checked for size before it is read and for sense before it is used. What does not live here: where
files are (``store``), filling them (``capture``).
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.errors import Rejected
from controller.memory import copier
from controller.memory.chunks import CHUNK_PAGES, DIGEST, data_extents
from controller.memory.pages import PAGE

VERSION = 1
LARGEST_RAM = 1 << 40
REMEDY = "it was not started from; ask for operatingMode: Stopped, then Running, to boot without it"

_MAGIC = b"torporMI"
_FOOTER = struct.Struct("<8sIIIIQQQ32s16x")  # magic version kind page chunk ram body runs base
_RUN = 16  # bytes: four 32-bit numbers
_TRAILER_LIMIT = 512 * 1024 * 1024

Runs = NDArray[np.uint32]  # rows of (page of RAM, page of the body, count, kind)


class Kind(IntEnum):
    """What an image is."""

    BASE = 1
    DELTA = 2


class RunKind(IntEnum):
    """What a run of a delta is."""

    DATA = 0
    ZERO = 1


@dataclass(frozen=True)
class Layout:
    """A trailer, understood. ``ram`` in bytes; ``base``: digest of a delta's base, in hex."""

    kind: Kind
    ram: int
    body_pages: int
    runs: Runs
    digests: tuple[bytes, ...]
    base: str = ""


def no_runs() -> Runs:
    """The run table of a base."""
    return np.empty((0, 4), dtype=np.uint32)


def encode(layout: Layout) -> bytes:
    """The trailer of ``layout``. Raises Rejected when it is too long to be read again."""
    footer = _FOOTER.pack(
        _MAGIC,
        VERSION,
        layout.kind,
        PAGE,
        CHUNK_PAGES,
        layout.ram,
        layout.body_pages,
        len(layout.runs),
        bytes.fromhex(layout.base) if layout.base else bytes(DIGEST),
    )
    table = np.ascontiguousarray(layout.runs, dtype="<u4").tobytes()
    trailer = b"".join((table, *layout.digests, footer))
    if len(trailer) > _TRAILER_LIMIT:
        raise Rejected("memory changed in too many places for one delta", reason="DeltaTooLarge")
    return trailer


def digest_of(trailer: bytes) -> str:
    """The name of the file that ends with ``trailer``: 64 hex digits."""
    return hashlib.sha256(trailer).hexdigest()


def read(fd: int, path: Path, digest: str) -> Layout:
    """Read and check the trailer. Raises Rejected (SnapshotCorrupt) naming ``path``, OSError."""
    size = os.fstat(fd).st_size
    if size < _FOOTER.size:
        raise corrupt(path, f"{size} bytes are no memory image")
    footer = _parse_footer(_exactly(fd, _FOOTER.size, size - _FOOTER.size, path), path)
    length = footer.runs * _RUN + _chunk_count(footer.body_pages) * DIGEST + _FOOTER.size
    if length > _TRAILER_LIMIT or footer.body_pages * PAGE + length != size:
        raise corrupt(path, f"{size} bytes are not what its footer (byte {size - 96}) says")
    trailer = _exactly(fd, length, size - length, path)
    if digest_of(trailer) != digest:
        raise corrupt(path, f"its trailer (byte {size - length}) does not match its digest")
    layout = _layout(footer, trailer)
    if wrong := _wrong_runs(layout):
        raise corrupt(path, wrong)
    return layout


def damaged_chunks(fd: int, layout: Layout) -> tuple[int, ...]:
    """Read the whole body, holes excepted: the numbers of its chunks that do not match.

    Raises OSError, EOFError.
    """
    found = digests_of(fd, layout.body_pages)
    pairs = zip(found, layout.digests, strict=True)
    return tuple(number for number, (is_, want) in enumerate(pairs) if is_ != want)


def digests_of(fd: int, body_pages: int) -> tuple[bytes, ...]:
    """The digest of each chunk of a body. Raises OSError, EOFError."""
    rows = [(a * PAGE, a, b - a) for a, b in data_extents(fd, body_pages * PAGE)]
    return copier.copy(copier.Order([fd], copier.pieces(0, rows), body_pages)).digests


def corrupt(path: Path, why: str) -> Rejected:
    """A damaged file: what, where, and what to do."""
    return Rejected(f"{path}: {why}; {REMEDY}", reason="SnapshotCorrupt")


@dataclass(frozen=True)
class _Footer:
    kind: Kind
    ram: int
    body_pages: int
    runs: int
    base: bytes


def _parse_footer(data: bytes, path: Path) -> _Footer:
    magic, version, kind, page, chunk, ram, body, runs, based_on = _FOOTER.unpack(data)
    if magic != _MAGIC:
        raise corrupt(path, "it does not end as a memory image does")
    if version != VERSION:
        raise corrupt(path, f"format version {version} is not {VERSION}")
    if kind not in tuple(Kind) or (page, chunk) != (PAGE, CHUNK_PAGES):
        raise corrupt(path, "its footer is of no kind that this release knows")
    pages = ram // PAGE
    sane = 0 < ram <= LARGEST_RAM and ram % PAGE == 0 and body <= pages and runs <= pages
    if not sane or (kind == Kind.BASE and (body != pages or runs)):
        raise corrupt(path, f"its footer makes no sense ({ram} bytes of RAM, {body} pages)")
    return _Footer(Kind(kind), ram, body, runs, based_on)


def _layout(footer: _Footer, trailer: bytes) -> Layout:
    table = footer.runs * _RUN
    runs = np.frombuffer(trailer[:table], dtype="<u4").reshape(-1, 4)
    end = len(trailer) - _FOOTER.size
    digests = tuple(trailer[at : at + DIGEST] for at in range(table, end, DIGEST))
    based_on = footer.base.hex() if footer.kind is Kind.DELTA else ""
    return Layout(footer.kind, footer.ram, footer.body_pages, runs, digests, based_on)


def _wrong_runs(layout: Layout) -> str:
    """What is impossible about the run table, or nothing."""
    page, body, count, kind = layout.runs.astype(np.int64).T
    data = kind == RunKind.DATA
    if (count == 0).any() or (kind > RunKind.ZERO).any():
        return "its run table has a run of no pages, or of no known kind"
    if (page[1:] < (page + count)[:-1]).any() or (page + count > layout.ram // PAGE).any():
        return "its runs overlap or lie outside of RAM"
    end = (body + count)[data]
    if (body[data][1:] < end[:-1]).any() or (end > layout.body_pages).any():
        return "its runs overlap in the file or point behind its body"
    return ""


def _chunk_count(pages: int) -> int:
    return -(-pages // CHUNK_PAGES)


def _exactly(fd: int, size: int, offset: int, path: Path) -> bytes:
    buffer = bytearray(size)
    try:
        copier.read_into(fd, memoryview(buffer), offset)
    except EOFError:
        raise corrupt(path, f"it ends before byte {offset + size}") from None
    return bytes(buffer)
