"""Read what a log keeper writes: the last lines, or all from here on, across rotations.

Bytes stay bytes here; ``sanitise`` makes them text that is harmless on a terminal. What does not
live here: writing (``logs``), and whose log it is.
"""

import asyncio
import codecs
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from controller.errors import Retry

_BLOCK = 65536
_POLL_SECONDS = 0.1
_TRIES = 100
_TAIL_BYTES = 4 << 20
_MISSED = b"\n[torpor: output is missing here: it was rotated away before it was read]\n"


def tail(directory: Path, name: str, lines: int, max_bytes: int = _TAIL_BYTES) -> bytes:
    """Return the last ``lines`` lines of the log, at most ``max_bytes``; empty without a log.

    Blocking, short. A last line without its newline counts as a line. Raises Retry.
    """
    files = _open_all(directory, name)
    try:
        return _last_lines(files, lines, max_bytes)
    finally:
        _close(files.values())


async def follow(directory: Path, name: str, lines: int = 0) -> AsyncIterator[bytes]:
    """Yield the last ``lines`` lines, then whatever is written, in pieces, until cancelled.

    Nothing is lost or repeated when the log rotates; a line says so if it rotated through all its
    files before we could read them. Waits for a log that is not there yet. Raises Retry.
    """
    current, start = _begin(directory, name, lines)
    try:
        if start:
            yield start
        while True:
            while current is not None and (block := os.read(current, _BLOCK)):
                yield block
            place = _inodes(directory, name)
            if current is not None and _is_newest(current, place):
                await asyncio.sleep(_POLL_SECONDS)
                continue
            # Renamed or removed, so the keeper is done with it: what it holds now is all.
            while current is not None and (block := os.read(current, _BLOCK)):
                yield block
            following, missed = _open_next(directory, name, current)
            if following is None:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if current is not None:
                os.close(current)
            current = following
            if missed:
                yield _MISSED
    finally:
        if current is not None:
            os.close(current)


def _begin(directory: Path, name: str, lines: int) -> tuple[int | None, bytes]:
    """Return the newest file, positioned at its end, and the last lines before that position."""
    files = _open_all(directory, name)
    if not files:
        return None, b""
    newest = os.dup(files[min(files)])
    try:
        end = os.lseek(newest, 0, os.SEEK_END)
        return newest, _last_lines(files, lines, _TAIL_BYTES, end)
    except BaseException:
        os.close(newest)
        raise
    finally:
        _close(files.values())


def _is_newest(current: int, place: Mapping[int, int]) -> bool:
    return bool(place) and place[min(place)] == os.fstat(current).st_ino


def _open_next(directory: Path, name: str, current: int | None) -> tuple[int | None, bool]:
    """Open the file after ``current``, the oldest if that is unknown; and whether some is missed.

    None when there is no next file yet.
    """
    files = _open_all(directory, name)
    if not files:
        return None, False
    inode = None if current is None else os.fstat(current).st_ino
    numbers = {os.fstat(fd).st_ino: number for number, fd in files.items()}
    later = [n for n in files if inode not in numbers or n < numbers[inode]]
    chosen = files.pop(max(later)) if later else None
    _close(files.values())
    return chosen, current is not None and inode not in numbers


def _open_all(directory: Path, name: str) -> dict[int, int]:
    """Open all files of the log, by number (0 is the newest), all of one moment."""
    for _ in range(_TRIES):
        before = _inodes(directory, name)
        files: dict[int, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for number in before:
                path = directory / _file_name(name, number)
                files[number] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        opened = {number: os.fstat(fd).st_ino for number, fd in files.items()}
        if before == opened == _inodes(directory, name):
            return files
        _close(files.values())
    raise Retry(f"the log {name} in {directory} rotates too fast to be read", reason="LogTooFast")


def _inodes(directory: Path, name: str) -> dict[int, int]:
    pattern = re.compile(re.escape(f"{name}.log") + r"(?:\.(\d{1,4}))?")
    found: dict[int, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for file in os.listdir(directory):  # noqa: PTH208 - names are enough
            if match := pattern.fullmatch(file):
                with contextlib.suppress(FileNotFoundError):
                    found[int(match[1] or 0)] = (directory / file).lstat().st_ino
    return found


def _file_name(name: str, number: int) -> str:
    return f"{name}.log.{number}" if number else f"{name}.log"


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _last_lines(
    files: Mapping[int, int], lines: int, max_bytes: int, newest_end: int | None = None
) -> bytes:
    """Read backwards, newest file first, until there are ``lines`` lines or ``max_bytes``."""
    found = b""
    for number in sorted(files) if lines > 0 else []:
        fd = files[number]
        position = os.fstat(fd).st_size
        if number == min(files) and newest_end is not None:
            position = newest_end
        while position > 0 and len(found) < max_bytes and found[:-1].count(b"\n") < lines:
            size = min(_BLOCK, position)
            position -= size
            found = os.pread(fd, size, position) + found
    ended = found.endswith(b"\n")
    kept = found.removesuffix(b"\n").split(b"\n")[-lines:] if found else []
    return (b"\n".join(kept) + (b"\n" if ended else b""))[-max_bytes:]


# Visible stand-ins for what moves the cursor, changes the terminal or reorders the line: C0 but
# tab and newline, DEL, C1, directional marks, embeddings, overrides and isolates, separators.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


def sanitise(text: str) -> str:
    """Return ``text`` with control characters made visible (\\x1b, \\u202e); line ends are \\n."""
    return _HARMFUL.sub(_visible, text.replace("\r\n", "\n"))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Sanitiser:
    """``sanitise`` for a stream of bytes cut anywhere: in a character, between \\r and \\n."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return the harmless text of ``data``, as far as it is decided."""
        text = self._held + self._decoder.decode(data, final)
        self._held = "\r" if text.endswith("\r") and not final else ""
        return sanitise(text[:-1] if self._held else text)
