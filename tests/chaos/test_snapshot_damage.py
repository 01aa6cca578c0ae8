"""Snapshots that are damaged, foreign or from another time: never started from, never thrown away.

VMMs are hollow, files are real. Where a guest is woken at all, what it kept in RAM tells whether
it is the one that fell asleep.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from controller.errors import Retry
from controller.host.files import remove_tree
from controller.host.process import boot_id
from controller.memory import commit, manifest
from controller.memory.manifest import Manifest, Role, Seen, StoredFile
from controller.memory.store import MemoryStore, References
from controller.node.record import Record, Records, encode
from controller.node.snapshots import references
from controller.vmm.registry import FAULTS
from tests.agentkit import Rig, Site, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.witness import strays

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

A, B = "a", "b"
FLIPS = 1000


@dataclass
class Scene:
    """A sleeps in base, delta and device state; B, of another family, in a base only."""

    rig: Rig
    uids: dict[str, str]
    files: dict[Path, bytes] = field(default_factory=dict)  # as they were before the damage

    @property
    def site(self) -> Site:
        return self.rig.site

    @property
    def uid(self) -> str:
        return self.uids[A]

    def store(self) -> MemoryStore:
        """The agent's, to look at from outside."""
        return MemoryStore(self.site.places.memory, lambda: References(()))

    def manifest_path(self, name: str = A) -> Path:
        record = self.site.record(self.uids[name])
        home = self.site.places.instance(self.uids[name])
        return commit.folder(home, record.disk_generation) / commit.NAME

    def manifest(self, name: str = A) -> Manifest:
        found = commit.read_file(self.manifest_path(name))
        assert found is not None
        return found

    def file(self, role: Role, name: str = A) -> Path:
        (found,) = [each for each in self.manifest(name).files if each.role is role]
        return self.store().path(found)

    def identity(self, name: str = A) -> dict[str, str]:
        """What the guest has in RAM."""
        told: dict[str, str] = json.loads(self.site.ask(self.uids[name], "identity"))
        return told

    def keep(self) -> None:
        """Remember all files that A sleeps in."""
        paths = [self.manifest_path(), *map(self.store().path, self.manifest().files)]
        self.files = {path: path.read_bytes() for path in paths}

    def mend(self) -> None:
        """Bring them back as they were."""
        gid = self.site.record(self.uid).lineage
        for path, data in self.files.items():
            remove_tree(path)
            path.write_bytes(data)
            if path.name != commit.NAME:
                os.chown(path, 0, gid.gid if gid else -1)
                path.chmod(0o440)

    async def is_refused(self, reason: str) -> str:
        """Waking A is; nothing was started and nothing thrown away. What it says."""
        world, site = self.rig.world, self.site
        world.ask(A, "Running")
        said = await world.until_reason(A, reason)
        assert said["status"] == "False"
        assert world.condition(A, "Stalled")["status"] == "True"
        assert world.condition(A, "Stalled")["reason"] == reason
        assert "operatingMode: Stopped" in said["message"]
        assert world.state(A) == "Standby"
        assert world.get(A)["status"]["snapshot"]["bytes"] > 0
        record = site.record(self.uid)
        assert site.vmm(self.uid) is None
        assert record.open is None or record.open.vmm is None
        assert self.uid not in site.vmms()
        return str(said["message"])

    async def wakes(self, like: dict[str, str]) -> None:
        """A wakes, and is the guest that fell asleep."""
        await self.rig.world.until(A, "Running")
        now = self.identity()
        assert (now["boot_id"], now["hostname"]) == (like["boot_id"], like["hostname"])
        assert json.loads(self.site.ask(self.uid, "identity")) == now


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(zygote: Zygote) -> AsyncIterator[Scene]:
    async with make_rig(zygote, orphan_sweep_seconds=0.5) as rig:
        rig.site.order_all("tick=on")
        rig.restart()
        scene = Scene(rig, {name: await rig.run(name, restartPolicy="Never") for name in (A, B)})
        for name, uid in scene.uids.items():
            rig.site.happen(uid, "fill 2")
            await rig.world.until(name, "Standby")
        yield scene
        for name in scene.uids:
            await rig.world.until_gone(name)
        await eventually(lambda: rig.left() == [], rig.left)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(whole: Scene) -> AsyncIterator[Scene]:
    """A sleeps with a delta. A test leaves it in any state, whole."""
    world = whole.rig.world
    await world.until(A, "Running")
    await world.until(A, "Standby")
    whole.keep()
    yield whole
    await eventually(lambda: strays(whole.rig) == [], lambda: strays(whole.rig))


# --- files ----------------------------------------------------------------------------------------


def _truncated(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flipped(path: Path, other: Path) -> None:
    flip(path, path.stat().st_size // 3, 4)


def _missing(path: Path, other: Path) -> None:
    path.unlink()


def _swapped(path: Path, other: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    shutil.copy2(other, path)
    os.chown(path, 0, aside.stat().st_gid)
    aside.unlink()


def _opened_up(path: Path, other: Path) -> None:
    path.chmod(0o644)


def _given_away(path: Path, other: Path) -> None:
    os.chown(path, 12345, -1)


def _linked(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def _directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


Damage = Callable[[Path, Path], None]
FILE_DAMAGE: tuple[Damage, ...] = (
    _truncated, _flipped, _missing, _swapped, _opened_up, _given_away, _linked, _directory,
)  # fmt: skip


def flip(path: Path, offset: int, bit: int) -> None:
    """Turn one bit over, where it lies."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.mark.parametrize("role", list(Role), ids=str)
async def test_damaged_file_is_refused_named_and_kept(scene: Scene, role: Role) -> None:
    path = scene.file(role)
    other = scene.file(Role.STATE if role is Role.STATE else Role.BASE, B)
    told = []
    for damage in FILE_DAMAGE:
        damage(path, other)
        try:
            told.append(await scene.is_refused("SnapshotCorrupt"))
        except AssertionError as err:
            err.add_note(f"{damage.__name__} {path}")
            raise
        scene.mend()
        await scene.rig.world.until(A, "Standby")
    assert all(path.name in message for message in told), told
    await scene.wakes(scene.identity(A) if scene.site.vmm(scene.uid) else _asleep_as(scene))


def _asleep_as(scene: Scene) -> dict[str, str]:
    """Who fell asleep, as its own RAM on disk has it."""
    for path, data in scene.files.items():
        if path.name.startswith(("delta-", "base-")) and (at := data.find(b'{"hostname"')) >= 0:
            found: dict[str, str] = json.loads(data[at : data.index(b"}", at) + 1])
            return found
    raise AssertionError("its page of identity is not in its image")


async def test_thousand_flipped_bits_are_a_thousand_refusals(scene: Scene) -> None:
    draw = random.Random(4)
    found, store = scene.manifest(), scene.store()
    assert store.verify(found, full=True) == ()
    for _ in range(FLIPS):
        file: StoredFile = draw.choice(found.files)
        path = store.path(file)
        offset, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        flip(path, offset, bit)
        (problem, *_) = store.verify(found) or (None,)  # as before a start
        assert problem is not None, f"byte {offset} of {path.name} may be anything"
        assert problem.reason == "SnapshotCorrupt"
        assert path.name in problem.message
        flip(path, offset, bit)
    assert store.verify(found, full=True) == ()


# --- manifests ------------------------------------------------------------------------------------


def _platform(**changes: object) -> Callable[[Scene], bytes]:
    def edited(scene: Scene) -> bytes:
        was = scene.manifest()
        platform = was.platform.model_copy(update=changes)
        return manifest.encode(was.model_copy(update={"platform": platform}))

    return edited


def _manifest(**changes: object) -> Callable[[Scene], bytes]:
    return lambda scene: manifest.encode(scene.manifest().model_copy(update=changes))


def _newer(scene: Scene) -> bytes:
    whole = json.loads(scene.manifest_path().read_bytes())
    return json.dumps({**whole, "schema": manifest.SCHEMA + 1}).encode()


def _unsigned(scene: Scene) -> bytes:
    return scene.manifest_path().read_bytes().replace(b'"epoch": 1', b'"epoch": 2')


def _of_another(scene: Scene) -> bytes:
    return scene.manifest_path(B).read_bytes()


CORRUPT, INCOMPATIBLE = "SnapshotCorrupt", "SnapshotIncompatible"
MANIFEST_DAMAGE: dict[str, tuple[Callable[[Scene], bytes], str, str]] = {
    "garbage": (lambda scene: os.urandom(500), CORRUPT, "not a whole manifest"),
    "empty": (lambda scene: b"", CORRUPT, "not a whole manifest"),
    "half": (lambda scene: scene.manifest_path().read_bytes()[:-200], CORRUPT, "not a whole"),
    "edited": (_unsigned, CORRUPT, "checksum"),
    "newer": (_newer, INCOMPATIBLE, "newer release"),
    "version": (_platform(version="0.0.1"), INCOMPATIBLE, "hypervisor version is 0.0.1"),
    "accelerator": (_platform(accelerator="xen"), INCOMPATIBLE, "xen"),
    "machine": (_platform(machine_type="pc-i440fx-1.0"), INCOMPATIBLE, "machine type is pc"),
    "cpu": (_platform(cpu_model="486"), INCOMPATIBLE, "cpu model"),
    "features": (_platform(cpu_features=("avx1024",)), INCOMPATIBLE, "avx1024"),
    "devices": (_platform(devices="0" * 64), INCOMPATIBLE, "devices"),
    "kernel": (_platform(kernel="0" * 64), INCOMPATIBLE, "kernel"),
    "disk": (_manifest(disks={"overlay": 77}), INCOMPATIBLE, "generation 77"),
    "other-disk": (_manifest(disks={"data": 1}), INCOMPATIBLE, "disk data"),
    "another": (_of_another, INCOMPATIBLE, "Instance is"),
}


async def test_manifest_of_something_else_is_refused_and_kept(scene: Scene) -> None:
    path = scene.manifest_path()
    for name, (make, reason, word) in MANIFEST_DAMAGE.items():
        data = make(scene)
        path.write_bytes(data)
        try:
            assert word in await scene.is_refused(reason)
        except AssertionError as err:
            err.add_note(f"manifest: {name}")
            raise
        assert path.read_bytes() == data
        scene.mend()
        await scene.rig.world.until(A, "Standby")
    await scene.wakes(_asleep_as(scene))


async def test_manifest_that_is_gone_is_said_and_all_that_it_named_is_kept(scene: Scene) -> None:
    boots, before = scene.site.starts(scene.uid), _asleep_as(scene)
    scene.manifest_path().unlink()
    assert "manifest of its snapshot is gone" in await scene.is_refused(CORRUPT)
    records = Records(scene.site.places.instances)
    records.load()
    with pytest.raises(Retry, match="gone") as refused:  # so nothing is collected
        references(scene.site.places, records)
    assert refused.value.reason == "ReferencesUnknown"
    assert scene.site.starts(scene.uid) == boots
    scene.mend()
    await scene.rig.world.until(A, "Standby")
    await scene.wakes(before)


async def test_other_build_of_the_same_version_is_worth_an_event_only(scene: Scene) -> None:
    path = scene.manifest_path()
    path.write_bytes(_platform(build="another")(scene))
    await scene.wakes(_asleep_as(scene))

    def told() -> bool:
        events = scene.rig.world.server.objects.get("events", {}).values()
        return any(event["reason"] == "OtherBuild" for event in events)

    await eventually(told)


@pytest.mark.parametrize("what", ["base", "state", "manifest"])
async def test_remedy_that_is_named_works(scene: Scene, what: str) -> None:
    world, boots = scene.rig.world, scene.site.starts(scene.uid)
    before = _asleep_as(scene)
    path = scene.manifest_path() if what == "manifest" else scene.file(Role(what))
    flip(path, path.stat().st_size // 2, 1)
    await scene.is_refused(CORRUPT)
    await world.until(A, "Stopped")
    await eventually(lambda: not any(each.exists() for each in scene.files), scene.files.keys)
    assert "snapshot" not in world.get(A)["status"]
    await world.until(A, "Running")
    assert scene.site.starts(scene.uid) == boots + 1
    assert scene.identity()["boot_id"] != before["boot_id"]


# --- another boot of the host ---------------------------------------------------------------------


async def reboot(scene: Scene) -> None:
    """All processes and all of /run are gone; what is remembered of this boot is of another."""
    site, boot = scene.site, boot_id()
    await site.agent.kill()
    for pids in site.vmms().values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not site.vmms())
    for uid in scene.uids.values():
        text = encode(site.record(uid)).decode().replace(boot, "0" * len(boot))
        body = json.loads(text)["record"]
        path = site.places.instance(uid) / "record.json"
        path.write_bytes(encode(Record.model_validate(body)))
    for path in site.places.run.iterdir():
        if path.name != FAULTS:
            remove_tree(path)
    verified = site.places.memory / "verified.json"
    verified.write_text(verified.read_text().replace(boot, "0" * len(boot)))


def verified_now(scene: Scene) -> bool:
    """Whether the base was read since the host came up."""
    text = (scene.site.places.memory / "verified.json").read_text()
    return boot_id() in text and scene.file(Role.BASE).name in text


async def test_sleeper_survives_a_reboot_and_wakes_once_its_base_was_read(scene: Scene) -> None:
    before = _asleep_as(scene)
    await reboot(scene)
    assert not verified_now(scene)
    scene.rig.restart()
    await scene.rig.world.until(A)
    await scene.wakes(before)
    assert scene.site.record(scene.uid).restarts == 0


async def test_base_that_rotted_while_the_host_was_down_is_found(scene: Scene) -> None:
    """It looks as it did when it was found whole, but that was in another boot."""
    before, base = _asleep_as(scene), scene.file(Role.BASE)
    await reboot(scene)
    flip(base, base.stat().st_size // 2, 3)
    path = scene.site.places.memory / "verified.json"
    known = json.loads(path.read_text())
    key = f"{base.parent.name}/{base.name}"
    assert key in known["files"]
    known["files"][key] = Seen.of(base.stat()).model_dump()
    path.write_text(json.dumps(known))
    scene.rig.restart()
    assert base.name in await scene.is_refused(CORRUPT)
    scene.mend()
    await scene.rig.world.until(A, "Standby")
    await scene.wakes(before)


async def test_woken_guest_boots_cold_after_a_reboot(scene: Scene) -> None:
    before, boots = _asleep_as(scene), scene.site.starts(scene.uid)
    await scene.wakes(before)
    await reboot(scene)
    scene.rig.restart()
    await eventually(lambda: scene.site.starts(scene.uid) == boots + 1)
    await scene.rig.world.until(A)
    assert scene.identity()["boot_id"] != before["boot_id"]
    record = scene.site.record(scene.uid)
    assert (record.exit, record.exited, record.restarts) == (None, False, 0)


async def test_guest_that_was_loaded_and_never_ran_wakes_again_after_a_reboot(
    scene: Scene,
) -> None:
    before, boots = _asleep_as(scene), scene.site.starts(scene.uid)
    await scene.rig.world.until(A, "Paused")
    assert scene.rig.world.get(A)["status"]["snapshot"]["bytes"] > 0
    await reboot(scene)
    scene.rig.restart()
    await eventually(lambda: scene.site.vmm(scene.uid) is not None)
    await scene.rig.world.until(A)
    await scene.wakes(before)
    assert scene.site.starts(scene.uid) == boots
