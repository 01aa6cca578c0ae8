"""Which files were found whole in this boot of the host, and how they looked then.

Remembered by the store beside its files, so that a restarted agent does not read gigabytes again.
An entry counts only for the same boot and only while size, inode, mtime, ctime and mode are the
same: a write, a chmod, a new link or a restored copy shows in one of them. What it cannot see is
a disk that returns other bytes than it was given without anybody writing: that is found at the
next boot or by a full verification. Losing the list costs time, nothing else.
"""

import contextlib
import json
import threading
from pathlib import Path

from pydantic import ValidationError

from controller.errors import Retry
from controller.host import files
from controller.host.process import boot_id
from controller.memory.manifest import Seen

_LIMIT = 16 * 1024 * 1024


class Verified:
    """The list, in one file. ``boot``: of the host, this one's by default."""

    def __init__(self, path: Path, boot: str | None = None) -> None:
        self._path = path
        self._boot = boot or boot_id()
        self._lock = threading.Lock()
        self._seen = _read(path, self._boot)

    def holds(self, name: str, seen: Seen) -> bool:
        """Whether ``name`` was found whole and looks as it did then."""
        return self._seen.get(name) == seen

    def add(self, name: str, seen: Seen) -> None:
        """``name`` is whole and looks like this."""
        with self._lock:
            self._seen[name] = seen
            self._save()

    def drop(self, names: set[str]) -> None:
        """Forget what is gone or damaged."""
        with self._lock:
            if names & self._seen.keys():
                self._seen = {k: v for k, v in self._seen.items() if k not in names}
                self._save()

    def _save(self) -> None:
        body = {"boot": self._boot, "files": {k: v.model_dump() for k, v in self._seen.items()}}
        with contextlib.suppress(Retry):  # a full disk must not stop a wake
            files.write_atomic(self._path, json.dumps(body).encode())


def _read(path: Path, boot: str) -> dict[str, Seen]:
    try:
        with path.open("rb") as file:
            whole = json.loads(file.read(_LIMIT))
        if whole["boot"] != boot:
            return {}
        return {str(k): Seen.model_validate(v) for k, v in whole["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ValidationError):
        return {}
