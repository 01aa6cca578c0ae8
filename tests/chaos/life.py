"""One Instance's life without sleep, with an agent that dies at every crash point, once."""

import asyncio
import os
import re
import signal

from controller.node import act
from controller.node.act_memory import MEMORY_STEPS
from tests.agentkit import IMAGE, KILLED, Ours, Rig, eventually

# Steps of sleep, wake and fork have a sweep of their own (``test_sleep_crash_points``).
STEPS = tuple(step for step in act.STEPS if step not in MEMORY_STEPS)
STEP_POINTS = tuple(
    f"step.{step.__name__}.{when}" for step in STEPS for when in ("before", "after")
)
DIED = re.compile(r"^failpoint (\S+): kill$", re.MULTILINE)


class Life:
    """``live`` goes through every operation. ``points``: where agents die (default: everywhere)."""

    def __init__(
        self, rig: Rig, name: str, hypervisor: str, points: set[str] | None = None, **spec: str
    ) -> None:
        self.rig, self.name, self.hypervisor, self.spec = rig, name, hypervisor, spec
        self.points = set(STEP_POINTS) if points is None else points
        self.died: list[str] = []

    def missed(self) -> set[str]:
        """Points at which no agent died."""
        return self.points - set(self.died)

    async def live(self) -> None:
        """From create to delete. Raises AssertionError where something is not as it should be."""
        keeping = asyncio.create_task(self._keep_an_agent())
        living = asyncio.create_task(self._live())
        try:
            await asyncio.wait({keeping, living}, return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, living):
                if task.done():
                    task.result()
        finally:
            for task in (keeping, living):
                task.cancel()
            await asyncio.gather(keeping, living, return_exceptions=True)

    async def _live(self) -> None:
        world, site, name = self.rig.world, self.rig.site, self.name
        uid = world.create(
            name, hypervisor=self.hypervisor, image=self.spec.pop("image", IMAGE),
            restartPolicy="OnFailure", **self.spec,
        )  # fmt: skip
        await world.until(name, seconds=90)
        for mode in ("Paused", "Running"):
            await world.until(name, mode)
        run = site.record(uid).run
        self._kill_vmm(uid)
        await eventually(
            lambda: site.record(uid).run > run and world.settled(name),
            lambda: world.get(name)["status"],
            90,
        )
        assert site.record(uid).restarts == 1
        for mode in ("Paused", "Stopped"):
            await world.until(name, mode, 90)
        assert site.record(uid).restarts == 0
        world.status(name, epoch=2)
        await eventually(lambda: site.record(uid).epoch == 2)
        for mode in ("Running", "Stopped", "Running"):
            await world.until(name, mode, 90)
        await world.until_gone(name, 90)
        last = "step.DropFinalizer.after"  # the object goes before the agent does
        await eventually(lambda: last not in self.missed())

    def _kill_vmm(self, uid: str) -> None:
        vmm = self.rig.site.vmm(uid)
        assert vmm is not None
        os.kill(vmm.pid, signal.SIGKILL)

    async def _keep_an_agent(self) -> None:
        while True:
            agent = self._start()
            assert await agent.ended(600) == KILLED
            self.died = DIED.findall(self.rig.site.log.read_text())

    def _start(self) -> Ours:
        return self.rig.restart(",".join(f"{point}=kill" for point in sorted(self.missed())))
