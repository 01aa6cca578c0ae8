"""Forks and the life of their source: deleted, moving, gone and back; many at once, and deep.

VMMs are hollow and count. A fork begins no earlier than its source was, and is nobody else; a
source notices nothing of its forks, nor they of it.
"""

import asyncio
import json
import random
import signal
import uuid
from collections.abc import AsyncIterator

import pytest

from controller.core.names import machine_id
from controller.memory import commit
from controller.node.record import Record
from tests.agentkit import Rig, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.witness import Witness, strays

A, F = "a", "f"
SWEEP_SECONDS = 0.3
MANY = 16


@pytest.fixture
async def rig(zygote: Zygote) -> AsyncIterator[Rig]:
    """Guests that count, and a node that looks for litter all the time."""
    async with make_rig(zygote, orphan_sweep_seconds=SWEEP_SECONDS) as made:
        made.site.order_all("tick=on")
        yield made


async def settled(rig: Rig, *names: str, seconds: float = 90) -> None:
    """All are what they are asked to be."""
    await eventually(
        lambda: all(map(rig.world.settled, names)),
        lambda: [rig.world.get(name)["status"] for name in names],
        seconds,
    )


async def gone(rig: Rig, *names: str) -> None:
    """Delete all at once; nothing of them is left."""
    there = [name for name in names if rig.world.exists(name)]
    for name in there:
        rig.world.delete(name)
    for name in there:
        await rig.world.until_gone(name)
    await eventually(lambda: rig.left() == [], rig.left)


async def tidy(rig: Rig) -> None:
    """Nothing lies there that nobody needs, and all that somebody does."""
    await eventually(lambda: not strays(rig), lambda: "\n".join(strays(rig)))


def identity(rig: Rig, uid: str) -> dict[str, str]:
    """Who a guest thinks it is."""
    found: dict[str, str] = json.loads(rig.site.ask(uid, "identity"))
    return found


def bases(rig: Rig) -> set[str]:
    """The bases in the store."""
    return {path.name for path in rig.site.places.memory.glob("[0-9]*/base-*")}


# --- the source goes, or moves --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Stopped", "Standby", "Running"])
async def test_source_deleted_during_a_fork_leaves_a_whole_fork_or_says_that_it_is_gone(
    rig: Rig, mode: str
) -> None:
    rig.restart()
    ends = set()
    memory = ("disk.copy.before", "memory.commit.before") if mode != "Stopped" else ()
    for point in ("step.CreateRecord.before", "step.TakeFork.before", *memory,
                  "step.TakeFork.after"):  # fmt: skip
        uid = await rig.run(A)
        await rig.world.until(A, mode)
        witness = Witness(rig)
        witness.look(uid)
        await rig.site.agent.kill()
        agent = rig.restart(f"{point}=stop")
        fork = rig.world.fork(F, A, running=True)
        witness.born(fork, uid, memory=mode != "Stopped")
        await agent.stands()
        rig.world.delete(A)
        agent.signal(signal.SIGCONT)
        await rig.world.until_gone(A)
        await eventually(
            lambda: rig.world.settled(F) or rig.world.ready(F)["reason"] == "SourceGone",
            lambda: rig.world.get(F)["status"],
        )
        ends.add(rig.world.ready(F)["reason"])
        if rig.world.settled(F):
            assert rig.site.starts(fork) == (mode == "Stopped")
            witness.look(fork)
            await rig.world.until(F, "Standby")
            await rig.world.until(F, "Running")
            witness.look(fork)
        await tidy(rig)
        await gone(rig, F)
    assert "Running" in ends


@pytest.mark.parametrize(
    ("modes", "boots"),
    [
        (("Running", "Standby"), {0}),  # falls asleep
        (("Standby", "Running"), {0}),  # wakes
        (("Running", "Stopped"), {0, 1}),  # memory if it came in time, else the disk
        (("Stopped", "Running"), {0, 1}),
    ],
)
async def test_fork_of_a_source_that_is_on_its_way_takes_it_before_or_after(
    rig: Rig, modes: tuple[str, str], boots: set[int]
) -> None:
    rig.restart()
    chance = random.Random("-".join(modes))
    for _ in range(3):
        uid = await rig.run(
            A
        )  # its first sleep, each time: it gets its family then, or by the fork
        await rig.world.until(A, modes[0])
        witness = Witness(rig)
        witness.look(uid)
        rig.world.ask(A, modes[1])
        await asyncio.sleep(chance.uniform(0, 0.08))
        fork = rig.world.fork(F, A, running=True)
        witness.born(fork, uid, memory="Stopped" not in modes)
        await settled(rig, A, F)
        assert rig.site.starts(fork) in boots
        for mode in ("Standby", "Running"):
            rig.world.ask(A, mode)
            rig.world.ask(F, mode)
            await settled(rig, A, F)
            witness.look(uid)
            witness.look(fork)
        assert identity(rig, fork)["machine_id"] == machine_id(fork)
        await tidy(rig)
        await gone(rig, A, F)


async def test_fork_is_of_the_source_it_was_placed_with_and_never_of_its_namesake(
    rig: Rig,
) -> None:
    rig.restart()
    first = await rig.run(A)
    early = rig.world.fork("early", A, "Standby", running=True)
    await settled(rig, "early")
    rig.world.fork("late", A)  # refused: its source runs
    ready = await rig.world.until_reason("late", "SourceRunning")
    assert "fromRunning" in ready["message"]
    await rig.world.until_gone(A)
    second = await rig.run(A)
    await rig.world.until(A, "Standby")
    assert first != second
    assert (await rig.world.until_reason("late", "SourceGone"))["status"] == "False"
    assert rig.world.get("late")["status"]["lineage"]["parent"] == first
    await rig.world.until("early", "Running")
    assert rig.site.starts(early) == 0
    newest = rig.world.fork("newest", A)
    await settled(rig, "newest")
    assert rig.site.record(newest).lineage.parent == second  # type: ignore[union-attr]
    await tidy(rig)
    await gone(rig, A, "early", "late", "newest")


async def test_fork_of_a_source_of_another_node_is_made_nowhere(rig: Rig) -> None:
    """Placement puts it beside its source; an object that says otherwise gets nothing here."""
    rig.restart()
    uid = await rig.run(A)
    elsewhere = str(uuid.uuid4())
    fork = rig.world.fork(F, "nobody")
    status = rig.world.get(A)["status"]
    rig.world.status(
        F, id="0" * 24, nodeName=status["nodeName"], epoch=1, resources=status["resources"],
        lineage={"parent": elsewhere, "root": elsewhere, "depth": 1},
    )  # fmt: skip
    ready = await rig.world.until_reason(F, "SourceGone")
    assert elsewhere in ready["message"]
    assert not rig.site.places.instance(fork).exists()
    assert rig.world.condition(F, "Stalled")["status"] == "True"
    assert rig.site.vmm(uid) is not None
    await gone(rig, A, F)


# --- many, and deep -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Standby", "Running"])
async def test_many_forks_at_once_share_one_image_and_are_all_somebody_else(
    rig: Rig, mode: str
) -> None:
    rig.restart()
    uid = await rig.run(A)
    witness = Witness(rig)
    await rig.world.until(A, mode)
    witness.look(uid)
    vmm, names = rig.site.vmm(uid), [f"f{n}" for n in range(MANY)]
    uids = [rig.world.fork(name, A, running=mode == "Running") for name in names]
    for fork in uids:
        witness.born(fork, uid, memory=True)
    await settled(rig, A, *names)
    # one; of a living source more, where the machine has no time to see them as asked for at once
    assert len(bases(rig)) <= (1 if mode == "Standby" else MANY // 4)
    print(f"{len(bases(rig))} bases for {MANY} forks")
    told = [identity(rig, fork) for fork in uids]
    for key in ("machine_id", "hostname", "urandom"):
        assert len({each[key] for each in told}) == MANY, key
    assert [each["hostname"] for each in told] == names
    for fork in (*uids, uid):
        witness.look(fork)
    assert {rig.site.starts(fork) for fork in uids} == {0}
    assert (rig.site.starts(uid), rig.site.vmm(uid)) == (1, vmm)
    await rig.world.until(A, "Standby" if mode == "Running" else "Running")
    witness.look(uid)
    await tidy(rig)
    await gone(rig, A, *names)


async def test_forks_of_forks_are_a_family_that_outlives_its_middle(rig: Rig) -> None:
    rig.restart()
    uids = {"f0": await rig.run("f0")}
    witness = Witness(rig)
    for depth in range(1, 6):
        source, name = f"f{depth - 1}", f"f{depth}"
        living = depth % 2 == 0
        await rig.world.until(source, "Running" if living else "Standby")
        witness.look(uids[source])
        uids[name] = rig.world.fork(name, source, running=living)
        witness.born(uids[name], uids[source], memory=True)
        await settled(rig, source, name)
        witness.look(uids[name])
        lineage = rig.site.record(uids[name]).lineage
        assert lineage is not None
        assert (lineage.parent, lineage.root, lineage.depth) == (
            uids[source], uids["f0"], depth,
        )  # fmt: skip
    gids = {rig.site.record(uid).lineage.gid for uid in uids.values()}  # type: ignore[union-attr]
    assert len(gids) == 1
    for name in ("f1", "f3", "f0"):
        await rig.world.until_gone(name)
    left = ("f2", "f4", "f5")
    for mode in ("Standby", "Running"):
        for name in left:
            rig.world.ask(name, mode)
        await settled(rig, *left)
        await tidy(rig)
    for name in left:
        witness.look(uids[name])
        assert identity(rig, uids[name])["machine_id"] == machine_id(uids[name])
    assert {rig.site.starts(uids[name]) for name in left} == {0}
    await gone(rig, *left)


async def test_forks_notice_nothing_of_what_becomes_of_their_source(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    witness = Witness(rig)
    await rig.world.until(A, "Standby")
    witness.look(uid)
    forks = {"awake": "Running", "asleep": "Standby", "paused": "Paused"}
    uids = {name: rig.world.fork(name, A, mode) for name, mode in forks.items()}
    for fork in uids.values():
        witness.born(fork, uid, memory=True)
    await settled(rig, *forks)

    def versions() -> list[tuple[object, object, Record]]:
        return [
            (rig.world.get(name)["metadata"]["resourceVersion"], rig.site.vmm(fork),
             rig.site.record(fork))
            for name, fork in uids.items()
        ]  # fmt: skip

    before, snapshot = versions(), commit.read(rig.site.places.instance(uids["asleep"]), 1)
    for mode in ("Running", "Standby", "Paused", "Running", "Standby", "Stopped", "Running"):
        await rig.world.until(A, mode)
        witness.look(uids["awake"])
        await tidy(rig)
    witness.look(uid)
    await rig.world.until_gone(A)
    await tidy(rig)
    assert versions() == before
    assert commit.read(rig.site.places.instance(uids["asleep"]), 1) == snapshot
    for name, fork in uids.items():
        await rig.world.until(name, "Running")
        witness.look(fork)
        assert rig.site.starts(fork) == 0
    await tidy(rig)
    await gone(rig, *forks)
