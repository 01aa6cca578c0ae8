"""How much room a file system has, and whether it can share blocks between files.

What does not live here: who needs how much (``core.capacity``).
"""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from controller.host.files import failed

_FICLONE = 0x40049409


def free_bytes(path: Path) -> int:
    """Return how many bytes an ordinary user may still write below ``path``. Raises Retry."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise failed("ask for free space at", path, error) from error
    return found.f_bavail * found.f_frsize


def total_bytes(path: Path) -> int:
    """Return the size of the file system that holds ``path``. Raises Retry."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise failed("ask for the size of", path, error) from error
    return found.f_blocks * found.f_frsize


def shares_blocks(directory: Path) -> bool:
    """Whether a file in ``directory`` can be cloned without a copy (reflink): tried, not guessed.

    Raises Retry when nothing can be written there.
    """
    try:
        with (
            tempfile.TemporaryFile(dir=directory) as source,
            tempfile.TemporaryFile(dir=directory) as clone,
        ):
            source.write(bytes(4096))
            source.flush()
            with contextlib.suppress(OSError):
                fcntl.ioctl(clone.fileno(), _FICLONE, source.fileno())
                return True
            return False
    except OSError as error:
        raise failed("write in", directory, error) from error
