"""Who wrote what, from the API server's audit log: the only witness that misses no write."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
QUIET_SECONDS = 1.0  # without a write: whatever was going on has come to its end
LONGEST_SECONDS = 20.0


@dataclass(frozen=True)
class Writes:
    """Writes that were carried out, by what they were made to; refused ones beside."""

    instances: int
    pods: int
    events: int
    leases: int
    refused: int


class Audit:
    """Reads the log from where it was read last, across its rotation."""

    def __init__(self, directory: Path, bench: str) -> None:
        self._path = directory / "log" / "audit.log"
        self._bench = bench  # the user whose own writes do not count
        self._file = self._path.open("rb")
        self._half = b""

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def skip(self) -> None:
        """Forget what was written until now."""
        for _ in self._new():
            pass

    def settled(self, namespace: str) -> Writes:
        """All new writes in ``namespace``, once none has come for a while."""
        found: list[Entry] = []
        began = quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            fresh = [entry for entry in self._new() if _namespace(entry) == namespace]
            if fresh:
                found += fresh
                quiet_since = time.monotonic()
            assert time.monotonic() - began < LONGEST_SECONDS, f"never quiet: {found[-3:]}"
            time.sleep(0.05)
        return self._tally(found)

    def everywhere(self, prefix: str = "") -> Writes:
        """All new writes of the whole cluster; with ``prefix``: to objects that are named so."""
        found = self._new()
        return self._tally(e for e in found if e["objectRef"].get("name", "").startswith(prefix))

    def _tally(self, entries: Iterable[Entry]) -> Writes:
        counts = dict.fromkeys(("instances", "pods", "events", "leases", "refused"), 0)
        for entry in entries:
            if entry["user"]["username"] == self._bench:
                continue
            if entry["responseStatus"]["code"] >= 300:
                counts["refused"] += 1
            else:
                counts[entry["objectRef"]["resource"]] += 1
        return Writes(**counts)

    def _new(self) -> Iterator[Entry]:
        while True:
            # asked first: what is in a file that was put aside by now is all there will be
            rotated = self._path.stat().st_ino != _inode(self._file.fileno())
            yield from self._lines()
            if not rotated:
                return
            self._file.close()
            self._file = self._path.open("rb")

    def _lines(self) -> Iterator[Entry]:
        *whole, self._half = (self._half + self._file.read()).split(b"\n")
        yield from map(json.loads, whole)


def _inode(fd: int) -> int:
    return Path(f"/proc/self/fd/{fd}").stat().st_ino


def _namespace(entry: Entry) -> str | None:
    return entry["objectRef"].get("namespace")
