"""Sleepers get a new base when their delta has outgrown it, and only while they sleep."""

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest

from controller.memory import commit
from controller.memory.manifest import Manifest
from controller.memory.store import MemoryStore
from controller.node import snapshots
from controller.node.parts import Memory
from controller.node.places import Places
from controller.node.rebasing import rebase_sleepers
from controller.node.record import Record, Records, RunRecord
from tests.unit.memory.snapshots import GID, manifest_of, pattern, put, ram_of, read_back
from tests.unit.node.test_record import record

PAGES = 64
OLD = ram_of({page: pattern(page) for page in range(8)}, PAGES)
LITTLE = ram_of({0: pattern(0, 1)} | {page: pattern(page) for page in range(1, 8)}, PAGES)
MUCH = ram_of({page: pattern(page, 1) for page in range(32)}, PAGES)


class Host:
    """The parts that a new base needs, and one Instance that sleeps."""

    def __init__(self, root: Path, now: bytes) -> None:
        self.places = Places(root, root / "run")
        self.places.instances.mkdir()
        self.records = Records(self.places.instances)
        self.snapshots = MemoryStore(
            self.places.memory, lambda: snapshots.references(self.places, self.records)
        )
        self.snapshots.start()
        self.memory = Memory()
        self.memory.alone = defaultdict(asyncio.Lock)
        self.one = self.records.save(record(open=None, disk_generation=4, provisioned=True))
        with self.snapshots.saving() as saving:
            base = put(saving, self.snapshots, OLD)
            delta = put(saving, self.snapshots, now, base)
            made = manifest_of(len(OLD), base, delta, saving.state(b"device", GID))
            commit.commit(self.home, 4, made.model_copy(update={"uid": self.one.uid}))

    @property
    def home(self) -> Path:
        return self.places.instance(self.one.uid)

    @property
    def manifest(self) -> Manifest:
        found = commit.read(self.home, 4)
        assert found is not None
        return found


async def test_delta_that_outgrew_its_base_becomes_a_new_base(tmp_path: Path) -> None:
    host = Host(tmp_path, MUCH)
    old = host.manifest
    assert await rebase_sleepers(host) == (host.one.uid,)  # type: ignore[arg-type]
    assert host.manifest.delta is None
    assert host.manifest.state == old.state
    assert read_back(host.snapshots, host.manifest) == MUCH
    assert host.memory.litter.is_set()
    await snapshots.collect(host)  # type: ignore[arg-type]
    assert not host.snapshots.path(old.base).exists()
    assert await rebase_sleepers(host) == ()  # type: ignore[arg-type]


async def test_small_delta_stays_what_it_is(tmp_path: Path) -> None:
    host = Host(tmp_path, LITTLE)
    before = host.manifest
    assert await rebase_sleepers(host) == ()  # type: ignore[arg-type]
    assert host.manifest == before


@pytest.mark.parametrize("change", [{"open": RunRecord(wakes=4)}, {"disk_generation": 5}])
async def test_wake_cancels_it(tmp_path: Path, change: dict[str, object]) -> None:
    host = Host(tmp_path, MUCH)
    before = host.manifest
    turn = host.memory.alone[host.one.uid]
    await turn.acquire()  # a pass is on it already
    work = asyncio.create_task(rebase_sleepers(host))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    host.records.save(host.one.model_copy(update=change))
    turn.release()
    assert await work == ()
    assert host.manifest == before


def test_reference_of_a_living_vmm_keeps_its_base(tmp_path: Path) -> None:
    host = Host(tmp_path, LITTLE)
    base = host.manifest.base
    woken: Record = host.one.model_copy(update={"open": RunRecord(wakes=4, base=base)})
    host.records.save(woken)
    commit.void(host.home, 4)
    removed = host.snapshots.collect()
    assert host.snapshots.path(base).exists()
    assert len(removed) == 2  # delta and device state
    host.records.save(host.one)
    assert host.snapshots.collect() == (host.snapshots.path(base),)
