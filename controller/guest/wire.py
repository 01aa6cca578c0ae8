"""Frames and fields: the bytes on the agent port, the report port and the config disk.

Sans-I/O and stdlib only; ``init/src/wire.rs`` is the twin in the guest.

::

    frame  = u32 LE length of the rest, u8 type, u32 LE nonce, payload (at most 64 KiB)
    fields = (u8 key, u32 LE length, value)*, a whole number being 8 bytes, LE, two's complement

A request carries a nonce that its reply repeats. A REPORT's nonce is its number since boot.
What does not live here: sockets, time-outs, and what a field means.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

MAX_PAYLOAD = 64 * 1024
PROTOCOL = 1
_HEAD = struct.Struct("<IBI")
_FIELD = struct.Struct("<BI")
_INT = struct.Struct("<q")
_REST = _HEAD.size - 4  # what the length counts before the payload


class WireError(ValueError):
    """The bytes are no frames or no fields. The stream cannot be used any further."""


class FrameType(IntEnum):
    """38 and up are free for what comes later."""

    HELLO = 1
    HELLO_REPLY = 2
    INFO = 3
    INFO_REPLY = 4
    PING = 5
    PONG = 6
    SHUTDOWN = 7
    SHUTDOWN_REPLY = 8
    REFUSED = 9
    REPORT = 16
    TIME = 32
    TIME_REPLY = 33
    RESEED = 34
    RESEED_REPLY = 35
    IDENTITY = 36
    IDENTITY_REPLY = 37


class ReportKind(IntEnum):
    """First field of a REPORT."""

    BOOTED = 1
    STARTED = 2
    EXIT = 3
    ERROR = 4


class Key(IntEnum):
    """Keys of fields, one space for replies, reports and the config disk."""

    KIND = 1
    PROTOCOL = 2
    KERNEL = 3
    INIT = 4
    BOOT_ID = 5
    NONCE = 6
    PID = 7
    CODE = 8
    SIGNAL = 9
    OOM = 10
    ASKED = 11
    MESSAGE = 12
    ERRNO = 13
    LOST = 14
    GRACE = 15
    HOSTNAME = 32
    MACHINE_ID = 33
    ARGV = 34
    ENV = 35
    WORKDIR = 36
    USER = 37
    STOP_TIMEOUT = 38
    STOP_SIGNAL = 39
    WALL = 48
    SEED = 49
    TOKEN = 50


class Frame(NamedTuple):
    """``type`` is a FrameType, or a plain int that this side does not know."""

    type: int
    nonce: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """The bytes of one frame. Raises WireError when the payload is over MAX_PAYLOAD."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise WireError(f"payload of {len(frame.payload)} bytes, at most {MAX_PAYLOAD} allowed")
    return _HEAD.pack(_REST + len(frame.payload), frame.type, frame.nonce) + frame.payload


class Decoder:
    """Bytes in, frames out. Holds at most one frame and what ``feed`` was given."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.broken: str | None = None  # what is wrong with what follows the last frame

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are complete now, up to a length that cannot be.

        Raises WireError when ``broken`` was set before: the decoder is of no use after that.
        """
        if self.broken:
            raise WireError(self.broken)
        self._buffer += data
        frames = []
        at = 0
        while len(self._buffer) - at >= 4:
            (length,) = struct.unpack_from("<I", self._buffer, at)
            if not _REST <= length <= _REST + MAX_PAYLOAD:
                self.broken = f"a frame of {length} bytes is announced"
                at = len(self._buffer)
                break
            end = at + 4 + length
            if len(self._buffer) < end:
                break
            _, kind, nonce = _HEAD.unpack_from(self._buffer, at)
            frames.append(Frame(_known(kind), nonce, bytes(self._buffer[at + _HEAD.size : end])))
            at = end
        del self._buffer[:at]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)


def pack(fields: Iterable[tuple[int, bytes | int]]) -> bytes:
    """Encode fields in order; an int must fit 64 bits."""
    parts = []
    for key, value in fields:
        raw = _INT.pack(value) if isinstance(value, int) else value
        parts.append(_FIELD.pack(key, len(raw)) + raw)
    return b"".join(parts)


def unpack(payload: bytes) -> list[tuple[int, bytes]]:
    """Decode fields in order. Raises WireError when one runs over the end."""
    fields = []
    at = 0
    while at < len(payload):
        if len(payload) - at < _FIELD.size:
            raise WireError("half a field at the end")
        key, length = _FIELD.unpack_from(payload, at)
        at += _FIELD.size
        if len(payload) - at < length:
            raise WireError(f"field {key} runs over the end")
        fields.append((key, payload[at : at + length]))
        at += length
    return fields


def integer(value: bytes) -> int:
    """Decode a whole number. Raises WireError when it is not 8 bytes."""
    if len(value) != _INT.size:
        raise WireError(f"a number of {len(value)} bytes")
    number: int = _INT.unpack(value)[0]
    return number


def _known(kind: int) -> int:
    return FrameType(kind) if kind in FrameType._value2member_map_ else kind
