"""Who is an orphan: absent from two full lists of the right cluster, some time apart. Or nobody."""

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from controller.core.desired import Desired, Mode
from controller.core.observed import Unknown
from controller.errors import Bug, Retry, TorporError
from controller.host import runlock
from controller.kube.resources import NAMESPACES
from controller.memory.store import MemoryStore
from controller.node import clock, snapshots
from controller.node.places import Places
from controller.node.record import NAME, Record, Records
from controller.node.sweep import Sweep
from tests.unit.node.test_record import record

PERIOD = 60.0


class Cluster:
    """What an API server would say."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.identity = "cluster-1"
        self.error: TorporError | None = None

    async def list(self, resource: object) -> tuple[list[dict[str, Any]], str]:
        if self.error:
            raise self.error
        return [{"metadata": {"uid": uid}} for uid in self.uids], "1"

    async def get(self, resource: object, name: str) -> dict[str, Any] | None:
        assert (resource, name) == (NAMESPACES, "kube-system")
        return {"metadata": {"uid": self.identity}}


class Images:
    """Remember what they were told to keep."""

    def __init__(self) -> None:
        self.kept: list[set[str]] = []

    async def collect(self, needed: set[str]) -> tuple[str, ...]:
        self.kept.append(needed)
        return ()


class Kernels:
    """Keep everything."""

    def collect(self, needed: set[str]) -> list[str]:
        return []


class Settings:
    orphan_sweep_seconds = PERIOD


class Host:
    """Parts and worker of a sweep, made of values; ``reaped`` is who was taken down."""

    settings = Settings()
    cluster = "cluster-1"

    def __init__(self, root: Path) -> None:
        self.places = Places(root, root / "run")
        self.places.instances.mkdir()
        self.client = Cluster()
        self.images, self.kernels = Images(), Kernels()
        self.reaped: list[Desired] = []
        self.load()

    def load(self) -> None:
        self.records = Records(self.places.instances)
        self.records.load()
        self.snapshots = MemoryStore(
            self.places.memory, lambda: snapshots.references(self.places, self.records)
        )
        self.snapshots.start()

    def put(self, one: Record) -> str:
        self.records.save(one)
        return one.uid

    async def reap(self, desired: Desired) -> bool:
        self.reaped.append(desired)
        return True


class Time:
    """A boot clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "now", made.now)
    return made


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def walk(host: Host) -> Sweep:
    return Sweep(host, host)  # type: ignore[arg-type]


async def test_instance_that_two_lists_miss_is_taken_down_as_gone(
    host: Host, walk: Sweep, time: Time
) -> None:
    uid, kept = host.put(record()), host.put(record())
    host.client.uids = [kept]
    assert await walk.once() == ()
    time.seconds += PERIOD
    assert await walk.once() == (uid,)
    (gone,) = host.reaped
    assert (gone.uid, gone.mode) == (uid, Mode.GONE)


async def test_two_lists_at_once_prove_nothing(host: Host, walk: Sweep, time: Time) -> None:
    host.put(record())
    for _ in range(5):
        assert await walk.once() == ()
        time.seconds += PERIOD / 10
    assert host.reaped == []


async def test_instance_that_is_listed_again_is_no_suspect_any_more(
    host: Host, walk: Sweep, time: Time
) -> None:
    uid = host.put(record())
    for _ in range(5):
        host.client.uids = []
        assert await walk.once() == ()
        time.seconds += PERIOD / 2
        host.client.uids = [uid]
        await walk.once()
        time.seconds += PERIOD / 2
    assert host.reaped == []


async def test_list_that_failed_proves_nothing_and_starts_no_count(
    host: Host, walk: Sweep, time: Time
) -> None:
    host.put(record())
    await walk.once()
    host.client.error = Retry("no answer")
    for _ in range(3):
        time.seconds += PERIOD
        with pytest.raises(Retry):
            await walk.once()
    assert host.reaped == []


async def test_list_of_another_cluster_proves_nothing(host: Host, walk: Sweep, time: Time) -> None:
    host.put(record())
    host.client.identity = "cluster-2"
    for _ in range(3):
        time.seconds += PERIOD
        with pytest.raises(Bug):
            await walk.once()
    assert host.reaped == []


async def test_orphan_whose_record_cannot_be_read_is_left_alone(
    host: Host, walk: Sweep, time: Time
) -> None:
    uid = host.put(record())
    path = host.places.instance(uid) / NAME
    path.write_bytes(b"{")
    host.load()
    assert isinstance(host.records.get(uid), Unknown)
    for _ in range(3):
        assert await walk.once() == ()
        time.seconds += PERIOD
    assert path.read_bytes() == b"{"
    assert host.reaped == []


async def test_nothing_is_collected_while_a_record_cannot_be_read(
    host: Host, walk: Sweep, time: Time
) -> None:
    readable = record(image_digest="sha256:a")
    uid = host.put(record())
    host.put(readable)
    host.client.uids = [uid, readable.uid]
    await walk.once()
    assert host.images.kept == [{"sha256:a"}]
    (host.places.instance(uid) / NAME).write_bytes(b"")
    host.load()
    await walk.once()
    assert len(host.images.kept) == 1


async def test_snapshot_that_was_given_up_just_before_a_crash_holds_nothing(
    host: Host, walk: Sweep, time: Time
) -> None:
    uid = host.put(record(disk_generation=3))
    host.client.uids = [uid]
    old = host.places.instance(uid) / "snap.2" / "manifest.json"
    old.parent.mkdir()
    old.write_bytes(b"whatever it names")
    await walk.once()
    assert not old.parent.exists()


async def test_directory_without_a_record_goes_after_two_lists_unless_a_vmm_lives_there(
    host: Host, walk: Sweep, time: Time
) -> None:
    half, used = (str(uuid.uuid4()) for _ in range(2))
    for uid in (half, used):
        host.places.instance(uid).mkdir()
    lock = runlock.acquire(host.places.lock(used))
    assert lock is not None
    await walk.once()
    assert host.places.instance(half).exists()
    time.seconds += PERIOD
    assert await walk.once() == (half,)
    assert not host.places.instance(half).exists()
    assert host.places.instance(used).exists()
    os.close(lock)
    time.seconds += PERIOD
    assert await walk.once() == (used,)


async def test_names_that_are_no_uid_are_nobodys_business(
    host: Host, walk: Sweep, time: Time
) -> None:
    stranger = host.places.instances / "lost+found"
    stranger.mkdir()
    for _ in range(3):
        assert await walk.once() == ()
        time.seconds += PERIOD
    assert stranger.exists()
