"""Standby on a whole cluster: real guests, agent, operator, scheduler and API server.

A few guests go through many sleeps, because booting one is what takes long.
"""

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from tests.localcluster import LocalCluster
from tests.sleepers import Sleepers, journal, sleepers

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="torpor up needs root"),
    pytest.mark.timeout(300),
]

WALKER, WARM, ZEROER, LEAVER = NAMES = ("walker", "warm", "zeroer", "leaver")
MIB = 1 << 20


@pytest.fixture(scope="module")
def cast(cluster: LocalCluster) -> Iterator[Sleepers]:
    """All guests at once: they boot side by side."""
    made = sleepers(cluster)
    made.create(WALKER)
    made.create(WARM, "Standby")
    made.create(ZEROER, memory="192Mi", env=[{"name": "BIG_MIB", "value": "64"}])
    made.create(LEAVER)
    yield made
    asyncio.run(made.leave(*NAMES))


@pytest.fixture
async def walker(cast: Sleepers) -> str:
    """The UID of a guest that runs, as every test leaves it."""
    await cast.until(WALKER, mode="Running")
    uid = cast.uid(WALKER)
    await cast.counts_on(WALKER, uid)
    return uid


@pytest.mark.parametrize(
    "way",
    [("Standby", "Running"), ("Standby", "Paused", "Standby", "Running"), ("Paused", "Standby")],
    ids="-".join,
)
async def test_counter_goes_on_without_gap_or_repeat(
    cast: Sleepers, walker: str, way: tuple[str, ...]
) -> None:
    run = cast.record(walker).run
    for mode in (*way, "Running"):
        await cast.until(WALKER, mode=mode)
    await cast.counts_on(WALKER, walker)
    cast.story(walker).check()
    assert cast.record(walker).run > run


async def test_woken_guest_that_stays_paused_says_nothing_until_it_runs(
    cast: Sleepers, walker: str
) -> None:
    await cast.until(WALKER, mode="Standby")
    asleep = cast.story(walker).last
    await cast.until(WALKER, mode="Paused")
    assert cast.alive(walker)
    assert cast.get(WALKER)["status"]["snapshot"]["bytes"] > 0, "it is not used up yet"
    assert cast.story(walker).last == asleep
    await cast.until(WALKER, mode="Running")
    assert await cast.counts_on(WALKER, walker) > asleep
    assert "snapshot" not in cast.get(WALKER)["status"]


async def test_clock_is_right_within_a_second_of_the_wake(cast: Sleepers, walker: str) -> None:
    await cast.until(WALKER, mode="Standby")
    asleep = cast.story(walker).last
    await asyncio.sleep(3)  # the clock has to have something to be wrong by
    await cast.until(WALKER, mode="Running")
    before, after = time.time(), 0.0
    while not (ticks := [t for t in cast.story(walker).ticks if t.count > asleep + 2]):
        before = time.time()
        await asyncio.sleep(0.01)
    after = time.time()
    assert before - 1 < ticks[-1].time < after + 1


async def test_sleeper_costs_disk_only_and_says_how_much(cast: Sleepers, walker: str) -> None:
    (pod,) = cast.pods(walker)
    await cast.until(WALKER, mode="Standby")
    assert not cast.alive(walker)
    await cast.eventually(lambda: cast.pods(walker) == [], WALKER)
    assert cast.said(WALKER, "Scheduled") == ("False", "Released")
    status = cast.get(WALKER)["status"]
    assert "hypervisor" not in status
    assert "exit" not in status
    assert not cast.places.run_of(cast.record(walker)).exists()

    shown, gid = status["snapshot"], cast.gid(walker)
    roles = ["base", "delta", "state"]  # what it slept in before is removed soon
    await cast.eventually(
        lambda: sorted(name.partition("-")[0] for name in cast.images_of(gid)) == roles, WALKER
    )
    on_disk = {
        path.name.partition("-")[0]: path.stat().st_blocks * 512
        for path in (cast.places.memory / str(gid)).iterdir()
    }
    assert shown["baseBytes"] == on_disk["base"] > MIB
    assert shown["deltaBytes"] == on_disk["delta"]
    assert shown["bytes"] == sum(on_disk.values())
    assert shown["hypervisor"].startswith("qemu ")
    row = cast.cluster.kubectl("get", "inst", WALKER, "-o", "wide").stdout.splitlines()[1].split()
    assert row[:4] == [WALKER, "Standby", "Standby", "True"]
    assert row[-1] == shown["size"]
    verified = await asyncio.to_thread(cast.cluster.torpor, "verify", WALKER)
    assert [line.split()[0] for line in verified.stdout.splitlines()] == ["OK"] * len(on_disk)

    await cast.until(WALKER, mode="Running")
    (again,) = cast.pods(walker)
    assert again["metadata"]["uid"] != pod["metadata"]["uid"]
    assert again["spec"]["nodeName"] == status["nodeName"]
    for reason in ("SnapshotStarted", "SnapshotSucceeded", "StandbyReached", "Restoring"):
        await cast.until_event(walker, WALKER, reason)
    await cast.until_event(walker, WALKER, "Restored")


async def test_instance_created_asleep_boots_first_and_wakes_at_once(cast: Sleepers) -> None:
    await cast.until(WARM)
    uid = cast.uid(WARM)
    assert not cast.alive(uid)
    assert cast.pods(uid) == []
    assert cast.get(WARM)["spec"]["operatingMode"] == "Standby"
    await cast.until(WARM, mode="Running")
    await cast.counts_on(WARM, uid)
    cast.story(uid).check(boots=1)


async def test_memory_that_the_guest_zeroed_between_two_sleeps_is_zero(cast: Sleepers) -> None:
    await cast.until(ZEROER)
    uid = cast.uid(ZEROER)
    await cast.counts_on(ZEROER, uid)
    for said in ("zeroed", "zero"):
        await cast.until(ZEROER, mode="Standby")
        await asyncio.sleep(0.5)  # the guest tells a wake by its wall clock
        await cast.until(ZEROER, mode="Running")
        await cast.eventually(lambda said=said: cast.story(uid).of(said), ZEROER)
    assert cast.story(uid).of("zeroed") == [(str(64 * MIB),)]
    assert cast.story(uid).of("zero") == [("2", "True")]
    cast.story(uid).check()
    # it has shown all it can
    await cast.remove(ZEROER)
    cast.create(ZEROER, "Stopped")


async def test_stopping_a_sleeper_throws_its_memory_away_and_says_so(
    cast: Sleepers, walker: str
) -> None:
    await cast.until(WALKER, mode="Standby")
    asleep, gid = cast.story(walker), cast.gid(walker)
    await cast.until(WALKER, mode="Stopped")
    assert "snapshot" not in cast.get(WALKER)["status"]
    await cast.until_event(walker, WALKER, "SnapshotDiscarded")
    await cast.eventually(lambda: cast.images_of(gid) == set(), WALKER)
    assert journal(cast.places.overlay(walker)) == list(range(1, asleep.last + 1))

    await cast.until(WALKER, mode="Standby")  # from Stopped: it boots, then sleeps
    assert cast.pods(walker) == []
    await cast.until(WALKER, mode="Running")
    await cast.counts_on(WALKER, walker)
    cast.story(walker).check(boots=2)


async def test_drained_guest_sleeps_and_wakes_when_the_node_is_back(cast: Sleepers) -> None:
    await cast.until(LEAVER)
    uid = cast.uid(LEAVER)
    await cast.counts_on(LEAVER, uid)
    kubectl = cast.cluster.kubectl
    (pod,) = cast.pods(uid)
    node = pod["spec"]["nodeName"]
    kubectl("cordon", node)
    try:
        place = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}/eviction"
        about = {"name": pod["metadata"]["name"], "namespace": "default"}
        cast.admin.create(place, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about})
        await cast.eventually(lambda: cast.get(LEAVER)["status"]["state"] == "Standby", LEAVER)
        asleep = cast.story(uid).last
        said = await cast.until_said(LEAVER, "Scheduled", "False", "Unschedulable")
        assert "unschedulable" in said["message"]
        assert cast.get(LEAVER)["status"]["snapshot"]["bytes"] > 0
        assert cast.said(LEAVER, "Ready")[0] == "False"
        assert not cast.alive(uid)
    finally:
        kubectl("uncordon", node)
    await cast.until(LEAVER)
    assert await cast.counts_on(LEAVER, uid) > asleep
    cast.story(uid).check()


async def test_full_node_says_so_and_the_sleeper_wakes_when_there_is_room(
    cast: Sleepers, walker: str
) -> None:
    await cast.until(WALKER, mode="Standby")
    node = cast.get(WALKER)["status"]["nodeName"]
    free = int(cast.admin.get(f"/api/v1/nodes/{node}")["status"]["allocatable"]["memory"])
    blocker = {
        "metadata": {"name": "blocker"},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "blocker",
                    "image": "none:1",
                    "resources": {"requests": {"memory": str(free - 16 * MIB)}},
                }
            ],
        },
    }
    cast.admin.create("/api/v1/namespaces/default/pods", blocker)
    try:
        cast.ask(WALKER, "Running")
        said = await cast.until_said(WALKER, "Scheduled", "False", "Unschedulable")
        assert "Insufficient memory" in said["message"]
        status = cast.get(WALKER)["status"]
        assert status["state"] == "Standby"
        assert status["snapshot"]["bytes"] > 0
    finally:
        cast.admin.delete("/api/v1/namespaces/default/pods/blocker?gracePeriodSeconds=0")
    await cast.until(WALKER)
    await cast.counts_on(WALKER, walker)


async def test_what_is_deleted_asleep_leaves_nothing(cast: Sleepers) -> None:
    await cast.until(WARM, mode="Standby")
    uid = cast.uid(WARM)
    gid = cast.gid(uid)
    assert cast.images_of(gid)
    await cast.remove(WARM)
    assert not cast.places.instance(uid).exists()
    await cast.eventually(lambda: cast.images_of(gid) == set(), WARM)
    assert cast.pods(uid) == []
