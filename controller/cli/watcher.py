"""Sees a change as any client of the API sees it, from the new spec to Ready, and what a workload
writes, as it comes: one process for each watch, so that the looking takes little of the machine.

kubectl's own start-up is not in these times. What does not live here: what is changed (``story``).
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from controller.cli.narrator import Narrator
from controller.errors import Timeout

_READY = '.status.conditions[?(@.type=="Ready")]'
_SHOWN = (".metadata.name", ".metadata.generation", f"{_READY}.observedGeneration",
          f"{_READY}.status")  # fmt: skip
COMMAND = (
    "kubectl", "get", "inst", "--watch", "-o",
    "jsonpath=" + "|".join(f"{{{path}}}" for path in _SHOWN) + '{"\\n"}',
)  # fmt: skip


@dataclass
class Watcher:
    """When generations came up and when each was Ready, in seconds of the monotonic clock."""

    asked: dict[tuple[str, int], float] = field(default_factory=dict)
    ready: dict[tuple[str, int], float] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def see(self, line: str, now: float) -> None:
        """One line of ``COMMAND``'s output."""
        name, generation, observed, status = line.strip().split("|")
        key = (name, int(generation))
        with self.changed:
            self.asked.setdefault(key, now)
            if status == "True" and observed == generation:
                self.ready.setdefault(key, now)
            self.changed.notify_all()

    def seconds(self, name: str, limit: float) -> float:
        """From the newest spec of ``name`` to Ready; each spec is told once, the next is waited
        for. Raises Timeout after ``limit`` seconds.
        """
        end = time.monotonic() + limit
        with self.changed:
            while (key := self._untold(name)) is None:
                left = end - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    raise Timeout(f"no watcher saw {name} Ready within {limit:g} s")
            self.told[name] = key[1]
            return self.ready[key] - self.asked[key]

    def _untold(self, name: str) -> tuple[str, int] | None:
        """The newest generation that was Ready and not told yet."""
        newest = max((key for key in self.ready if key[0] == name), default=None)
        return newest if newest and newest[1] > self.told.get(name, 0) else None


@contextmanager
def watching(narrator: Narrator) -> Iterator[Watcher]:
    """A watch on the Instances of the namespace, as long as this lasts."""
    watcher = Watcher()
    with _reading(narrator, COMMAND, lambda line: watcher.see(line, time.monotonic())):
        yield watcher


@contextmanager
def following(narrator: Narrator, name: str) -> Iterator[list[str]]:
    """The lines that the workload of ``name`` wrote; more of them come as long as this lasts."""
    lines: list[str] = []
    with _reading(narrator, ("torpor", "logs", "-f", name), lines.append):
        yield lines


@contextmanager
def _reading(
    narrator: Narrator, argv: Sequence[str], take: Callable[[str], None]
) -> Iterator[None]:
    with narrator.start(argv, stderr=subprocess.DEVNULL) as process:
        reader = threading.Thread(target=_read, args=(process, take))
        reader.start()
        try:
            yield
        finally:
            process.kill()
            reader.join()


def _read(process: "subprocess.Popen[str]", take: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        take(line)
