"""A guest that is put to sleep and woken by the driver and the memory store alone, for tests."""

import asyncio
import os

from controller.memory.manifest import Manifest
from controller.memory.saving import StateSink
from controller.memory.store import MemoryStore, References
from controller.vmm.driver import Handle
from controller.vmm.qemu.argv import EMPTY_IMAGE
from tests.node.rigs import VMM_UID, Rig, Run
from tests.unit.memory.snapshots import manifest_of


class Lab:
    """QEMU and a store."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.driver = rig, rig.driver()
        self.store = MemoryStore(rig.home / "memory", lambda: References(()))
        self.store.start()

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

    async def wake(self, manifest: Manifest, **changes: object) -> Run:
        """Another VMM of the same kind that goes on from there. ``changes`` as for a run."""
        assert self.store.verify(manifest) == ()
        image = self.store.path(manifest.base)
        run = self.rig.run(incoming=True, memory_image=image, **changes)
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
