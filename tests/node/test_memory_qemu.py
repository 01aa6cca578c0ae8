"""A real guest sleeps and wakes through memory images: it goes on where it was, again and again."""

import asyncio
import dataclasses
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.memory import image
from controller.memory.manifest import Manifest
from controller.memory.pages import PAGE, FileId, ProcessMemory
from controller.memory.saving import StateSink
from controller.memory.store import MemoryStore, References
from controller.vmm.driver import Driver, Handle
from controller.vmm.qemu.argv import EMPTY_IMAGE
from tests.node.rigs import MIB, VMM_UID, Rig, Run
from tests.node.testguest import Shell
from tests.unit.memory.snapshots import manifest_of
from tests.waiting import until

pytestmark = pytest.mark.node

# A loop that never sleeps, so that a guest that stands still is told from one that runs.
COUNTER = "n=0; (while :; do n=$((n+1)); echo $n > /count; done) &"


class Lab:
    """QEMU, a store, and what was saved of its guests."""

    def __init__(self, rig: Rig, driver: Driver) -> None:
        self.rig, self.driver = rig, driver
        self.store = MemoryStore(rig.home / "memory", lambda: References(()))
        self.store.start()

    async def boot(self) -> Run:
        """A guest that counts."""
        run = self.rig.run()
        await self.rig.start(self.driver, run)
        await self.driver.resume(handle(run))
        said = b""

        def ready() -> bool:
            nonlocal said
            said += run.read("report")
            return b"ready" in said

        await until(ready, 60)
        await Shell(run.channel).run(COUNTER)
        return run

    async def sleep(self, run: Run, old: Manifest | None = None) -> Manifest:
        """Pause, save device state and memory, and end the VMM."""
        await self.driver.pause(handle(run))
        manifest = await self.save(run, old)
        await self.driver.kill(handle(run))
        return manifest

    async def save(self, run: Run, old: Manifest | None = None) -> Manifest:
        """What a paused VMM is, as files."""
        base = old.base if old is not None else None
        mapped = self.store.path(base) if base else EMPTY_IMAGE
        memory = run.machine.hardware.memory
        who = handle(run).identity
        with self.store.saving() as saving, StateSink() as sink:
            await self.driver.save(handle(run), sink.fd)
            taken = await asyncio.to_thread(
                saving.take, who, mapped=mapped, ram=memory, gid=VMM_UID, base=base
            )
            file = await asyncio.to_thread(saving.finish, taken)
            state = saving.state(sink.data(), VMM_UID)
        return manifest_of(memory, base or file, file if base else None, state)

    async def wake(self, manifest: Manifest, like: Run) -> Run:
        """Another VMM of the same kind that goes on from there."""
        assert self.store.verify(manifest) == ()
        run = self.rig.run(incoming=True, memory_image=self.store.path(manifest.base))
        run.machine = dataclasses.replace(
            run.machine,
            machine_type=like.machine.machine_type,
            disks=like.machine.disks,
        )
        await self.rig.start(self.driver, run)
        await asyncio.to_thread(self.store.put_back, handle(run).identity, manifest)
        fd = self.store.open_state(manifest)
        try:
            await self.driver.load(handle(run), fd)
        finally:
            os.close(fd)
        await self.driver.resume(handle(run))
        return run


def handle(run: Run) -> Handle:
    assert run.handle is not None
    return run.handle


async def count(run: Run) -> int:
    """How far the guest has counted."""
    while not (text := (await Shell(run.channel).run("cat /count")).strip()):
        pass  # it was between opening and writing
    return int(text)


async def counts_on(run: Run, since: int) -> int:
    """Wait until it counts further than ``since``; how far then."""
    async with asyncio.timeout(30):
        while (now := await count(run)) <= since:
            pass
    return now


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU here")
    rig = Rig("qemu")
    driver = rig.driver()
    try:
        yield Lab(rig, driver)
    finally:
        for run in rig.runs:
            await driver.release(run.machine.uid)
        await rig.end()
        rig.close()


async def test_a_guest_goes_on_counting_after_every_sleep(lab: Lab) -> None:
    run = await lab.boot()
    secret = "cat /proc/sys/kernel/random/boot_id; head -c 4000000 /dev/urandom > /fill"
    boot_id = await Shell(run.channel).run(secret)
    digest = await Shell(run.channel).run("sha256sum /fill")
    last = await counts_on(run, 0)
    manifest = None
    for generation in range(3):
        manifest = await lab.sleep(run, manifest)
        run = await lab.wake(manifest, run)
        now = await counts_on(run, last)
        assert now > last, "it counts on, and never starts over"
        last = now
        assert await Shell(run.channel).run("cat /proc/sys/kernel/random/boot_id") == boot_id
        assert await Shell(run.channel).run("sha256sum /fill") == digest
        assert (manifest.delta is None) == (generation == 0)
    assert manifest is not None
    assert manifest.delta is not None
    assert manifest.delta.on_disk < manifest.base.on_disk / 2, "a delta is what changed"
    assert lab.store.verify(manifest, full=True) == ()


async def test_what_a_woken_guest_sees_is_exactly_what_was_saved(lab: Lab) -> None:
    """The guest's own RAM through the VMM, byte for byte, before its first instruction."""
    run = await lab.boot()
    first = await lab.sleep(run)
    run = await lab.wake(first, run)
    await counts_on(run, 0)
    await lab.driver.pause(handle(run))
    second = await lab.save(run, first)
    asleep = ram_of(lab, run, second)
    await lab.driver.kill(handle(run))

    twin = lab.rig.run(incoming=True, memory_image=lab.store.path(second.base))
    await lab.rig.start(lab.driver, twin)
    lab.store.put_back(handle(twin).identity, second)
    assert ram_of(lab, twin, second) == asleep


async def test_forks_of_one_sleep_count_each_on_their_own(lab: Lab) -> None:
    source = await lab.boot()
    await counts_on(source, 0)
    manifest = await lab.sleep(source)
    forks = [await lab.wake(manifest, source) for _ in range(2)]
    for number, fork in enumerate(forks):
        await Shell(fork.channel).run(f"echo {number} > /me")
    seen = [(await Shell(fork.channel).run("cat /me")).strip() for fork in forks]
    assert seen == ["0", "1"]
    one, two = [await lab.sleep(fork, manifest) for fork in forks]
    assert one.base == two.base == manifest.base
    assert one.delta != two.delta
    woken = await lab.wake(two, source)
    assert (await Shell(woken.channel).run("cat /me")).strip() == "1"


async def test_memory_that_the_guest_zeroed_is_zero_when_it_wakes(lab: Lab) -> None:
    run = await lab.boot()
    shell = Shell(run.channel)
    await shell.run("mkdir -p /big; mount -t tmpfs -o size=20m big /big", 30)
    await shell.run("yes torpor | head -c 8388608 > /big/file", 60)
    first = await lab.sleep(run)
    run = await lab.wake(first, run)
    shell = Shell(run.channel)
    await shell.run("dd if=/dev/zero of=/big/file bs=1M count=8 conv=notrunc 2>/dev/null", 60)
    second = await lab.sleep(run, first)
    run = await lab.wake(second, run)
    text = await Shell(run.channel).run("sha256sum < /big/file", 60)
    assert text.split()[0] == hashlib.sha256(bytes(8 * MIB)).hexdigest()
    assert second.delta is not None
    assert zero_pages(lab, second) * PAGE > 7 * MIB


def zero_pages(lab: Lab, manifest: Manifest) -> int:
    """How many pages its delta says are zero now."""
    assert manifest.delta is not None
    path = lab.store.path(manifest.delta)
    with path.open("rb") as file:
        runs = image.read(file.fileno(), path, manifest.delta.digest).runs.tolist()
    return sum(count for _, _, count, kind in runs if kind == image.RunKind.ZERO)


def ram_of(lab: Lab, run: Run, manifest: Manifest) -> bytes:
    """All guest RAM of a VMM that maps the base of ``manifest``."""
    path: Path = lab.store.path(manifest.base)
    with ProcessMemory(handle(run).identity) as memory:
        ram = memory.ram(FileId.of(path.stat()), run.machine.hardware.memory)
        return os.pread(memory.mem, ram.size, ram.start)


async def test_a_vmm_of_another_lineage_cannot_start_from_it(lab: Lab) -> None:
    run = await lab.boot()
    manifest = await lab.sleep(run)
    stranger = lab.rig.run(incoming=True, memory_image=lab.store.path(manifest.base))
    stranger.launch = dataclasses.replace(stranger.launch, uid=VMM_UID - 1, gid=VMM_UID - 1)
    os.chown(stranger.machine.run_dir, VMM_UID - 1, VMM_UID - 1)
    with pytest.raises(Blocked):
        await lab.rig.start(lab.driver, stranger)
    assert b"Permission denied" in stranger.read("vmm")
    assert not stranger.locked
