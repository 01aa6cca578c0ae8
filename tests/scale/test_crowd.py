"""Whether a wake takes longer among a thousand Instances: hollow VMMs, a real control plane.

A tenth of the others lives on the same node, each with a VMM; the rest are there for the API
server, the scheduler and the operator, on a Node of which only the Lease is alive.
"""

import time
from statistics import median

from tests.scale.figures import SMOKE, Figures
from tests.scale.filling import fill, full_node
from tests.scale.hollow import NODE, hollow_cluster, hollow_stack
from tests.scale.upped import NAMESPACE, Cluster
from tests.scale.watching import ready

BESIDE, ELSEWHERE = (5, 20) if SMOKE else (100, 900)
WAKES = 3 if SMOKE else 30
PATIENCE = 300.0  # seconds
PAUSE_SECONDS = 0.2  # between two orders


def test_wake_among_many(figures: Figures) -> None:
    with hollow_stack() as stack, hollow_cluster(stack) as cluster, full_node(stack):
        stack.start("agent")
        stack.start("operator")
        _create(cluster, ["sleeper"])
        _wakes(cluster, 3)  # the first takes longer
        alone = _wakes(cluster, WAKES)
        stack.stop("operator")  # else it would make reservations of its own for them
        fill(stack.admin, 0, ELSEWHERE, stack.defaults)
        stack.start("operator")
        _create(cluster, [f"beside-{number}" for number in range(BESIDE)])
        cluster.audit.settled(NAMESPACE)
        crowded = _wakes(cluster, WAKES)
    ratio = median(crowded) / median(alone)
    figures.add(
        f"wake among {BESIDE + ELSEWHERE} others ÷ alone, p50", ratio, "", budget=1.1,
        note=f"{median(crowded) * 1000:.0f} ÷ {median(alone) * 1000:.0f} ms, hollow;"
        f" {BESIDE} of them on the node; n={WAKES}",
        samples=crowded,
    )  # fmt: skip


def _create(cluster: Cluster, names: list[str]) -> None:
    began = time.monotonic()
    for name in names:
        cluster.create(name, memory={"size": "64Mi"}, nodeName=NODE)  # the other has no agent
    for name in names:
        cluster.watch.wait(name, ready("Running"), after=began, seconds=PATIENCE)


def _wakes(cluster: Cluster, count: int) -> list[float]:
    """Seconds from patch to Ready, of each wake."""
    taken = []
    for _ in range(count):
        for mode in ("Standby", "Running"):
            time.sleep(PAUSE_SECONDS)
            began = time.monotonic()
            cluster.patch("sleeper", operatingMode=mode)
            at = cluster.watch.wait("sleeper", ready(mode), after=began, seconds=PATIENCE)
            if mode == "Running":
                taken.append(at - began)
    return taken
