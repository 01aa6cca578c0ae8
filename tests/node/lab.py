"""One kind of VMM, a store of memory images, and the way between them: for tests of sleep."""

import asyncio
import dataclasses
import os

from controller.memory.manifest import Manifest
from controller.memory.pages import FileId, ProcessMemory
from controller.memory.saving import StateSink
from controller.memory.store import MemoryStore, References
from controller.vmm.driver import Handle
from controller.vmm.machine import EMPTY_IMAGE
from tests.node.rigs import Rig, Run
from tests.unit.memory.snapshots import manifest_of

LINEAGE = 231_500  # the group that may read its images; VMMs have it beside their own


class Lab:
    """A driver, a store, and what was saved of its guests."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.driver = rig, rig.driver()
        self.store = MemoryStore(rig.home / "memory", lambda: References(()))
        self.store.start()

    async def start(self, **changes: object) -> Run:
        """A VMM that has not run. ``changes`` as for a run."""
        run = self.rig.run(**changes)
        run.launch = dataclasses.replace(run.launch, groups=(LINEAGE,))
        await self.rig.start(self.driver, run)
        return run

    async def sleep(self, run: Run, old: Manifest | None = None) -> Manifest:
        """Pause, save device state and memory, and end the VMM."""
        await self.driver.pause(handle(run))
        manifest = await self.save(run, old)
        await self.driver.kill(handle(run))
        return manifest

    async def save(self, run: Run, old: Manifest | None = None) -> Manifest:
        """What a paused VMM is, as files; ``old``: the one that it was woken from."""
        base = old.base if old is not None else None
        mapped = self.store.path(base) if base else EMPTY_IMAGE
        memory = run.machine.hardware.memory
        who = handle(run).identity
        with self.store.saving() as saving, StateSink() as sink:
            await self.driver.save(handle(run), sink.fd)
            taken = await asyncio.to_thread(
                saving.take, who, mapped=mapped, ram=memory, gid=LINEAGE, base=base
            )
            file = await asyncio.to_thread(saving.finish, taken)
            state = saving.state(sink.data(), LINEAGE)
        return manifest_of(memory, base or file, file if base else None, state)

    async def wake(self, manifest: Manifest, *, resume: bool = True, **changes: object) -> Run:
        """Another VMM of the same kind that goes on from there. ``changes`` as for a run."""
        assert self.store.verify(manifest) == ()
        image = self.store.path(manifest.base)
        run = await self.start(incoming=True, memory_image=image, **changes)
        await asyncio.to_thread(self.store.put_back, handle(run).identity, manifest)
        await self.load(run, manifest)
        if resume:
            await self.driver.resume(handle(run))
        return run

    async def load(self, run: Run, manifest: Manifest) -> None:
        """Give a VMM its device state."""
        fd = self.store.open_state(manifest)
        try:
            await self.driver.load(handle(run), fd)
        finally:
            os.close(fd)

    def ram_of(self, run: Run, manifest: Manifest) -> bytes:
        """All guest RAM of a VMM that maps the base of ``manifest``."""
        path = self.store.path(manifest.base)
        with ProcessMemory(handle(run).identity) as memory:
            ram = memory.ram(FileId.of(path.stat()), run.machine.hardware.memory)
            return os.pread(memory.mem, ram.size, ram.start)

    async def end(self) -> None:
        """End every VMM, and let go of it."""
        await self.rig.end()
        for run in self.rig.runs:
            await self.driver.release(run.machine.uid)


def handle(run: Run) -> Handle:
    """The handle of a run that was started."""
    assert run.handle is not None
    return run.handle
