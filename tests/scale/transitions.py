"""An Instance through its whole life, and how many writes each transition took.

Counted as the project's budget counts: writes to the Instance by the operator and the agent. One
that only shows the progress of a transition that takes long is no part of it and is shown apart.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.scale.audit import Writes
from tests.scale.figures import Figures
from tests.scale.upped import NAMESPACE, Cluster
from tests.scale.watching import failed, gone, ready

Object = dict[str, Any]
SECONDS = 90.0  # for any transition, on a busy machine
CREATE_BUDGET, BUDGET = 3, 2
CREATIONS = ("create", "fork", "fork, source running")


@dataclass(frozen=True)
class Counted:
    """One transition."""

    name: str
    seconds: float  # until a watcher saw its end
    writes: Writes
    progress: int  # of the writes to the Instance

    def note(self, figures: Figures, kind: str) -> None:
        """Add it to the figures."""
        budget = BUDGET if self.name not in CREATIONS else CREATE_BUDGET
        beside = f"{self.seconds:.2f} s; Pods {self.writes.pods}, Events {self.writes.events}"
        if self.progress:
            beside += f"; {self.progress} more of progress"
        if self.writes.refused:
            beside += f"; {self.writes.refused} refused"
        counted = self.writes.instances - self.progress
        what = f"writes to the Instance: {self.name} ({kind})"
        figures.add(what, counted, "", budget=budget, note=beside)


def life(cluster: Cluster, name: str) -> Iterator[Counted]:
    """Create it, pause, resume, stop, run again, delete."""
    running = ready("Running")
    yield _one(cluster, name, "create", lambda: cluster.create(name), running)
    orders = {
        "pause": ("Paused", ready("Paused")),
        "resume": ("Running", running),
        "stop": ("Stopped", ready("Stopped")),
        "run": ("Running", running),
    }
    for order, (mode, holds) in orders.items():
        yield _one(cluster, name, order, lambda m=mode: cluster.patch(name, operatingMode=m), holds)
    path = f"{cluster.instances}/{name}"
    yield _one(cluster, name, "delete", lambda: cluster.admin.delete(path), gone)


def slumber(cluster: Cluster, name: str) -> Iterator[Counted]:
    """A Running one to sleep, awake, and to sleep once more; it is Running after that."""
    running, asleep = ready("Running"), ready("Standby")
    for order in ("sleep", "wake", "sleep again"):
        mode, holds = ("Running", running) if order == "wake" else ("Standby", asleep)
        yield _one(cluster, name, order, lambda m=mode: cluster.patch(name, operatingMode=m), holds)
    fork = f"{name}-fork"
    yield _one(cluster, fork, "fork", lambda: cluster.fork(name, fork), running)
    cluster.delete(fork)
    began = time.monotonic()
    cluster.patch(name, operatingMode="Running")
    cluster.watch.wait(name, running, after=began, seconds=SECONDS)
    cluster.audit.settled(NAMESPACE)
    order = "fork, source running"
    yield _one(cluster, fork, order, lambda: cluster.fork(name, fork, fromRunning=True), running)
    cluster.delete(fork)


def exit_of_workload(
    cluster: Cluster, name: str, end: Callable[[Object], None], **spec: object
) -> Counted:
    """Run it; count from the moment that it is told to ``end``."""
    began = time.monotonic()
    obj = cluster.create(name, **spec)
    cluster.watch.wait(name, ready("Running"), after=began, seconds=SECONDS)
    cluster.audit.settled(NAMESPACE)
    return _one(cluster, name, "exit", lambda: end(obj), failed)


def _one(
    cluster: Cluster,
    name: str,
    transition: str,
    order: Callable[[], object],
    holds: Callable[[Object | None], bool],
) -> Counted:
    cluster.audit.skip()
    began = time.monotonic()
    order()
    ended = cluster.watch.wait(name, holds, after=began, seconds=SECONDS)
    writes = cluster.audit.settled(NAMESPACE)
    progress = [
        obj
        for obj in cluster.watch.versions(name, began)
        if obj["status"].get("plan") and not holds(obj)
    ]
    return Counted(transition, ended - began, writes, len(progress))
