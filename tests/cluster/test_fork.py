"""Forks on a whole cluster: real guests that can be told apart, and must be.

Few guests boot; the others are forked from them, which is quick.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator

import pytest

from controller.core.names import machine_id
from tests.localcluster import LocalCluster
from tests.sleepers import Sleepers, journal, sleepers

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="torpor up needs root"),
    pytest.mark.timeout(300),
]

RUNNER, ASLEEP, STOPPED = SOURCES = ("runner", "asleep", "stopped")
MANY, DEPTH = 16, 5


@pytest.fixture(scope="module")
def family(cluster: LocalCluster) -> Iterator[Sleepers]:
    """Three sources at once: one runs, one sleeps, one was stopped after it had run."""
    made = sleepers(cluster)
    for name in SOURCES:
        made.create(name)

    async def settle() -> None:
        await made.until(*SOURCES)
        for name in SOURCES:
            await made.counts_on(name, made.uid(name))
        made.ask(STOPPED, "Stopped")
        await made.until(ASLEEP, mode="Standby")
        await made.until(STOPPED)

    asyncio.run(settle())
    yield made
    asyncio.run(made.leave(*SOURCES))


@pytest.fixture
async def forks(family: Sleepers) -> AsyncIterator[list[str]]:
    """Names of forks that this test made, which go with it."""
    names: list[str] = []
    yield names
    await family.remove(*names)


async def who(family: Sleepers, name: str, uid: str) -> tuple[str, ...]:
    """Hostname, machine-id, a uuid and a digest of random bytes, drawn as who it is now."""
    own = machine_id(uid)

    def mine() -> list[tuple[str, ...]]:
        return [said for said in family.story(uid).of("who") if said[:2] == (name, own)]

    await family.eventually(mine, name)
    return mine()[-1]


async def test_fork_of_a_stopped_source_boots_from_a_copy_of_its_disk(
    family: Sleepers, forks: list[str]
) -> None:
    uid = family.fork("disk", STOPPED)
    forks.append("disk")
    came = journal(family.places.overlay(family.uid(STOPPED)))[-1]
    await family.until("disk")
    await family.counts_on("disk", uid)
    told = family.story(uid)
    assert told.of("start")[0][0] == str(came), "it goes on from what lies on the disk"
    told.check()
    await who(family, "disk", uid)
    assert family.get("disk")["status"]["lineage"]["parent"] == family.uid(STOPPED)
    assert journal(family.places.overlay(family.uid(STOPPED)))[-1] == came


@pytest.mark.parametrize("mode", ["Running", "Paused", "Standby"])
async def test_fork_of_a_sleeper_has_its_memory_and_is_somebody_else(
    family: Sleepers, forks: list[str], mode: str
) -> None:
    source = family.uid(ASLEEP)
    gid, came = family.gid(source), family.story(source).last
    before = family.images_of(gid)
    name = f"of-sleeper-{mode.lower()}"
    uid = family.fork(name, ASLEEP, mode)
    forks.append(name)
    await family.until(name)
    assert family.images_of(gid) == before, "it shares every file"
    status = family.get(name)["status"]
    assert status["resources"] == family.get(ASLEEP)["status"]["resources"]
    lineage = status["lineage"]
    assert (lineage["parent"], lineage["root"], lineage["depth"]) == (source, source, 1)
    assert family.alive(uid) is (mode != "Standby")
    if mode == "Standby":
        assert family.pods(uid) == []
        assert status["snapshot"] == family.get(ASLEEP)["status"]["snapshot"] | {
            "takenAt": status["snapshot"]["takenAt"]
        }
    await family.until(name, mode="Running")
    await family.counts_on(name, uid)
    told = family.story(uid)
    assert told.ticks[0].count == came + 1, "it goes on where its source fell asleep"
    told.check(boots=0)
    assert (await who(family, name, uid))[1] != machine_id(source)
    assert family.settled(ASLEEP)
    assert not family.alive(source)


async def test_fork_of_a_sleeper_that_is_to_be_stopped_keeps_the_disk_only(
    family: Sleepers, forks: list[str]
) -> None:
    source = family.uid(ASLEEP)
    uid = family.fork("at-rest", ASLEEP, "Stopped")
    forks.append("at-rest")
    await family.until("at-rest")
    assert "snapshot" not in family.get("at-rest")["status"]
    assert family.pods(uid) == []
    places = family.places
    assert journal(places.overlay(uid)) == journal(places.overlay(source))
    assert family.get(ASLEEP)["status"]["snapshot"]["bytes"] > 0


async def test_fork_of_a_running_source_pauses_it_and_both_go_on(
    family: Sleepers, forks: list[str]
) -> None:
    source = family.uid(RUNNER)
    run, pods = family.record(source).run, family.pods(source)
    names = ["live-1", "live-2"]
    uids = {name: family.fork(name, RUNNER, from_running=True) for name in names}
    forks += names
    await family.until(*names)
    said = [await family.until_event(uid, name, "Forked") for name, uid in uids.items()]
    paused = [re.search(r"stood still for (\d+\.\d+) s", text) for text in said]
    assert any(paused), said
    print("the source stood still:", [float(each[1]) for each in paused if each])
    for name, uid in uids.items():
        await family.counts_on(name, uid)
        family.story(uid).check(boots=0)
        await who(family, name, uid)
    await family.counts_on(RUNNER, source)
    family.story(source).check()
    assert (family.record(source).run, family.pods(source)) == (run, pods)
    assert family.settled(RUNNER)


async def test_running_source_is_refused_unless_it_may_be_paused(
    family: Sleepers, forks: list[str]
) -> None:
    source = family.uid(RUNNER)
    uid = family.fork("patient", RUNNER)
    forks.append("patient")
    said = await family.until_said("patient", "Ready", "False", "SourceRunning")
    assert "fromRunning: true" in said["message"]
    assert family.said("patient", "Stalled")[0] == "True"
    assert family.settled(RUNNER)
    await family.until(RUNNER, mode="Standby")
    came = family.story(source).last
    await family.until("patient")
    await family.counts_on("patient", uid)
    assert family.story(uid).ticks[0].count == came + 1
    await family.until(RUNNER, mode="Running")
    await family.counts_on(RUNNER, source)
    family.story(source).check()
    family.story(uid).check(boots=0)


async def test_sixteen_forks_of_one_sleeper_at_once_are_sixteen(
    family: Sleepers, forks: list[str]
) -> None:
    uids = {f"many-{n}": family.fork(f"many-{n}", ASLEEP) for n in range(MANY)}
    forks += uids
    await family.until(*uids)
    found = [await who(family, name, uid) for name, uid in uids.items()]
    assert {said[0] for said in found} == set(uids)
    for column in zip(*found, strict=True):
        assert len(set(column)) == MANY, column
    came = family.story(family.uid(ASLEEP)).last
    for name, uid in uids.items():
        await family.counts_on(name, uid)
        family.story(uid).check(boots=0)
        assert family.story(uid).ticks[0].count == came + 1
    assert len({family.record(uid).index for uid in uids.values()}) == MANY
    assert family.settled(ASLEEP)


async def test_forks_of_forks_outlive_what_becomes_of_their_forebears(
    family: Sleepers, forks: list[str]
) -> None:
    """Each of the chain is forked from the one before, which sleeps, wakes or goes then."""
    root = family.uid(ASLEEP)
    parent, uids = ASLEEP, {}
    for depth in range(1, DEPTH + 1):
        name = f"chain-{depth}"
        uids[name] = family.fork(name, parent)
        forks.append(name)
        await family.until(name)
        lineage = family.get(name)["status"]["lineage"]
        assert (lineage["root"], lineage["depth"]) == (root, depth)
        await family.counts_on(name, uids[name])
        await family.until(name, mode="Standby")
        parent = name
    whole = await asyncio.to_thread(family.cluster.torpor, "tree", "chain-3")
    assert all(name in whole.stdout for name in (ASLEEP, *uids))
    oldest, second, *rest = uids
    await family.remove(oldest)
    await family.until(second, mode="Running")
    for name in rest:
        await family.until(name, mode="Running")
        await family.counts_on(name, uids[name])
    await family.until(second, mode="Standby")
    await family.remove(second)
    for name in rest:
        await family.counts_on(name, uids[name])
        family.story(uids[name]).check(boots=0)
        assert await who(family, name, uids[name])
    counts = [family.story(uids[name]).ticks[0].count for name in rest]
    assert counts == sorted(set(counts)), "each began where the one before had come to"


async def test_fork_made_while_its_source_goes_does_not_notice(
    family: Sleepers, forks: list[str]
) -> None:
    first = family.fork("parent", ASLEEP, "Standby")
    forks.append("parent")
    await family.until("parent")
    uid = family.fork("orphan", "parent", "Standby")
    forks.append("orphan")
    await family.until("orphan")
    spec = family.get("orphan")["spec"]
    await family.remove("parent")
    assert not family.places.instance(first).exists()
    family.admin.patch(family.path("orphan"), {"spec": spec})  # the same manifest again
    await family.until("orphan", mode="Running")
    await family.counts_on("orphan", uid)
    family.story(uid).check(boots=0)
    assert family.get("orphan")["status"]["lineage"]["parent"] == first


@pytest.mark.parametrize(
    "given", [{"command": ["/bin/false"]}, {"env": [{"name": "A", "value": "b"}]}], ids=str
)
async def test_workload_of_inherited_memory_cannot_be_chosen(
    family: Sleepers, forks: list[str], given: dict[str, object]
) -> None:
    forks.append("chooser")
    uid = family.fork("chooser", ASLEEP, **given)
    said = await family.until_said("chooser", "Ready", "False", "WorkloadInherited")
    assert "recreate it without them" in said["message"]
    assert family.said("chooser", "Stalled")[0] == "True"
    assert not family.alive(uid)
    await family.remove("chooser")
