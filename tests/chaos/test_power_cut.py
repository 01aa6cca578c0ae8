"""The power goes at any durable step of a sleep or a wake: what comes up is the old or the new.

The state directory is a file system of its own, which is shut down as a power cut does it: what was
not synced is gone, with or without what the journal still held. Then the host has booted anew. VMMs
are hollow; a guest is known by the boot id in its RAM, and finds out if its disk does not fit.
"""

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from controller.host.files import remove_tree
from controller.host.process import boot_id
from controller.memory import commit
from controller.memory.manifest import Manifest
from controller.memory.store import MemoryStore, References
from controller.node.record import Record, encode
from controller.vmm.registry import FAULTS
from tests.agentkit import KILLED, Rig, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.witness import journal, strays
from tests.waiting import unmount

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

A, F = "a", "f"
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
LOGFLUSH, NOLOGFLUSH = 1, 2  # whether the journal in memory still gets to the disk
MIB = 1 << 20


# In the order in which they are passed, one for each thing that is done to the disk. Before the one
# that is named below them it is the old, from it on the new.
SLEEP = (
    "step.OrderSave.after", "memory.sync.after", "memory.publish.after", "memory.folder.after",
    "memory.commit.before", "memory.commit.after", "step.SaveMemory.after", "step.CloseRun.after",
)  # fmt: skip
ASLEEP_FROM = "memory.commit.after"
WAKE = (
    "step.PrepareWake.after", "start.spawned", "step.LoadMemory.after", "step.OrderWake.before",
    "memory.void.before", "memory.void.after", "step.OrderWake.after", "step.RepairGuest.after",
)  # fmt: skip
USED_FROM = "memory.void.before"


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=30, capture_output=True)


@contextmanager
def disk(rig: Rig, *mkfs: str, size: int, options: str = "loop") -> Iterator[None]:
    """The rig's state directory on a file system of its own."""
    state, image = rig.site.places.state, rig.site.home / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    run(*mkfs, str(image))
    kept = state.rename(rig.site.home / "kept")
    state.mkdir(mode=0o711)
    run("mount", "-o", options, str(image), str(state))
    state.chmod(0o711)
    for path in kept.iterdir():
        run("mv", str(path), str(state))
    yield


@dataclass
class Host:
    """A rig on a disk that can lose its power, with one Instance, A."""

    rig: Rig
    uid: str = ""
    cuts: int = 0

    OPTIONS = "loop,commit=600"  # nothing gets to the disk by itself

    async def power_cut(self) -> None:
        """At once; then the host boots: no process, nothing in /run, what the disk has."""
        site, boot = self.rig.site, boot_id()
        self.cuts += 1
        fd = os.open(site.places.state, os.O_RDONLY)
        how = LOGFLUSH if self.cuts % 3 == 0 else NOLOGFLUSH
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", how))
        os.close(fd)
        await site.agent.kill()
        for pids in site.vmms().values():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not site.vmms())
        unmount(str(site.places.state))
        run("mount", "-o", self.OPTIONS, str(site.home / "disk.img"), str(site.places.state))
        for path in site.places.run.iterdir():
            if path.name != FAULTS:
                remove_tree(path)
        text = encode(site.record(self.uid)).decode().replace(boot, "0" * len(boot))
        body = json.loads(text)["record"]
        path = site.places.instance(self.uid) / "record.json"
        path.write_bytes(encode(Record.model_validate(body)))

    def sync(self) -> None:
        """All that was written until now has long been on the disk."""
        run("sync", "-f", str(self.rig.site.places.state))

    @property
    def generation(self) -> int:
        return self.rig.site.record(self.uid).disk_generation

    def snapshot(self) -> Manifest | None:
        """The committed one, which is whole in every byte."""
        site = self.rig.site
        found = commit.read(site.places.instance(self.uid), self.generation)
        if found is not None:
            store = MemoryStore(site.places.memory, lambda: References(()))
            assert store.verify(found, full=True) == ()
        return found

    def life(self) -> str:
        """Which boot of the guest this is, by its RAM."""
        return str(json.loads(self.rig.site.ask(self.uid, "identity"))["boot_id"])

    def count(self) -> int:
        return int(self.rig.site.ask(self.uid, "count").removeprefix("ok "))

    async def die_at(self, point: str) -> None:
        """The agent comes to ``point``, and then the power goes."""
        try:
            assert await self.rig.site.agent.ended() == KILLED
        except AssertionError as err:
            err.add_note(f"{point} was never reached")
            raise
        await self.power_cut()

    async def go_on(self) -> None:
        """The host is up again."""
        self.rig.restart()
        await self.rig.world.until(A)
        await eventually(lambda: strays(self.rig) == [], lambda: strays(self.rig))
        disk = journal(self.rig.site, self.uid)
        assert disk.gaps == 0, "RAM and disk were of two moments"


@pytest_asyncio.fixture(loop_scope="module")
async def host(zygote: Zygote) -> AsyncIterator[Host]:
    async with make_rig(zygote, orphan_sweep_seconds=0.5) as rig:
        with disk(rig, "mkfs.ext4", "-q", "-F", size=96 * MIB, options=Host.OPTIONS):
            rig.site.order_all("tick=on")
            rig.restart()
            yield Host(rig, await rig.run(A, restartPolicy="Always"))
            await rig.world.until_gone(A)
            await eventually(lambda: rig.left() == [], rig.left)


async def test_power_cut_leaves_a_guest_awake_or_asleep_and_no_memory_is_used_twice(
    host: Host,
) -> None:
    # backwards: so what was just saved is what a wake that is cut short leaves to the next one
    for asleep_at, awake_at in zip(SLEEP, reversed(WAKE), strict=True):
        try:
            await fall_asleep(host, asleep_at)
            await wake(host, awake_at)
        except AssertionError as err:
            err.add_note(f"the power went at {asleep_at} or {awake_at}")
            raise


async def fall_asleep(host: Host, point: str) -> None:
    """The cut comes at ``point``. In the end it sleeps."""
    world = host.rig.world
    await world.until(A, "Running")
    await world.until(A, "Paused")
    host.sync()
    await host.rig.site.agent.kill()
    host.rig.restart(f"{point}=kill")
    await world.until(A, "Running")  # it writes to its disk, and nobody syncs that but the save
    life, count = host.life(), host.count()
    world.ask(A, "Standby")
    await host.die_at(point)
    committed = host.snapshot() is not None
    assert committed is (SLEEP.index(point) >= SLEEP.index(ASLEEP_FROM)), point
    await host.go_on()
    assert host.snapshot() is not None
    await world.until(A, "Paused")
    assert host.life() == life if committed else host.life() != life
    assert host.count() >= count or not committed
    await world.until(A, "Standby")


async def wake(host: Host, point: str) -> None:
    """The cut comes at ``point``. In the end it runs."""
    world, generation = host.rig.world, host.generation
    await world.until(A, "Paused")
    life = host.life()
    await world.until(A, "Standby")
    host.sync()
    await host.rig.site.agent.kill()
    host.rig.restart(f"{point}=kill")
    world.ask(A, "Running")
    await host.die_at(point)
    used = host.generation > generation
    assert used is (WAKE.index(point) >= WAKE.index(USED_FROM)), point
    assert (host.snapshot() is None) is used, "used memory may never come back"
    await host.go_on()
    assert host.life() != life if used else host.life() == life


async def test_fork_costs_no_blocks_where_files_can_be_shared(zygote: Zygote) -> None:
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is missing; apt-get install xfsprogs")
    async with make_rig(zygote) as rig:
        if "xfs" not in Path("/proc/filesystems").read_text():
            pytest.skip("this kernel has no xfs")
        with disk(rig, "mkfs.xfs", "-q", "-m", "reflink=1", size=320 * MIB):
            rig.restart()
            uid = await rig.run(A)
            overlay = rig.site.places.overlay(uid)
            with overlay.open("r+b") as file:
                file.write(os.urandom(12 * MIB))
            await rig.world.until(A, "Standby")
            run("sync", "-f", str(overlay))
            before = os.statvfs(overlay)
            fork = rig.world.fork(F, A, "Standby")
            await rig.world.until(F)
            copy = rig.site.places.overlay(fork)
            run("sync", "-f", str(copy))
            after = os.statvfs(overlay)
            assert copy.read_bytes() == overlay.read_bytes()
            assert (before.f_bfree - after.f_bfree) * before.f_frsize < MIB
            with copy.open("r+b") as file:  # and it is its own
                file.write(b"mine")
            assert overlay.open("rb").read(4) != b"mine"

            def told() -> bool:
                events = rig.world.server.objects.get("events", {}).values()
                return any("shared by reflink" in each["message"] for each in events)

            await eventually(told)
            for name in (A, F):
                await rig.world.until_gone(name)
            await eventually(lambda: rig.left() == [], rig.left)
