"""What the kernel console shows about a guest's end: a panic, or init's line about the exit.

A second witness, for when the reports say nothing. Root in a guest can write to its console too,
so that nothing here ever outweighs a report. What does not live here: who writes the file.
"""

import os
import re
from pathlib import Path

from controller.guest.report import GuestExit, printable, sentence

_TAIL = 64 * 1024  # bytes from the end that are looked at
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")


def last_panic(path: Path) -> str | None:
    """The reason of the last kernel panic in the console file, None when there was none.

    A file that does not exist shows none. Raises OSError when it cannot be read.
    """
    found = _PANIC.findall(_tail(path))
    return printable(found[-1]) if found else None


def witnessed_exit(path: Path, nonce: str) -> GuestExit | None:
    """The exit that init wrote for the boot named ``nonce``, None when there is no such line.

    Whether memory ran out is not told here. Raises OSError when the file cannot be read.
    """
    line = rb"^torpor-exit %s code=(\d{1,3}) signal=(\d{1,2})\r?$" % re.escape(nonce.encode())
    found = re.findall(line, _tail(path), re.MULTILINE)
    if not found or not nonce:
        return None
    code, signal = (int(number) for number in found[-1])
    return GuestExit(code, sentence(code, signal, oom=False), signal)


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL)
    except FileNotFoundError:
        return b""
