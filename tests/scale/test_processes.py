"""Figures of our own two processes, as slopes over Instances that do nothing."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from controller.settings import NodeSettings
from tests.scale.figures import Figures
from tests.scale.filling import PREFIX, fill, filled, full_node, touch
from tests.scale.hollow import Stack, hollow_cluster, hollow_stack
from tests.scale.transitions import life
from tests.scale.upped import NAMESPACE, Cluster
from tests.scale.watching import gone, ready

MIB, KIB = 1024 * 1024, 1024
IDLE_SECONDS = 60.0
INSTANCES = 100
FILLED = (0, 100, 1000, 5000)
EVENTS = 2000
ROUNDS = 5
PATIENCE = 600.0  # seconds: the machine may have other things to do
CALM = 0.03  # of a core: a process that has nothing to do


@dataclass(frozen=True)
class Use:
    """What a process took while nothing happened."""

    rss: int  # bytes, at the end
    cpu: float  # seconds a minute


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One control plane for the agent's figures and for the operator's."""
    with hollow_stack() as made:
        yield made


@pytest.fixture(scope="module")
def hollow(stack: Stack) -> Iterator[Cluster]:
    """Its namespace of Instances."""
    with hollow_cluster(stack) as cluster:
        yield cluster


def test_agent_with_idle_instances(stack: Stack, hollow: Cluster, figures: Figures) -> None:
    agent, _ = stack.start("agent"), stack.start("operator")
    for counted in life(hollow, "counted"):
        assert counted.writes.instances > 0
        counted.note(figures, "hollow VMM")
    empty = _idle(agent)
    names = [f"idle-{number:03d}" for number in range(INSTANCES)]
    _create(hollow, names)
    hollow.audit.settled(NAMESPACE)
    _calm(agent)
    hollow.audit.skip()
    full = _idle(agent)
    written = hollow.audit.everywhere()
    _note_agent(figures, empty, full, _cost_of_a_pass(hollow, agent, names))
    figures.add(
        "writes to Instances, idle, a minute", written.instances, "", budget=0,
        note=f"{INSTANCES} of them; Pods {written.pods}, Events {written.events},"
        f" Leases {written.leases}",
    )  # fmt: skip
    _delete(hollow, names)
    stack.stop("agent")
    stack.stop("operator")


def test_operator_with_settled_instances(stack: Stack, hollow: Cluster, figures: Figures) -> None:
    rss, starts, events, idle = [], [], [], []
    before = 0
    with full_node(stack):
        for count in FILLED:
            fill(hollow.admin, before, count, stack.defaults)
            before = count
            hollow.audit.skip()
            operator = stack.start("operator")
            _asks_for_a_word(hollow, f"sentinel-{count}")
            _calm(operator)
            starts.append(_cpu(operator))
            if count:
                events.append(_cost_of_events(hollow, operator, count))
            used = _idle(operator, 20)
            rss.append(used.rss)
            idle.append(used.cpu)
            written = hollow.audit.everywhere(PREFIX)
            assert written.instances == written.pods == 0, f"they were not settled: {written}"
            stack.stop("operator")
    _note_operator(figures, rss, starts, events, idle)


def _note_agent(figures: Figures, empty: Use, full: Use, a_pass: float) -> None:
    figures.add("agent, RSS with no Instance", empty.rss / MIB, "MiB", budget=80)
    figures.add(
        "agent, RSS per idle Instance", (full.rss - empty.rss) / KIB / INSTANCES, "KiB",
        budget=300, note=f"slope, 0 → {INSTANCES} hollow VMMs",
    )  # fmt: skip
    # A look at each comes so seldom that it is in no window: its part is counted in.
    looks = 60 / NodeSettings.model_fields["resync_seconds"].default
    slope = (full.cpu - empty.cpu) / INSTANCES
    figures.add(
        "agent, CPU per idle Instance", (slope + a_pass * looks) * 1000, "ms/min", budget=1,
        note=f"slope {slope * 1000:.2f} + {looks:g} looks of {a_pass * 1000:.2f} ms;"
        f" {empty.cpu * 1000:.0f} ms a minute with none",
    )  # fmt: skip


def _note_operator(
    figures: Figures, rss: list[int], starts: list[float], events: list[float], idle: list[float]
) -> None:
    none, low, middle, high = FILLED
    figures.add("operator, RSS with no Instance", rss[0] / MIB, "MiB")
    for first, last in ((1, 2), (2, 3)):
        slope = (rss[last] - rss[first]) / KIB / (FILLED[last] - FILLED[first])
        note = f"slope, {FILLED[first]} → {FILLED[last]}, with its reservation Pod"
        figures.add("operator, RSS per Instance", slope, "KiB", budget=20, note=note)
    for count, cost in zip(FILLED[1:], events, strict=True):
        note = f"among {count} Instances"
        figures.add("operator, CPU per no-op event", cost * 1000, "ms", budget=1, note=note)
    exponent = 1 + _growth(events[0], events[-1], low, high)
    figures.add(
        "operator, growth of CPU: an event for each", exponent, "", budget=1.05,
        note=f"exponent, {low} → {high}",
    )  # fmt: skip
    few, many = starts[2] - starts[0], starts[-1] - starts[0]
    each = f"{many / high * 1000:.2f} ms each at {high}, {starts[0]:.1f} s with none"
    if few > 0:  # else a start costs so little for so few that it cannot be seen
        figures.add(
            "operator, growth of CPU: a start", _growth(few, many, middle, high), "", budget=1.05,
            note=f"exponent, {middle} → {high}; {each}",
        )  # fmt: skip
    slope = (idle[-1] - idle[0]) / high * 1000
    note = f"slope, {none} → {high}; {idle[0] * 1000:.0f} ms a minute with none"
    figures.add("operator, CPU per idle Instance", slope, "ms/min", note=note)


def _growth(low: float, high: float, few: int, many: int) -> float:
    return math.log(high / low) / math.log(many / few)


def _cost_of_events(cluster: Cluster, operator: psutil.Process, count: int) -> float:
    """CPU seconds of one event that changes nothing."""
    began, before = time.monotonic(), _cpu(operator)
    rounds = math.ceil(EVENTS / count)
    paths = [filled(number) for number in range(min(count, EVENTS))]
    for number in range(rounds):
        touch(cluster.admin, paths, str(number))
    _asks_for_a_word(cluster, f"sentinel-{count}-touched")
    _calm(operator)
    took, used = time.monotonic() - began, _cpu(operator) - before
    assert took > 0
    return used / (rounds * len(paths))


def _cost_of_a_pass(cluster: Cluster, agent: psutil.Process, names: list[str]) -> float:
    """CPU seconds of one look at a settled Instance, its event included."""
    paths = [f"{cluster.instances}/{name}" for name in names]
    before = _cpu(agent)
    for number in range(ROUNDS):
        touch(cluster.admin, paths, str(number))
        _calm(agent)
    return (_cpu(agent) - before) / (ROUNDS * len(names))


def _asks_for_a_word(cluster: Cluster, name: str) -> None:
    """Return when the operator has said its word about a new Instance: it leads and it watches."""
    began = time.monotonic()
    cluster.create(name, operatingMode="Stopped")
    cluster.watch.wait(name, ready("Stopped"), after=began, seconds=PATIENCE)
    cluster.delete(name)


def _create(cluster: Cluster, names: list[str]) -> None:
    began = time.monotonic()
    for name in names:
        cluster.create(name, memory={"size": "64Mi"})
    for name in names:
        cluster.watch.wait(name, ready("Running"), after=began, seconds=PATIENCE)


def _delete(cluster: Cluster, names: list[str]) -> None:
    began = time.monotonic()
    for name in names:
        cluster.admin.delete(f"{cluster.instances}/{name}")
    for name in names:
        cluster.watch.wait(name, gone, after=began, seconds=PATIENCE)


def _idle(process: psutil.Process, seconds: float = IDLE_SECONDS) -> Use:
    """What it takes while nobody does anything."""
    before = _cpu(process)
    time.sleep(seconds)
    return Use(process.memory_info().rss, (_cpu(process) - before) * 60 / seconds)


def _calm(process: psutil.Process) -> None:
    """Return when it has worked off what there was: two seconds of next to nothing."""
    deadline = time.monotonic() + PATIENCE
    quiet = 0
    while quiet < 2:
        assert time.monotonic() < deadline, f"{process} does not come to rest"
        before = _cpu(process)
        time.sleep(1)
        quiet = quiet + 1 if _cpu(process) - before < CALM else 0


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
