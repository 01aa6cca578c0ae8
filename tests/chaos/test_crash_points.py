"""An agent that is killed before or after any step, in any operation, changes no end of it.

The sweep: for each operation and each step in it, the agent dies there, and once more if the new
one comes past the same point. Afterwards all is as if nothing had happened. VMMs are hollow.
"""

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from controller.host import failpoint
from controller.host.process import is_alive
from tests.agentkit import IMAGE, KILLED, Rig, eventually
from tests.chaos.life import STEP_POINTS, Life

SENTINEL = b"still the same disk"
A = "a"
START_POINTS = ("start.before-spawn", "start.spawned")  # inside one step


@dataclass
class Run:
    """One operation on one Instance, and what is to be compared at its end."""

    rig: Rig
    uid: str = ""
    inode: int = 0
    marks: dict[str, object] = field(default_factory=dict)

    def mark_disk(self) -> None:
        """Write what must be found again."""
        overlay = self.rig.site.places.overlay(self.uid)
        with overlay.open("r+b") as disk:
            disk.seek(-len(SENTINEL), os.SEEK_END)
            disk.write(SENTINEL)
        self.inode = overlay.stat().st_ino

    def check_disk(self) -> None:
        """It is the same file with the same content."""
        overlay = self.rig.site.places.overlay(self.uid)
        assert overlay.stat().st_ino == self.inode
        assert overlay.read_bytes().endswith(SENTINEL)


Part = Callable[[Run], Awaitable[None]]


async def _nothing(run: Run) -> None:
    pass


async def _running(run: Run) -> None:
    run.uid = await run.rig.run(A, restartPolicy="OnFailure")
    run.mark_disk()


async def _paused(run: Run) -> None:
    await _running(run)
    await run.rig.world.until(A, "Paused")


async def _stopped(run: Run) -> None:
    await _running(run)
    await run.rig.world.until(A, "Stopped")


async def _failed(run: Run) -> None:
    run.uid = await run.rig.run(A, restartPolicy="Never")
    run.mark_disk()
    run.rig.site.happen(run.uid, "exit 3")
    await run.rig.world.until_reason(A, "Failed")


async def _create(run: Run) -> None:
    run.uid = run.rig.world.create(A, image=IMAGE)


def _ask(mode: str) -> Part:
    async def ask(run: Run) -> None:
        run.rig.world.ask(A, mode)

    return ask


async def _exit(run: Run) -> None:
    run.rig.site.happen(run.uid, "exit 3")


async def _raise_epoch(run: Run) -> None:
    run.rig.world.status(A, epoch=2)


async def _delete(run: Run) -> None:
    run.rig.world.delete(A)


async def _is_settled(run: Run) -> None:
    await run.rig.world.until(A)
    record = run.rig.site.record(run.uid)
    assert (record.exited, record.restarts, record.tombstone) == (False, 0, False)


async def _is_released(run: Run) -> None:
    await _is_settled(run)
    said = run.rig.world.condition(A, "Scheduled")
    assert (said["status"], said["reason"]) == ("False", "Released")
    assert run.rig.site.record(run.uid).open is None


async def _was_restarted(run: Run) -> None:
    def restarted() -> bool:
        return run.rig.site.starts(run.uid) == 2 and run.rig.world.settled(A)

    await eventually(restarted, lambda: run.rig.world.get(A)["status"])
    assert run.rig.site.record(run.uid).restarts == 1, "one failure was counted twice, or never"


async def _has_epoch_2(run: Run) -> None:
    await eventually(lambda: run.rig.site.record(run.uid).epoch == 2)
    await run.rig.world.until(A)


async def _is_gone(run: Run) -> None:
    await run.rig.world.until_gone(A)


@dataclass(frozen=True)
class Operation:
    """What is done, and the steps in it. A number: which passage since the agent started."""

    before: Part
    do: Part
    end: Part
    boots: int | None  # of the guest, from its creation to the end of the operation
    steps: tuple[str, ...]


OPERATIONS = {
    "create": Operation(
        _nothing, _create, _is_settled, 1,
        ("CreateRecord", "CreateOverlay", "FinishProvision", "FetchImage", "PinImage",
         "PrepareRun", "StartVmm", "OrderBoot", "ResumeVmm"),
    ),
    "pause": Operation(_running, _ask("Paused"), _is_settled, 1, ("PauseVmm",)),
    "resume": Operation(_paused, _ask("Running"), _is_settled, 1, ("ResumeVmm:2",)),
    "stop": Operation(
        _running, _ask("Stopped"), _is_released, 1,
        ("OrderStop", "ShutDownGuest", "KillVmm", "CloseRun", "ReleaseReservation"),
    ),
    "stop-paused": Operation(
        _paused, _ask("Stopped"), _is_released, 1,
        ("OrderStop", "PowerDown", "ResumeVmm:2", "KillVmm", "CloseRun"),
    ),
    "start-again": Operation(
        _stopped, _ask("Running"), _is_settled, 2,
        ("PrepareRun:2", "StartVmm:2", "OrderBoot:2", "ResumeVmm:2"),
    ),
    "restart": Operation(
        _running, _exit, _was_restarted, 2,
        ("NoteExit", "KillVmm", "CloseRun", "PrepareRun:2", "StartVmm:2", "OrderBoot:2",
         "ResumeVmm:2"),
    ),
    "forget-exit": Operation(_failed, _ask("Stopped"), _is_released, 1, ("ClearExit",)),
    "new-epoch": Operation(_stopped, _raise_epoch, _has_epoch_2, 1, ("AdoptEpoch",)),
    "delete": Operation(
        _running, _delete, _is_gone, None,
        ("WriteTombstone", "OrderStop", "ShutDownGuest", "KillVmm", "CloseRun", "DestroyDisks",
         "RemoveRecord", "DropFinalizer"),
    ),
}  # fmt: skip


def _cases() -> Iterator[tuple[str, str]]:
    for name, operation in OPERATIONS.items():
        for step in operation.steps:
            word, _, passage = step.partition(":")
            for when in ("before", "after"):
                yield name, f"step.{word}.{when}" + (f":{passage}" if passage else "")


def test_the_sweep_has_every_crash_point() -> None:
    swept = {point.partition(":")[0] for _, point in _cases()}
    # the operator's are swept in test_cluster_faults, those of memory in test_sleep_crash_points
    assert swept == set(STEP_POINTS)
    assert {*swept, *START_POINTS} <= set(failpoint.registered())


@pytest.mark.parametrize(("name", "point"), list(_cases()))
async def test_agent_killed_at_a_step_changes_no_end(rig: Rig, name: str, point: str) -> None:
    operation, run = OPERATIONS[name], Run(rig)
    first = rig.restart(f"{point}=kill")
    await operation.before(run)
    vmm = rig.site.vmm(run.uid) if run.uid else None
    await operation.do(run)
    assert await first.ended() == KILLED, "the point was never reached"
    again = rig.restart(f"{point.partition(':')[0]}=kill")
    await _end_or_death(rig, operation, run, again)
    await again.kill()
    rig.restart()
    await operation.end(run)
    if run.inode and name != "delete":
        run.check_disk()
    if name in ("pause", "resume"):
        assert rig.site.vmm(run.uid) == vmm, "the guest lives in another VMM"
    if operation.boots is not None:
        assert rig.site.starts(run.uid) == operation.boots
        assert operation.boots <= rig.site.record(run.uid).run <= operation.boots + 2
    if rig.world.exists(A):
        await rig.world.until_gone(A)
    assert rig.left() == []


async def _end_or_death(rig: Rig, operation: Operation, run: Run, agent: object) -> None:
    """Until the second agent died at the same point, too, or had no reason to come there."""

    def over() -> bool:
        if rig.site.agent.dead:
            return True
        if operation.end is _is_gone:
            return not rig.world.exists(A)
        if operation.end is _was_restarted:
            return rig.site.starts(run.uid) == 2 and rig.world.settled(A)
        if operation.end is _has_epoch_2:
            return rig.site.record(run.uid).epoch == 2
        return rig.world.settled(A)

    await eventually(over, lambda: rig.world.get(A)["status"])


async def test_one_life_with_a_crash_at_every_point_is_a_life(rig: Rig) -> None:
    life = Life(rig, A, hypervisor="hollow")
    await life.live()
    assert life.missed() == set()
    assert rig.left() == []


@pytest.mark.parametrize("seed", range(4))
async def test_crashes_at_any_three_points_change_no_end(rig: Rig, seed: int) -> None:
    points = random.Random(seed).sample(STEP_POINTS, 3)
    print(points)
    life = Life(rig, A, hypervisor="hollow", points=set(points))
    await life.live()
    assert life.missed() == set()
    assert rig.left() == []


@pytest.mark.parametrize("point", START_POINTS)
async def test_vmm_that_nobody_noted_is_found_by_its_lock_and_begun_anew(
    rig: Rig, point: str
) -> None:
    uid = rig.world.create(A)
    first = rig.restart(f"{point}=kill")
    assert await first.ended() == KILLED
    record, vmm = rig.site.record(uid), rig.site.vmm(uid)
    assert record.open is not None
    assert record.open.vmm is None
    assert (vmm is not None) == (point == "start.spawned")
    rig.restart()
    await rig.world.until(A)
    assert rig.site.starts(uid) == 1
    if vmm is not None:
        assert not is_alive(vmm), "its log keeper could never be replaced"
    record = rig.site.record(uid)
    assert record.open is not None
    assert record.open.vmm is not None
    assert (record.restarts, record.exit) == (0, None), "it never ran"
    await rig.world.until_gone(A)
    assert rig.left() == []
