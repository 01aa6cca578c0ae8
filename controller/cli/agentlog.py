"""The node agent's own log, reduced to the lines about one Instance.

Lines name an Instance by namespace/name or by UID. What does not live here: what guests wrote;
the agent is asked for that (``agent``).
"""

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from controller.errors import Retry

_POLL_SECONDS = 0.1
_LINE_BYTES = 1 << 20  # a longer line is no line of ours


async def lines(
    log: Path, uid: str, name: str, tail: int | None, follow: bool
) -> AsyncIterator[bytes]:
    """The matching lines, the last ``tail`` of them; with ``follow`` whatever comes after.

    Raises Retry when there is no log.
    """
    wanted = about(uid, name)
    older = log.with_suffix(".log.1")
    try:
        current = log.open("rb")
    except OSError as err:
        raise Retry(f"{log}: {err.strerror}; is the agent running? torpor status") from err
    try:
        kept: deque[bytes] = deque(maxlen=tail)
        if older.exists():
            with older.open("rb") as before:
                kept.extend(_matching(before, wanted))
        kept.extend(_matching(current, wanted))
        for line in kept:
            yield line
        part = b""
        while follow:
            part += current.read(_LINE_BYTES)
            *whole, part = part.split(b"\n")
            for line in whole:
                if wanted.search(line):
                    yield line + b"\n"
            if whole:
                continue
            part = part[-_LINE_BYTES:]
            if _was_put_aside(log, current.fileno()):
                current.close()
                current, part = log.open("rb"), b""
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        current.close()


def about(uid: str, name: str) -> re.Pattern[bytes]:
    """What a line about that Instance contains: its UID, or namespace/name as a whole word."""
    whole = rf"(?<![-\w./]){re.escape(name)}(?![-\w/]|\.\w)"
    return re.compile(f"{re.escape(uid)}|{whole}".encode())


def _matching(file: Iterable[bytes], wanted: re.Pattern[bytes]) -> Iterable[bytes]:
    return (line for line in file if wanted.search(line))


def _was_put_aside(log: Path, fd: int) -> bool:
    try:
        return log.stat().st_ino != os.fstat(fd).st_ino
    except FileNotFoundError:
        return False  # its successor is not there yet
