"""Looking at a layer before it is unpacked: is it what its digest says, and how much will it cost.

Reads the archive once as a stream and writes nothing, so a bomb costs a refusal and no disk. What
does not live here: unpacking, and path rules, which are the unpacker's (it resolves every name
inside the root it fills).
"""

import gzip
import hashlib
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from controller.errors import Blocked, Retry
from controller.images.manifest import Blob

_BLOCK = 512
_CHUNK = 1024 * 1024
_MAX_HEADER = 1024 * 1024  # a pax header or long name; readers hold it in memory
_EXTENSIONS = (b"x", b"g", b"L", b"K")
_NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
_ENTRY_COST = 4096  # an inode and its share of a directory


@dataclass(frozen=True)
class Caps:
    """What an image may cost at most, all its layers together; bytes and entries."""

    compressed: int = 16 * 1024**3
    uncompressed: int = 64 * 1024**3
    entries: int = 2_000_000


@dataclass(frozen=True)
class Cost:
    """What unpacking takes on disk: bytes of content (sparse files in full) and entries."""

    bytes: int = 0
    entries: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.entries + other.entries)

    @property
    def on_disk(self) -> int:
        """Bytes a filesystem needs for it, at most."""
        return self.bytes + self.entries * _ENTRY_COST


def verify(path: Path, blob: Blob) -> None:
    """Raises Retry (ImageUnpackFailed) unless ``path`` has the blob's size and digest."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except FileNotFoundError:
        size, digest = 0, "nothing"
    if (size, digest) != (blob.size, blob.digest):
        raise Retry(
            f"blob {blob.digest} of {blob.size} bytes arrived as {digest} of {size} bytes;"
            " the registry serves something else, push the image again",
            reason="ImageUnpackFailed",
        )


def cost(path: Path, blob: Blob, caps: Caps, stop: threading.Event) -> Cost:
    """Walk one layer. ``stop`` set from outside ends the walk early (the result means nothing).

    Raises Blocked (ImageUnsupported) over a cap, Retry (ImageUnpackFailed) when it is no archive.
    """
    try:
        with path.open("rb") as raw:
            if blob.media_type.endswith("+gzip"):
                with gzip.open(raw) as stream:
                    return _walk(_Counted(stream, caps.uncompressed), caps, stop)
            return _walk(_Counted(raw, caps.uncompressed), caps, stop)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as err:
        raise Retry(
            f"layer {blob.digest} is no archive: {err}; push the image again",
            reason="ImageUnpackFailed",
        ) from err


def check(total: Cost, caps: Caps) -> None:
    """Raises Blocked (ImageUnsupported) when the sum is over a cap."""
    if total.entries > caps.entries:
        raise _over(f"over {caps.entries} files")
    if total.bytes > caps.uncompressed:
        raise _over(f"over {caps.uncompressed} bytes when unpacked")


class _Counted:
    """A stream that refuses to give more than ``limit`` bytes."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self.given = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.given += len(data)
        if self.given > self._limit:
            raise _over(f"over {self._limit} bytes when unpacked")
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            data = self.read(min(size, _CHUNK))
            if not data:
                raise EOFError("it ends in the middle of a file")
            size -= len(data)


def _walk(stream: _Counted, caps: Caps, stop: threading.Event) -> Cost:
    total = Cost()
    for entry in _entries(stream):
        total += entry
        check(total, caps)
        if stop.is_set():
            break
    while not stop.is_set() and stream.read(_CHUNK):
        pass  # what follows the archive's end is decompressed by the unpacker too
    return total


def _entries(stream: _Counted) -> Iterator[Cost]:
    """The cost of each file, in order; extension headers are folded into the file they are for."""
    extended: dict[bytes, int] = {}
    while (header := stream.read(_BLOCK)) and header.strip(b"\0"):
        if len(header) < _BLOCK or _number(header[148:156]) != _checksum(header):
            raise ValueError("a broken header")
        kind, size = header[156:157], _number(header[124:136])
        if kind in _EXTENSIONS:
            if size > _MAX_HEADER:
                raise _over(f"a header of {size} bytes")
            payload = stream.read(size)
            stream.read(-size % _BLOCK)
            if kind == b"x":
                extended = _pax_sizes(payload)
            continue
        size = extended.get(b"size", size)
        real = max(size, *(v for k, v in extended.items() if k != b"size"), 0)
        if kind == b"S":  # old GNU sparse: the real size stands in the header
            real = max(real, _number(header[483:495]))
            _skip_sparse_maps(stream, header)
        stored = 0 if kind in _NO_CONTENT else size
        stream.skip(stored)
        stream.read(-stored % _BLOCK)  # some writers leave out the last padding
        extended = {}
        yield Cost(real if stored or real > size else 0, 1)


def _skip_sparse_maps(stream: _Counted, header: bytes) -> None:
    more = header[482:483] not in (b"\0", b"")
    while more:
        more = stream.read(_BLOCK)[504:505] not in (b"\0", b"")


def _pax_sizes(payload: bytes) -> dict[bytes, int]:
    """``size`` and the real size of sparse files, from "LENGTH KEY=VALUE\\n" records."""
    found: dict[bytes, int] = {}
    while payload.strip(b"\0"):
        length = int(payload[: payload.index(b" ")])
        if not 0 < length <= len(payload):
            raise ValueError("a broken pax header")
        key, _, value = payload[payload.index(b" ") + 1 : length - 1].partition(b"=")
        if key in (b"size", b"GNU.sparse.size", b"GNU.sparse.realsize"):
            found[key] = int(value)
        payload = payload[length:]
    if any(value < 0 for value in found.values()):
        raise ValueError("a negative size")
    return found


def _number(field: bytes) -> int:
    if field[:1] >= b"\x80":  # base-256
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            raise ValueError("a negative number")
        return value
    return int(field.strip(b"\0 ") or b"0", 8)


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * 0x20


def _over(what: str) -> Blocked:
    return Blocked(
        f"the image is too large for this node: {what}; make it smaller", reason="ImageUnsupported"
    )
