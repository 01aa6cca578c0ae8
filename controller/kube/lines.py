"""Cuts a byte stream into lines, in whatever pieces it arrives. Pure, bounded."""

LIMIT = 16 * 1024 * 1024  # bytes; etcd takes no object above 1.5 MiB, JSON escapes included


class LineTooLong(Exception):
    """A line passed the limit; the stream cannot be trusted any further."""


class LineSplitter:
    """``feed`` chunks, get complete lines without their newline; ``rest`` is the half line."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._held = 0

    @property
    def rest(self) -> int:
        """Bytes of the incomplete last line."""
        return self._held

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes. Raises LineTooLong."""
        lines = chunk.split(b"\n")
        last = lines.pop()
        if lines and self._parts:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts.clear()
            self._held = 0
        if last:
            self._parts.append(last)
            self._held += len(last)
        if self._held > self._limit or any(len(line) > self._limit for line in lines):
            raise LineTooLong(f"a line is longer than {self._limit} bytes")
        return lines
