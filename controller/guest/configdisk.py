"""The config disk: what one boot of one guest needs to know, as a small raw disk.

Byte-exact: quotes, newlines, empty strings and bytes that are no UTF-8 (as surrogate escapes)
arrive in the guest as they were given. Layout: magic, u32 version, u32 length, u32 CRC-32 of the
payload, the payload (fields), zeros up to a multiple of 4096.

What does not live here: where the values come from.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Rejected
from controller.guest.wire import Key, WireError, integer, pack, unpack
from controller.host import files

MAGIC = b"TORPORCF"
VERSION = 1
MAX_BYTES = 1024 * 1024
_HEADER = struct.Struct("<8sIII")
_BLOCK = 4096
_MAX_NAME = 64  # bytes of a Linux host name


@dataclass(frozen=True, kw_only=True)
class GuestConfig:
    """``nonce`` names the boot; ``user`` is the image's (``name|uid[:group|gid]``, "" = root);
    ``stop_timeout`` is seconds between the stop signal and SIGKILL; bytes are taken as text with
    surrogate escapes. Raises Rejected where a value cannot exist in a process.
    """

    hostname: str
    machine_id: str
    nonce: str
    argv: tuple[str | bytes, ...]
    env: tuple[tuple[str | bytes, str | bytes], ...] = ()
    workdir: str | bytes = "/"
    user: str = ""
    stop_timeout: float = 5.0
    stop_signal: int = 15

    def __post_init__(self) -> None:
        object.__setattr__(self, "argv", tuple(_text(arg) for arg in self.argv))
        object.__setattr__(self, "env", tuple((_text(k), _text(v)) for k, v in self.env))
        object.__setattr__(self, "workdir", _text(self.workdir))
        self._check()

    def _check(self) -> None:
        if not self.argv:
            raise Rejected("guest config: no command; set command or use an image that has one")
        if len(self.hostname.encode()) > _MAX_NAME:
            raise Rejected(f"guest config: host name {self.hostname!r} is over {_MAX_NAME} bytes")
        if not 1 <= self.stop_signal <= _MAX_NAME:
            raise Rejected(f"guest config: no signal {self.stop_signal}")
        if not 0 <= self.stop_timeout <= 86_400:
            raise Rejected(f"guest config: stop timeout {self.stop_timeout} s is not within a day")
        for name, _ in self.env:
            if not name or "=" in _text(name):
                raise Rejected(f"guest config: env name {name!r} is empty or holds '='")


def encode(config: GuestConfig) -> bytes:
    """The whole disk. Raises Rejected when it is over MAX_BYTES or a value holds a NUL."""
    fields: list[tuple[int, bytes | int]] = [
        (Key.HOSTNAME, _raw(config.hostname)),
        (Key.MACHINE_ID, _raw(config.machine_id)),
        (Key.NONCE, _raw(config.nonce)),
        (Key.WORKDIR, _raw(config.workdir)),
        (Key.USER, _raw(config.user)),
        (Key.STOP_TIMEOUT, round(config.stop_timeout * 1000)),
        (Key.STOP_SIGNAL, config.stop_signal),
        *((Key.ARGV, _raw(arg)) for arg in config.argv),
        *((Key.ENV, _raw(name) + b"=" + _raw(value)) for name, value in config.env),
    ]
    payload = pack(fields)
    disk = _HEADER.pack(MAGIC, VERSION, len(payload), zlib.crc32(payload)) + payload
    disk += bytes(-len(disk) % _BLOCK)
    if len(disk) > MAX_BYTES:
        raise Rejected(
            f"guest config: command, args and env take {len(payload)} bytes, "
            f"at most {MAX_BYTES - _HEADER.size} fit; shorten them"
        )
    return disk


def decode(disk: bytes) -> GuestConfig:
    """The inverse of ``encode``. Raises Rejected when the disk is damaged or of another version."""
    try:
        return _decode(disk)
    except (WireError, ValueError, struct.error) as err:
        raise Rejected(f"guest config disk: {err}") from err


def write(path: Path, config: GuestConfig) -> None:
    """Replace the disk image at ``path`` (mode 0600), durably. Raises Rejected or Retry."""
    files.write_atomic(path, encode(config))


def _decode(disk: bytes) -> GuestConfig:
    magic, version, length, checksum = _HEADER.unpack_from(disk)
    payload = disk[_HEADER.size : _HEADER.size + length]
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"magic {magic!r} version {version}")
    if len(payload) != length or zlib.crc32(payload) != checksum:
        raise ValueError("cut short or damaged")
    one: dict[int, bytes] = {}
    argv: list[str | bytes] = []
    env: list[tuple[str | bytes, str | bytes]] = []
    for key, value in unpack(payload):
        if key == Key.ARGV:
            argv.append(value)
        elif key == Key.ENV:
            name, _, rest = value.partition(b"=")
            env.append((name, rest))
        else:
            one[key] = value
    return GuestConfig(
        hostname=_text(one[Key.HOSTNAME]),
        machine_id=_text(one[Key.MACHINE_ID]),
        nonce=_text(one[Key.NONCE]),
        argv=tuple(argv),
        env=tuple(env),
        workdir=one[Key.WORKDIR],
        user=_text(one[Key.USER]),
        stop_timeout=integer(one[Key.STOP_TIMEOUT]) / 1000,
        stop_signal=integer(one[Key.STOP_SIGNAL]),
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _raw(value: str | bytes) -> bytes:
    try:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as err:
        raise Rejected(f"guest config: {value!r} is no text: {err.reason}") from err
    if b"\0" in raw:
        raise Rejected(f"guest config: {value!r} holds a NUL, which no process can be given")
    return raw
