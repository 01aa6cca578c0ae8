"""What hollow VMMs are made of below their meaning: the frames of the real init, sockets, one loop.

A part of the program of ``hollow_process``, imports as little, and like the real init's wire format
it stands alone. What does not live here: what any of it says.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable

TICK_SECONDS = 0.05

Field = tuple[int, int | bytes]


def fields(*pairs: Field) -> bytes:
    """Fields as the real init packs them: key, length, value; a number is eight bytes."""
    out = b""
    for key, value in pairs:
        raw = struct.pack("<q", value) if isinstance(value, int) else value
        out += struct.pack("<BI", key, len(raw)) + raw
    return out


def unpacked(payload: bytes) -> dict[int, bytes]:
    """The inverse of ``fields``. Raises ValueError."""
    found: dict[int, bytes] = {}
    while payload:
        if len(payload) < 5:
            raise ValueError("half a field")
        key, length = struct.unpack_from("<BI", payload)
        if len(payload) < 5 + length:
            raise ValueError("half a value")
        found.setdefault(key, payload[5 : 5 + length])
        payload = payload[5 + length :]
    return found


def frame(kind: int, nonce: int, payload: bytes = b"") -> bytes:
    """One frame of the channel or the report pipe."""
    return struct.pack("<IBI", 5 + len(payload), kind, nonce) + payload


class Connection:
    """One accepted socket and what came over it that is not complete."""

    def __init__(self, sock: socket.socket, role: str) -> None:
        self.sock, self.role, self.buffer = sock, role, b""
        sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Write, or lose it: a peer that does not read is not waited for."""
        with contextlib.suppress(OSError):
            self.sock.send(data)


class Loop:
    """What is readable, and who is told. ``ticking``: guests, by how time passes for them."""

    def __init__(self, herd: bool) -> None:
        self.herd = herd
        self.selector = selectors.DefaultSelector()
        self.ticking: set[Callable[[], None]] = set()
        self.mapped: list[str] = []  # images
        self.due = 0.0

    def watch(self, sock: socket.socket, tell: Callable[[], None]) -> None:
        """Call ``tell`` whenever ``sock`` is readable."""
        self.selector.register(sock, selectors.EVENT_READ, tell)

    def forget(self, sock: socket.socket) -> None:
        """Never again; nothing where it was not watched."""
        if sock.fileno() in self.selector.get_map():
            self.selector.unregister(sock)

    def run(self) -> None:
        """For ever."""
        while True:
            rest = max(0.0, self.due - time.monotonic()) if self.ticking else None
            for key, _ in self.selector.select(rest):
                if key.fd in self.selector.get_map():  # not forgotten a moment ago
                    key.data()
            if self.ticking and time.monotonic() >= self.due:
                self.due = time.monotonic() + TICK_SECONDS
                for ticked in self.ticking:
                    ticked()
