"""An agent that is killed at any crash point of sleep, wake and fork changes no end of it.

For each operation: which points it passes is found out first and compared with what is written
here. Then, for each of them, the agent dies there, the next one dies there again if it comes past,
and the third one must end it as if nothing had happened. For every third point the second agent
finds no API server when it starts. One world per operation; VMMs are hollow and count.
"""

import json
import os
import re
import signal
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from controller.core.names import machine_id
from controller.host import failpoint
from controller.memory import commit
from controller.memory import rebasing as _  # noqa: F401 - registers its crash points
from controller.node import act as __  # noqa: F401 - these, too
from controller.node.act_memory import MEMORY_STEPS
from tests.agentkit import KILLED, Rig, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.witness import Witness, strays

A, F = "a", "f"
PASSED = re.compile(r"^failpoint (\S+): sleep-0$", re.MULTILINE)
SWEEP_SECONDS = 0.15  # what a crash left behind is collected by the walk over all Instances


@dataclass
class Run:
    """One world: the source, and the fork where there is one."""

    rig: Rig
    witness: Witness
    uid: str = ""
    fork: str = ""
    boots: int = 0  # of A, before the operation

    async def clean(self) -> None:
        """Wait until nothing lies there that nobody needs."""
        await eventually(lambda: not strays(self.rig), lambda: "\n".join(strays(self.rig)))


Part = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True)
class Operation:
    """``origin``: the modes A goes through before. ``fork``: whether one is made by it."""

    origin: tuple[str, ...]
    do: Part
    points: tuple[str, ...]
    end: str | None  # mode of A, None: gone
    fork: str | None = None  # where F ends
    extras: bool = False  # it passes other points, too, which others sweep
    long: bool = False  # it takes a while
    rebased: bool = False  # A has a new base at the end
    with_fault: str = ""  # more for the first agent, so that it comes past the point


def _ask(mode: str) -> Part:
    async def ask(run: Run) -> None:
        run.rig.world.ask(A, mode)

    return ask


def _fork(mode: str, *, running: bool = False, memory: bool = True) -> Part:
    async def fork(run: Run) -> None:
        run.fork = run.rig.world.fork(F, A, mode, running=running, restartPolicy="OnFailure")
        run.witness.born(run.fork, run.uid, memory=memory)

    return fork


async def _delete(run: Run) -> None:
    run.rig.world.delete(A)


async def _change_mind(run: Run) -> None:
    """Ask for sleep, and for the contrary once it has begun."""
    run.rig.world.ask(A, "Standby")
    await run.rig.site.agent.stands()
    run.rig.world.ask(A, "Running")
    run.rig.site.agent.signal(signal.SIGCONT)


async def _outgrow(run: Run) -> None:
    """Wake a sleeper, change more than half of its memory, and put it to sleep again."""
    await run.rig.world.until(A, "Running")
    run.rig.site.happen(run.uid, "fill 10")
    run.rig.world.ask(A, "Standby")


def _around(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{when}" for name in names for when in ("before", "after"))


def _steps(*names: str) -> tuple[str, ...]:
    return _around(*(f"step.{name}" for name in names))


_FILES = _around("memory.write", "memory.sync", "memory.publish")
_COMMIT = _around("memory.folder", "memory.commit")
_VOID, _UNLINK = _around("memory.void"), _around("memory.unlink")
_SAVE = (*_steps("OrderSave", "SaveMemory"), *_FILES, *_COMMIT)
_DOWN = _steps("KillVmm", "CloseRun", "ReleaseReservation")
_FILL = (*_steps("PrepareWake", "StartVmm", "LoadMemory"), "start.before-spawn", "start.spawned")
_GO = (*_steps("OrderWake", "ResumeVmm", "RepairGuest"), *_VOID)
_TAKE = (*_steps("CreateRecord", "TakeFork"), *_VOID, *_around("disk.copy"))

OPERATIONS = {
    "sleep": Operation(
        ("Running",), _ask("Standby"), (*_SAVE, *_steps("PauseVmm"), *_DOWN), "Standby"
    ),
    "sleep-first": Operation(
        ("Stopped", "Running"), _ask("Standby"), (*_SAVE, *_steps("PauseVmm"), *_DOWN), "Standby",
        long=True,
    ),
    "sleep-paused": Operation(
        ("Running", "Paused"), _ask("Standby"), (*_SAVE, *_DOWN), "Standby",
    ),
    "sleep-unused": Operation(("Standby", "Paused"), _ask("Standby"), _DOWN, "Standby"),
    "change-of-mind": Operation(
        ("Running",), _change_mind, _steps("CancelSave"), "Running", extras=True,
        with_fault="step.PauseVmm.before=stop",
    ),
    "wake": Operation(
        ("Standby",), _ask("Running"), (*_FILL, *_GO, *_UNLINK), "Running"
    ),
    "wake-paused": Operation(("Standby",), _ask("Paused"), _FILL, "Paused",),
    "go-on": Operation(
        ("Standby", "Paused"), _ask("Running"), (*_GO, *_UNLINK), "Running",
    ),
    "discard": Operation(
        ("Standby",), _ask("Stopped"), (*_steps("VoidSnapshot"), *_VOID, *_UNLINK), "Stopped"
    ),
    "new-base": Operation(
        ("Standby",), _outgrow,
        (*_around("memory.rebase", "memory.replace"), *_UNLINK), "Standby", extras=True,
        rebased=True,
    ),
    "fork-stopped": Operation(
        ("Stopped",), _fork("Stopped", memory=False), _TAKE, "Stopped", fork="Stopped"
    ),
    "fork-asleep": Operation(
        ("Standby",), _fork("Standby"), (*_TAKE, *_COMMIT), "Standby", fork="Standby"
    ),
    "fork-asleep-and-run": Operation(
        ("Standby",), _fork("Running"), (*_TAKE, *_COMMIT, *_FILL, *_GO), "Standby",
        fork="Running", long=True,
    ),
    "fork-living": Operation(
        ("Running",), _fork("Standby", running=True), (*_TAKE, *_FILES, *_COMMIT), "Running",
        fork="Standby",
    ),
    "fork-living-and-run": Operation(
        ("Running",), _fork("Running", running=True),
        (*_TAKE, *_FILES, *_COMMIT, *_FILL, *_GO, *_UNLINK), "Running", fork="Running", long=True,
    ),
    "delete-asleep": Operation(  # the rest of a deletion is swept in test_crash_points
        ("Standby",), _delete, (*_steps("DestroyDisks", "RemoveRecord"), *_UNLINK), None,
        extras=True, long=True,
    ),
}  # fmt: skip


def _swept(name: str) -> tuple[str, ...]:
    """The points of an operation at which agents are killed.

    Each point is swept in one of the short operations that pass it, in turn; one of memory in
    another one, too, that of a fork in all of them. With TORPOR_CHAOS_FULL in the environment every
    one is swept in all, long ones as well.
    """
    return tuple(point for point in OPERATIONS[name].points if name in _sweepers(point))


def _sweepers(point: str) -> tuple[str, ...]:
    passing = [name for name, each in OPERATIONS.items() if point in each.points]
    if os.environ.get("TORPOR_CHAOS_FULL"):
        return tuple(passing)
    short = [name for name in passing if not OPERATIONS[name].long] or passing
    if point in _steps("TakeFork"):
        return tuple(short)
    turn = zlib.crc32(point.encode())
    found = [short[turn % len(short)]]
    if point.startswith("memory.") and point.endswith("before"):
        found.append(passing[turn // 7 % len(passing)])
    return tuple(found)


def test_the_sweep_has_every_crash_point_of_sleep_wake_and_fork() -> None:
    swept = {point for name in OPERATIONS for point in _swept(name)}
    own = set(_steps(*(step.__name__ for step in MEMORY_STEPS)))
    known = failpoint.registered()
    assert own <= set(known)
    assert swept >= own | {
        point for point in known if point.startswith(("memory.", "start.", "disk."))
    }


@pytest.mark.parametrize("name", OPERATIONS)
async def test_agent_killed_during_sleep_wake_or_fork_changes_no_end(
    zygote: Zygote, name: str
) -> None:
    operation = OPERATIONS[name]
    async with make_rig(zygote, orphan_sweep_seconds=SWEEP_SECONDS) as rig:
        rig.site.order_all("tick=on")
        run = Run(rig, Witness(rig))
        rig.restart()
        await _compare_points(run, operation)
        for number, point in enumerate(_swept(name)):
            try:
                await _die_at(run, operation, point, alone=number % 3 == 2)
            except AssertionError as err:
                err.add_note(f"agents were killed at {point}")
                raise
        for left in filter(rig.world.exists, (A, F)):
            await rig.world.until_gone(left)
        await eventually(lambda: rig.left() == [], rig.left)


async def _compare_points(run: Run, operation: Operation) -> None:
    await _prepare(run, operation)
    at = run.rig.site.log.stat().st_size
    every = [f"{point}=sleep-0" for point in failpoint.registered()]
    await run.rig.site.agent.kill()
    run.rig.restart(",".join(filter(None, (*every, operation.with_fault))))
    await operation.do(run)
    await eventually(lambda: _over(run, operation), lambda: _status(run))
    await _check(run, operation)
    said = run.rig.site.log.read_bytes()[at:].decode()
    passed = set(PASSED.findall(said))
    if operation.with_fault:
        passed.add(operation.with_fault.partition("=")[0])
    assert passed >= set(operation.points)
    at_any_time = _around("memory.rebase", "memory.replace")  # when the node comes by
    assert operation.extras or passed <= {*operation.points, *at_any_time}


async def _die_at(run: Run, operation: Operation, point: str, *, alone: bool) -> None:
    """The whole of it for one point. ``alone``: the second agent starts without an API server."""
    rig = run.rig
    await _prepare(run, operation)
    vmm = rig.site.vmm(run.uid)
    await rig.site.agent.kill()
    fault = operation.with_fault if not operation.with_fault.startswith(f"{point}=") else ""
    first = rig.restart(",".join(filter(None, (f"{point}=kill", fault))))
    await operation.do(run)
    assert await first.ended() == KILLED, "the point was never reached"
    if alone:
        await rig.world.server.stop()
    begun = rig.site.log.read_text().count("VMMs taken over")
    again = rig.restart(f"{point}=kill")
    if alone:
        await eventually(lambda: rig.site.log.read_text().count("VMMs taken over") > begun)
        await rig.world.server.start()
    await eventually(lambda: again.dead or _over(run, operation), lambda: _status(run))
    await again.kill()
    rig.restart()
    await eventually(lambda: _over(run, operation), lambda: _status(run))
    await _check(run, operation)
    if operation.fork is not None and operation.end == "Running":
        assert rig.site.vmm(run.uid) == vmm, "the source lives in another VMM"


async def _prepare(run: Run, operation: Operation) -> None:
    world = run.rig.world
    if world.exists(F):
        await world.until_gone(F)
    if not world.exists(A):
        run.uid = await run.rig.run(A, restartPolicy="OnFailure")
    for mode in operation.origin:
        await world.until(A, mode)
    await run.clean()
    run.witness.look(run.uid)
    run.boots = run.rig.site.starts(run.uid)


def _over(run: Run, operation: Operation) -> bool:
    """Whether everything is as it shall be, and what is not needed any more is gone."""
    world = run.rig.world
    if operation.end is None:
        return not world.exists(A) and not strays(run.rig)
    if not world.settled(A) or world.state(A) != operation.end:
        return False
    if operation.fork is not None and not world.settled(F):
        return False
    return not strays(run.rig) and (not operation.rebased or _has_new_base(run))


def _has_new_base(run: Run) -> bool:
    home, record = run.rig.site.places.instance(run.uid), run.rig.site.record(run.uid)
    manifest = commit.read(home, record.disk_generation)
    return manifest is not None and manifest.delta is None


def _status(run: Run) -> object:
    names = filter(run.rig.world.exists, (A, F))
    return [run.rig.world.get(name)["status"] for name in names], strays(run.rig)


async def _check(run: Run, operation: Operation) -> None:
    site = run.rig.site
    if operation.end is None:
        assert not site.places.instance(run.uid).exists()
        return
    run.witness.look(run.uid)
    assert site.starts(run.uid) == run.boots, "its memory was lost"
    for uid in filter(None, (run.uid, run.fork if operation.fork else "")):
        record = site.record(uid)
        assert (record.exit, record.exited, record.restarts) == (None, False, 0)
        assert (record.open is None) == (site.vmm(uid) is None)
    if operation.fork is not None:
        run.witness.look(run.fork)
        assert site.starts(run.fork) == 0, "the fork was booted"
    if operation.fork == "Running":
        told = json.loads(site.ask(run.fork, "identity"))
        assert (told["hostname"], told["machine_id"]) == (F, machine_id(run.fork))
