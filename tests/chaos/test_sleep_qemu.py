"""Crashes while a real guest falls asleep, wakes and is forked: it goes on as if nothing had been.

One guest is booted for all tests; whatever else is needed is forked from it, or is it again. The
sweep over all points in all combinations is with hollow VMMs (``test_sleep_crash_points``).
"""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from controller.host import failpoint
from controller.memory import saving as _saving  # noqa: F401 - registers its crash points
from controller.node import act as _act  # noqa: F401 - these, too
from controller.settings import cache_dir
from tests.agentkit import KILLED, Object, Rig, Zygote, eventually, furnish_for_qemu
from tests.agentkit import rig as make_rig
from tests.chaos.witness import strays
from tests.node import bareguest
from tests.sleepers import SHELL_WITNESS, Story, journal, story

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]

A, F = "a", "f"
PASSED = re.compile(r"^failpoint (\S+): sleep-0$", re.MULTILINE)
DIED = re.compile(r"^failpoint (\S+): kill$", re.MULTILINE)
ROUNDS = 4
MODES = ("Standby", "Running")
# An agent gives old files back whenever it has the time, so that is on no way (hollow ones do it).
ALL = tuple(p for p in failpoint.registered() if not p.startswith(("operator.", "memory.unlink.")))
# What must be among the points that are found, so that no sweep is empty.
STEPS = {
    "Standby": {"OrderSave", "PauseVmm", "SaveMemory", "KillVmm", "CloseRun"},
    "Running": {"PrepareWake", "StartVmm", "LoadMemory", "OrderWake", "ResumeVmm", "RepairGuest"},
    "fork": {"CreateRecord", "TakeFork"},
}


@dataclass
class Scene:
    """A rig with one real guest, A, that counts."""

    rig: Rig
    uid: str = ""

    def tale(self, uid: str) -> Story:
        return story(self.rig.site.places.logs(uid) / "workload.log")

    async def boot(self) -> None:
        self.uid = self.rig.world.create(
            A, hypervisor="qemu", memory="80Mi", restartPolicy="Never",
            command=["/bin/busybox", "sh", "-c", SHELL_WITNESS],
        )  # fmt: skip
        await self.rig.world.until(A, seconds=120)
        await self.counts_on(self.uid)

    async def counts_on(self, uid: str) -> None:
        """It prints a number that it had not come to yet."""
        since = self.tale(uid).last
        await eventually(lambda: self.tale(uid).last > since, lambda: self.tale(uid).lines[-9:])

    async def fork(self, mode: str, *, running: bool = False) -> str:
        """F, forked from A and settled; its UID."""
        uid = self.rig.world.fork(F, A, mode, running=running, restartPolicy="Never")
        await self.rig.world.until(F)
        return uid

    async def next_agent(self, failpoints: str = "") -> int:
        """Kill the agent and start another one; where its log begins."""
        await self.rig.site.agent.kill()
        at = self.rig.site.log.stat().st_size
        self.rig.restart(failpoints)
        return at

    def said(self, at: int) -> str:
        return self.rig.site.log.read_bytes()[at:].decode()

    def objects(self) -> list[Object]:
        return [self.rig.world.get(name) for name in (A, F) if self.rig.world.exists(name)]

    async def clean(self) -> None:
        """Nothing lies on disk that nobody names."""
        await eventually(lambda: strays(self.rig) == [], lambda: strays(self.rig))

    def is_well(self) -> None:
        """A is what it was: never ended, never booted again, no number lost or told twice."""
        record = self.rig.site.record(self.uid)
        assert (record.exit, record.exited, record.restarts) == (None, False, 0)
        self.tale(self.uid).check()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """The guest, booted once; in the end it goes and leaves nothing, and its disk has no gap."""
    rootfs = bareguest.rootfs(tmp_path_factory.mktemp("image") / "rootfs.erofs")
    async with make_rig(zygote, orphan_sweep_seconds=0.5) as rig:
        bareguest.artifacts()  # the kernel, once for this machine
        furnish_for_qemu(rig.site, rootfs, cache_dir() / "kernels")
        scene = Scene(rig)
        rig.restart()
        await scene.boot()
        yield scene
        await scene.next_agent()
        await rig.world.until(A, "Stopped")
        written = journal(rig.site.places.overlay(scene.uid))
        assert written == list(range(1, len(written) + 1))
        assert len(written) >= scene.tale(scene.uid).last
        await rig.world.until_gone(A)
        await eventually(lambda: rig.left() == [], rig.left)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(whole: Scene) -> AsyncIterator[Scene]:
    """A in the mode that the test before left it in; only A is left after each test."""
    yield whole
    if whole.rig.world.exists(F):
        await whole.next_agent()
        await whole.rig.world.until_gone(F)
    await whole.clean()
    whole.is_well()


def armed(points: tuple[str, ...] | list[str], action: str) -> str:
    return ",".join(f"{point}={action}" for point in points)


def found(scene: Scene, at: int, what: str) -> list[str]:
    """The crash points that were passed since, in the order of their first passage."""
    points = list(dict.fromkeys(PASSED.findall(scene.said(at))))
    assert {point.split(".")[1] for point in points} >= STEPS[what]
    return points


async def test_agent_killed_while_it_copies_memory_begins_anew(scene: Scene) -> None:
    memory = scene.rig.site.places.memory

    def begun() -> bool:
        return any(path.stat().st_blocks for path in memory.glob("*/.*.tmp~"))

    scene.rig.world.ask(A, "Standby")
    async with asyncio.timeout(60):
        while not begun():  # noqa: ASYNC110 - it lasts some milliseconds, and nothing tells of it
            await asyncio.sleep(0)
    await scene.next_agent()
    await scene.rig.world.until(A)
    await scene.rig.world.until(A, "Running")
    await scene.counts_on(scene.uid)


async def crashing(
    scene: Scene, points: list[str], do: Callable[[], object], over: Callable[[], bool]
) -> list[str]:
    """Do it with agents that die, one after the other, each at the first of the points it passes.

    Gives the points that none of them came to: what one does in the step that another one died in.
    """
    left, at = list(points), await scene.next_agent(armed(points, "kill"))
    do()
    while True:
        await eventually(
            lambda: scene.rig.site.agent.dead or over(),
            lambda: (left, [each["status"] for each in scene.objects()]),
        )
        if not scene.rig.site.agent.dead:
            return left
        assert scene.rig.site.agent.code == KILLED
        died = DIED.findall(scene.said(at))
        left[:] = [point for point in left if point not in died]
        scene.rig.restart(armed(left, "kill"))


async def test_agent_killed_at_every_point_of_sleep_and_wake_changes_no_end(
    scene: Scene,
) -> None:
    world, points = scene.rig.world, {}
    await world.until(A, "Running")
    for mode in MODES:
        at = await scene.next_agent(armed(ALL, "sleep-0"))
        await world.until(A, mode)
        points[mode] = found(scene, at, mode)
    print(points)
    for _ in range(ROUNDS):
        for mode in MODES:
            points[mode] = await crashing(
                scene, points[mode], lambda mode=mode: world.ask(A, mode), lambda: world.settled(A)
            )
            assert (scene.rig.site.vmm(scene.uid) is None) is (mode == "Standby")
        await scene.counts_on(scene.uid)
        if not any(points.values()):
            return
    raise AssertionError(f"never reached: {points}")


@pytest.mark.parametrize("origin", ["Running", "Standby"])
async def test_agent_killed_at_every_point_of_a_fork_changes_no_end(
    scene: Scene, origin: str
) -> None:
    world, living = scene.rig.world, origin == "Running"
    await world.until(A, origin)
    vmm = scene.rig.site.vmm(scene.uid)
    at = await scene.next_agent(armed(ALL, "sleep-0"))
    await scene.fork("Standby", running=living)
    points = found(scene, at, "fork")
    print(points)
    for _ in range(ROUNDS):
        await scene.next_agent()
        await world.until_gone(F)
        came = scene.tale(scene.uid).last
        points = await crashing(
            scene,
            points,
            lambda: world.fork(F, A, "Standby", running=living, restartPolicy="Never"),
            lambda: world.settled(F) and world.settled(A),
        )
        assert scene.rig.site.vmm(scene.uid) == vmm
        if living:
            await scene.counts_on(scene.uid)
        if not points:
            break
    assert points == [], "never reached"
    uid = str(world.get(F)["metadata"]["uid"])  # the last of them
    await world.until(F, "Running")
    await scene.counts_on(uid)
    scene.tale(uid).check(boots=0)
    assert scene.tale(uid).ticks[0].count > came


@pytest.mark.parametrize(
    ("mode", "step", "end"),
    [
        ("Standby", "PauseVmm", "MemoryConsumed"),
        ("Standby", "SaveMemory", "MemoryConsumed"),
        ("Standby", "KillVmm", "Standby"),
        ("Running", "LoadMemory", "Running"),
        ("Running", "OrderWake", "Running"),
        ("Running", "ResumeVmm", "MemoryConsumed"),
        ("Running", "RepairGuest", "MemoryConsumed"),
    ],
)
async def test_vmm_killed_at_a_step_loses_memory_only_where_it_must(
    scene: Scene, mode: str, step: str, end: str
) -> None:
    """The victim is a fork of the sleeping guest, so that it need not boot."""
    world, site = scene.rig.world, scene.rig.site
    await world.until(A, "Standby")
    uid = await scene.fork("Standby" if mode == "Running" else "Running")
    if mode == "Standby":
        await scene.counts_on(uid)
    point = f"step.{step}.before"
    at = await scene.next_agent(f"{point}=stop")
    world.ask(F, mode)
    await eventually(lambda: f"failpoint {point}: stop" in scene.said(at))
    vmm = site.vmm(uid)
    assert vmm is not None
    os.kill(vmm.pid, signal.SIGKILL)
    await eventually(lambda: site.vmm(uid) is None)
    site.agent.signal(signal.SIGCONT)
    if end in MODES:
        await world.until(F)
        await world.until(F, "Running")
        await scene.counts_on(uid)
        scene.tale(uid).check(boots=0)
        return
    said = await world.until_reason(F, end)
    assert said["status"] == "False"
    assert world.state(F) == "Stopped"
    assert "snapshot" not in world.get(F)["status"]
    assert site.record(uid).exited
    assert len(scene.tale(uid).of("start")) == 0, "restartPolicy is Never"
