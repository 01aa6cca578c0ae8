"""Random histories: many writers, deletions and faults at any moment, each with its own proof.

``test_..._serial_order``: what was ever said of each Instance is explained by some legal order of
what was asked (``history``), no memory is lost, and the newest wish wins. ``test_..._never_back``:
whatever breaks, no guest of a family goes back, in RAM or on disk. Seeded; VMMs are hollow.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from controller.host import failpoint
from controller.kube.client import Client
from controller.kube.resources import INSTANCES
from tests.agentkit import NAMESPACE, Rig, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.history import Read, Write, explained
from tests.chaos.witness import Witness, strays
from tests.fake_apiserver import Watcher

SWEEP_SECONDS = 0.5
LANES, EDITS = 12, 15  # Instances at once, edits by each of two writers
MET = 1000  # edits that are to meet an Instance on its way
MODES = ("Standby", "Running", "Standby", "Running", "Paused")
PAUSE_SECONDS = 0.5  # at most, between two edits of one writer


@pytest.fixture
async def rig(zygote: Zygote) -> AsyncIterator[Rig]:
    """Guests that count, and a node that looks for litter all the time."""
    async with make_rig(zygote, orphan_sweep_seconds=SWEEP_SECONDS) as made:
        made.site.order_all("tick=on")
        made.restart()
        yield made


# --- the checker itself ---------------------------------------------------------------------------

ONE_AFTER_THE_OTHER = (Write("Running", 0, 1), Write("Standby", 2, 3), Write("Running", 4, 5))


def reads(*said: tuple[str, float]) -> tuple[Read, ...]:
    return tuple(Read(value, at) for value, at in said)


def test_checker_takes_what_is_late_and_what_nobody_saw() -> None:
    late = reads(("Running", 2.5), ("Standby", 6), ("Running", 7))
    assert explained(ONE_AFTER_THE_OTHER, late) == ONE_AFTER_THE_OTHER
    assert explained(ONE_AFTER_THE_OTHER, reads(("Running", 9))) is not None
    at_once = (Write("Running", 0, 5), Write("Standby", 0, 5))
    for newest in ("Running", "Standby"):
        order = explained(at_once, reads((newest, 9)))
        assert order is not None
        assert order[-1].value == newest


@pytest.mark.parametrize(
    "said",
    [
        (("Running", 1), ("Standby", 9)),  # the newest never came
        (("Standby", 1.5), ("Running", 9)),  # before anybody asked
        (("Running", 1), ("Standby", 3), ("Running", 6), ("Standby", 7), ("Running", 8)),  # back
        (("Paused", 1), ("Running", 9)),  # nobody asked
    ],
)
def test_checker_refuses_what_no_order_explains(said: tuple[tuple[str, float], ...]) -> None:
    assert explained(ONE_AFTER_THE_OTHER, reads(*said)) is None


# --- two writers, and deletion --------------------------------------------------------------------


@dataclass
class Seen(Watcher):
    """Everything that was ever stored of Instances, by UID, and when."""

    stored: dict[str, list[tuple[float, dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        super().__init__("instances", lambda obj: True)

    def send(self, data: bytes) -> None:
        event = json.loads(data)
        obj = event["object"]
        self.stored[obj["metadata"]["uid"]].append((time.monotonic(), obj))

    def reads(self, uid: str) -> tuple[Read, ...]:
        """Each time Ready came to say that a mode is reached; deletion is no mode."""
        found: dict[tuple[str, int], Read] = {}
        for at, obj in self.stored[uid]:
            ready = next(c for c in obj["status"]["conditions"] if c["type"] == "Ready")
            if ready["status"] == "True":
                what = (ready["reason"], ready["observedGeneration"])
                found.setdefault(what, Read(ready["reason"], at))
        return tuple(found.values())

    def check_generations(self, uid: str) -> None:
        """Whoever says that generation N is reached says the mode that N asked for."""
        asked = {}
        for _, obj in self.stored[uid]:
            asked[obj["metadata"]["generation"]] = obj["spec"]["operatingMode"]
            ready = next(c for c in obj["status"]["conditions"] if c["type"] == "Ready")
            if ready["status"] == "True":
                assert (
                    asked[ready["observedGeneration"]] == ready["reason"] == obj["status"]["state"]
                )


@dataclass
class Lane:
    """One name, under which Instances live one after the other."""

    rig: Rig
    client: Client
    seen: Seen
    name: str
    chance: random.Random
    lives: int = 0
    interleaved: int = 0  # edits that met an Instance on its way

    async def live(self) -> None:
        """One Instance from its creation to its end, with two writers; then the proof."""
        self.lives += 1
        first = Write("Running", time.monotonic(), time.monotonic())
        uid = self.rig.world.create(self.name, restartPolicy="Never")
        early = self.chance.random() < 1 / 3
        writers = [asyncio.create_task(self._write()) for _ in range(2)]
        if early:
            await asyncio.sleep(self.chance.uniform(0.5, EDITS * PAUSE_SECONDS / 3))
            await self.rig.world.until_gone(self.name)
            for task in writers:
                task.cancel()
        written = await asyncio.gather(*writers, return_exceptions=True)
        writes = [first, *(each for part in written if isinstance(part, list) for each in part)]
        if not early:
            await self._is_as_the_newest_asked(uid, writes)
            await self.rig.world.until_gone(self.name)
        self.seen.check_generations(uid)

    async def _write(self) -> list[Write]:
        written = []
        for _ in range(EDITS):
            await asyncio.sleep(self.chance.uniform(0, PAUSE_SECONDS))
            mode, begun = self.chance.choice(MODES), time.monotonic()
            if not self.rig.world.exists(self.name):
                break
            self.interleaved += not self.rig.world.settled(self.name)
            body = {"spec": {"operatingMode": mode}}
            with contextlib.suppress(Exception):  # it is being deleted
                await self.client.patch(INSTANCES, self.name, body, namespace=NAMESPACE)
                written.append(Write(mode, begun, time.monotonic()))
        return written

    async def _is_as_the_newest_asked(self, uid: str, writes: list[Write]) -> None:
        world = self.rig.world
        await world.until(self.name, seconds=120)
        now = Read(str(world.ready(self.name)["reason"]), time.monotonic())
        reads = (*self.seen.reads(uid), now)
        order = explained(writes, reads)
        assert order is not None, f"{self.name}: {writes} do not explain {reads}"
        assert world.get(self.name)["spec"]["operatingMode"] == reads[-1].value
        assert self.rig.site.starts(uid) == 1, "a promised memory was lost"
        Witness(self.rig).look(uid)
        assert self.rig.site.record(uid).restarts == 0


@pytest.mark.timeout(240)
async def test_a_thousand_edits_at_any_moment_have_a_serial_order(rig: Rig) -> None:
    seen = Seen()
    rig.world.server.watchers.append(seen)
    client = await Client.connect(rig.site.kubeconfig, user_agent="writers")
    lanes = [Lane(rig, client, seen, f"i{n}", random.Random(n)) for n in range(LANES)]

    async def fill(lane: Lane) -> None:
        while sum(each.interleaved for each in lanes) < MET:
            await lane.live()

    began = time.monotonic()
    try:
        await asyncio.gather(*map(fill, lanes))
    finally:
        await client.close()
        rig.world.server.watchers.remove(seen)
    met = sum(lane.interleaved for lane in lanes)
    print(f"{met} edits met an Instance on its way, in {time.monotonic() - began:.0f} s")
    assert sum(lane.lives for lane in lanes) > LANES
    await eventually(lambda: rig.left() == [], rig.left)


# --- faults ---------------------------------------------------------------------------------------

A = "a"
ROUNDS, EACH = 25, 4  # operations: the product
FORKS = 4
POINTS = tuple(p for p in failpoint.registered() if p.startswith(("step.", "memory.", "disk.")))


class Family:
    """One Instance and its forks, and somebody who wishes and breaks at random."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.chance, self.witness = rig, random.Random(seed), Witness(rig)
        self.uids: dict[str, str] = {}
        self.made = self.rounds = 0
        self.said: list[str] = []

    async def begin(self) -> None:
        self.uids[A] = await self.rig.run(A, restartPolicy="OnFailure")

    async def round(self) -> None:
        """Some operations at once, a fault in the middle, and a look at everybody afterwards."""
        for uid in self.uids.values():
            self.witness.look(uid)
        busy: set[str] = set()
        for _ in range(EACH):
            self._operate(busy)
            await asyncio.sleep(self.chance.uniform(0, 0.03))
        await self._break()
        await self._recover()
        for uid in self.uids.values():
            self.witness.look(uid)

    def _operate(self, busy: set[str]) -> None:
        world, idle = self.rig.world, sorted(self.uids.keys() - busy)
        word = self.chance.choices(("ask", "fork", "delete"), (6, 2, 1))[0]
        if word == "fork" and len(self.uids) <= FORKS:
            source = self.chance.choice(sorted(self.uids))
            self.made += 1
            name, mode = f"f{self.made}", self.chance.choice(("Running", "Standby", "Running"))
            uid = world.fork(name, source, mode, running=True, restartPolicy="OnFailure")
            if self.uids[source] in self.witness.seen:
                self.witness.born(uid, self.uids[source], memory=False)
            self.uids[name] = uid
            busy |= {source, name}
            self.said.append(f"{name} from {source}, {mode}")
        elif word == "delete" and (children := [name for name in idle if name != A]):
            name = self.chance.choice(children)
            world.delete(name)
            self.uids.pop(name)
            self.said.append(f"delete {name}")
        else:
            name = self.chance.choice(idle or sorted(self.uids))
            mode = self.chance.choices(("Standby", "Running", "Paused", "Stopped"), (4, 4, 2, 1))[0]
            world.ask(name, mode)
            self.said.append(f"{name} {mode}")

    async def _break(self) -> None:
        rig, chance = self.rig, self.chance
        await asyncio.sleep(chance.uniform(0, 0.25))
        kind = chance.choice(("nothing", "agent", "point", "vmm", "vmm", "host", "api"))
        self.said.append(kind)
        if kind in ("agent", "host"):
            await (rig.site.reboot() if kind == "host" else rig.site.agent.kill())
            rig.restart()
        elif kind == "point":
            point = chance.choice(POINTS)
            self.said.append(point)
            await rig.site.agent.kill()
            rig.restart(f"{point}=kill")
        elif kind == "vmm" and (living := sorted(rig.site.vmms().items())):
            uid, pids = chance.choice(living)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not set(pids) & set(rig.site.vmms().get(uid, ())))
        elif kind == "api":
            await rig.world.server.stop()
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            await rig.world.server.start()

    async def _recover(self) -> None:
        rig = self.rig
        self.rounds += 1
        for name in self.uids:  # so that what is said from now on was looked at after the fault
            rig.world.edit(name, stopTimeoutSeconds=2 + self.rounds % 2)

        def rests() -> bool:
            if rig.site.agent.dead:
                rig.restart()
            for name in [n for n in self.uids if rig.world.ready(n).get("reason") == "SourceGone"]:
                rig.world.delete(name)  # its source was deleted before it had what it needs
                self.uids.pop(name)
            return all(map(rig.world.settled, self.uids))

        await eventually(
            rests,
            lambda: ([rig.world.get(name) for name in self.uids], self.said[-12:]),
            120,
        )


async def test_guests_of_a_family_never_go_back_whatever_breaks(rig: Rig) -> None:
    family = Family(rig, seed=4)
    await family.begin()
    try:
        for _ in range(ROUNDS):
            await family.round()
    except AssertionError as err:
        err.add_note("; ".join(family.said))
        raise
    await rig.site.agent.kill()  # its crash point may still lie ahead
    rig.restart()
    await eventually(lambda: not strays(rig), lambda: "\n".join(strays(rig)), 90)
    for name in list(rig.world.server.objects["instances"]):
        await rig.world.until_gone(name[1])
    await eventually(lambda: rig.left() == [], rig.left, 90)
