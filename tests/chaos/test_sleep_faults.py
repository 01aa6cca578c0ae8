"""Sleep, wake and fork with VMMs that are killed or stopped in the middle, and with bad disks.

While the agent is held at a crash point, the fault strikes; then it goes on. VMMs are hollow and
count: none goes back, none is in two places, and what is lost is only what no rule promised.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.host.process import Identity
from tests.agentkit import Rig, Zygote, eventually
from tests.agentkit import rig as make_rig
from tests.chaos.witness import Witness, count, journal, strays

A, F = "a", "f"
SWEEP_SECONDS = 0.3


@pytest.fixture
async def rig(zygote: Zygote) -> AsyncIterator[Rig]:
    """Guests that count, and a node that looks for litter all the time."""
    async with make_rig(zygote, orphan_sweep_seconds=SWEEP_SECONDS) as made:
        made.site.order_all("tick=on")
        yield made


async def held_at(rig: Rig, point: str) -> None:
    """A new agent, which will stop at this point, once."""
    if rig.site.agents:
        await rig.site.agent.kill()
    rig.restart(f"{point}=stop")


async def reached(rig: Rig) -> None:
    """The newest agent stands at its point."""
    await rig.site.agent.stands()


def go_on(rig: Rig) -> None:
    """Let it go on."""
    rig.site.agent.signal(signal.SIGCONT)


def clear_log(rig: Rig) -> None:
    """Forget what agents said so far."""
    os.truncate(rig.site.log, 0)


def strike(rig: Rig, uid: str, number: int = signal.SIGKILL) -> Identity:
    """Send a signal to the VMM that lives."""
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    os.kill(vmm.pid, number)
    return vmm


async def tidy(rig: Rig) -> None:
    """Nothing lies there that nobody needs."""
    await eventually(lambda: not strays(rig), lambda: "\n".join(strays(rig)))


async def gone(rig: Rig, *names: str) -> None:
    """Delete all; nothing of them is left."""
    for name in names:
        await rig.world.until_gone(name)
    await eventually(lambda: rig.left() == [], rig.left)


def reasons(rig: Rig) -> set[str]:
    """Every reason that Ready was ever given."""
    found = set()
    for request in rig.world.server.requests:
        if request.method == "PATCH":
            said = (request.body.get("status") or {}).get("conditions") or ()
            found |= {each["reason"] for each in said if each["type"] == "Ready"}
    return found


# --- VMMs that are killed -------------------------------------------------------------------------

BEFORE_COMMIT = ("step.OrderSave.before", "step.SaveMemory.before", "memory.sync.before")
AFTER_COMMIT = ("memory.commit.after", "step.CloseRun.before")


async def test_vmm_killed_while_it_falls_asleep_is_booted_again_or_asleep(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A, restartPolicy="OnFailure")
    witness = Witness(rig)
    for point in (*BEFORE_COMMIT, *AFTER_COMMIT):
        clear_log(rig)
        boots, came = rig.site.starts(uid), witness.look(uid)
        await held_at(rig, point)
        rig.world.ask(A, "Standby")
        await reached(rig)
        if point != "step.CloseRun.before":
            strike(rig, uid)
        go_on(rig)
        await rig.world.until(A)
        witness.look(uid)
        lost = point in BEFORE_COMMIT
        assert rig.site.starts(uid) == boots + lost, point
        assert rig.site.record(uid).restarts == (1 if lost else 0), point
        await tidy(rig)
        for mode in ("Running", "Stopped", "Running") if lost else ("Running",):
            await rig.world.until(A, mode)  # Stopped forgets the failure
            assert witness.look(uid) >= (0 if lost else came)
    await gone(rig, A)


async def test_vmm_killed_while_it_wakes_wakes_again_unless_its_memory_is_used(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A, restartPolicy="OnFailure")
    witness = Witness(rig)
    unused = ("step.LoadMemory.before", "step.OrderWake.before")
    used = (
        "step.ResumeVmm.before",
        "step.RepairGuest.after",
    )
    for point in (*unused, *used):
        await rig.world.until(A, "Standby")
        clear_log(rig)
        boots, came = rig.site.starts(uid), witness.look(uid)
        await held_at(rig, point)
        rig.world.ask(A, "Running")
        await reached(rig)
        strike(rig, uid)
        go_on(rig)
        await rig.world.until(A)
        assert rig.site.starts(uid) == boots + (point in used), point
        assert witness.look(uid) >= (journal(rig.site, uid).last if point in used else came)
        await tidy(rig)
        if point in used:
            for mode in ("Stopped", "Running"):
                await rig.world.until(A, mode)
    await gone(rig, A)


async def test_memory_that_died_after_its_wake_is_told_and_not_used_again(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A, restartPolicy="Never")
    await rig.world.until(A, "Standby")
    await held_at(rig, "step.ResumeVmm.before")
    rig.world.ask(A, "Running")
    await reached(rig)
    strike(rig, uid)
    go_on(rig)
    await rig.world.until_reason(A, "MemoryConsumed")
    assert rig.world.state(A) == "Stopped"
    await tidy(rig)
    await rig.world.until(A, "Stopped")
    await rig.world.until(A, "Running")
    assert rig.site.starts(uid) == 2
    Witness(rig).look(uid)
    await gone(rig, A)


async def test_source_killed_while_it_is_forked_is_booted_again_and_forked(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A, restartPolicy="OnFailure")
    witness = Witness(rig)
    for point in ("step.TakeFork.before", "memory.write.before", "memory.sync.before"):
        clear_log(rig)
        boots = rig.site.starts(uid)
        witness.look(uid)
        await held_at(rig, point)
        fork = rig.world.fork(F, A, running=True, restartPolicy="Never")
        witness.born(fork, uid, memory=False)
        await reached(rig)
        strike(rig, uid)
        go_on(rig)
        await eventually(lambda b=boots: rig.site.starts(uid) > b)  # type: ignore[misc]
        for name in (A, F):
            await rig.world.until(name)
        assert rig.site.starts(uid) == boots + 1, point
        # a source that is down is forked as one: disk only
        assert rig.site.starts(fork) in ((0,) if point == "memory.sync.before" else (0, 1))
        witness.look(uid)
        witness.look(fork)
        await tidy(rig)
        await rig.world.until_gone(F)
        for mode in ("Stopped", "Running"):
            await rig.world.until(A, mode)
    await gone(rig, A)


# --- VMMs that do not answer ----------------------------------------------------------------------


@pytest.mark.parametrize("fork", [False, True], ids=["sleep", "fork"])
async def test_vmm_that_stands_while_it_is_saved_is_unknown_and_saved_later(
    rig: Rig, fork: bool
) -> None:
    rig.restart()
    uid = await rig.run(A)
    witness = Witness(rig)
    witness.look(uid)
    point = "step.TakeFork.before" if fork else "step.SaveMemory.before"
    await held_at(rig, point)
    if fork:
        child = rig.world.fork(F, A, "Standby", running=True)
    else:
        rig.world.ask(A, "Standby")
    await reached(rig)
    vmm = strike(rig, uid, signal.SIGSTOP)
    go_on(rig)
    try:
        await eventually(lambda: "failed: " in rig.site.log.read_text(), seconds=90)
        if not fork:
            await eventually(lambda: rig.world.state(A) == "Unknown", lambda: rig.world.get(A))
        assert rig.site.vmm(uid) == vmm
    finally:
        os.kill(vmm.pid, signal.SIGCONT)
    for name in (A, F) if fork else (A,):
        await rig.world.until(name, seconds=90)
    if fork:
        assert rig.site.vmm(uid) == vmm
        await rig.world.until(F, "Running")
        assert rig.site.starts(child) == 0
        witness.look(child)
    else:
        await rig.world.until(A, "Running")
    assert rig.site.starts(uid) == 1
    witness.look(uid)
    await tidy(rig)
    await gone(rig, A, *([F] if fork else []))


async def test_vmm_that_stands_while_it_loads_is_ended_and_another_one_wakes(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    await rig.world.until(A, "Standby")
    witness = Witness(rig)
    came = witness.look(uid)
    await held_at(rig, "step.LoadMemory.before")
    rig.world.ask(A, "Running")
    await reached(rig)
    stopped = strike(rig, uid, signal.SIGSTOP)
    go_on(rig)
    await rig.world.until(A, seconds=90)
    assert rig.site.vmm(uid) != stopped
    assert rig.site.starts(uid) == 1
    assert witness.look(uid) >= came
    await tidy(rig)
    await gone(rig, A)


@pytest.mark.parametrize("fork", [False, True], ids=["sleep", "fork"])
async def test_guest_that_somebody_lets_go_on_while_it_is_copied_is_copied_again(
    rig: Rig, fork: bool
) -> None:
    rig.restart()
    uid = await rig.run(A)
    witness = Witness(rig)
    await held_at(rig, "memory.write.after")
    child = rig.world.fork(F, A, running=True) if fork else ""
    if not fork:
        rig.world.ask(A, "Standby")
    await reached(rig)
    witness.look(uid)
    rig.site.happen(uid, "resume")
    count_then = journal(rig.site, uid).last
    await eventually(lambda: journal(rig.site, uid).last > count_then)
    go_on(rig)
    await eventually(lambda: "went on while" in rig.site.log.read_text())
    for name in (A, F) if fork else (A,):
        await rig.world.until(name)
        await rig.world.until(name, "Running")
    for each in filter(None, (uid, child)):
        assert rig.site.starts(each) == (each == uid)
        witness.look(each)
    await tidy(rig)
    await gone(rig, A, *([F] if fork else []))


# --- bad disks ------------------------------------------------------------------------------------

WRITES = ("memory.write.before", "memory.sync.before", "memory.publish.before",
          "memory.folder.before", "memory.commit.before")  # fmt: skip


@pytest.mark.parametrize("mode", ["Running", "Paused"])
async def test_write_that_fails_leaves_the_guest_as_it_was_and_the_next_one_works(
    rig: Rig, mode: str
) -> None:
    rig.restart()
    uid = await rig.run(A)
    witness = Witness(rig)
    for number, point in enumerate(WRITES if mode == "Running" else WRITES[1::2]):
        error, reason = (("ENOSPC", "NoSpace"), ("EIO", "IOError"))[number % 2]
        await rig.world.until(A, "Running")
        await rig.world.until(A, mode)
        clear_log(rig)
        vmm, came = rig.site.vmm(uid), witness.look(uid)
        asked = len(rig.world.server.requests)
        await rig.site.agent.kill()
        rig.restart(f"{point}=raise-{error}")
        rig.world.ask(A, "Standby")
        await eventually(lambda: "SaveMemory failed" in rig.site.log.read_text())
        assert rig.site.vmm(uid) == vmm
        now = count(rig.site, uid)
        assert now is not None
        if mode == "Running":  # it goes on until it is tried again
            await eventually(lambda n=now: witness.look(uid) > n)  # type: ignore[misc]
        else:
            assert now == came
        await rig.world.until(A)
        del rig.world.server.requests[:asked]
        assert reason in reasons(rig), point
        await tidy(rig)
    assert rig.site.starts(uid) == 1
    await gone(rig, A)


async def test_fork_that_cannot_be_written_lets_its_source_go_on_and_is_made_later(
    rig: Rig,
) -> None:
    rig.restart()
    uid = await rig.run(A)
    vmm, witness = rig.site.vmm(uid), Witness(rig)
    for number, point in enumerate((*WRITES, "disk.copy.before")):
        error, reason = (("ENOSPC", "NoSpace"), ("EIO", "IOError"))[number % 2]
        clear_log(rig)
        asked = len(rig.world.server.requests)
        witness.look(uid)
        await rig.site.agent.kill()
        rig.restart(f"{point}=raise-{error}")
        fork = rig.world.fork(F, A, "Standby", running=True)
        await eventually(lambda: "TakeFork failed" in rig.site.log.read_text())
        now = witness.look(uid)
        await eventually(lambda n=now: witness.look(uid) > n)  # type: ignore[misc]
        await rig.world.until(F)
        del rig.world.server.requests[:asked]
        assert reason in reasons(rig), point
        assert (rig.site.vmm(uid), rig.world.settled(A)) == (vmm, True)
        assert journal(rig.site, fork).gaps == 0
        await tidy(rig)
        await rig.world.until_gone(F)
    await gone(rig, A)


@pytest.fixture
def small(rig: Rig) -> Path:
    """The memory store on a file system of its own with 24 MiB."""
    store = rig.site.places.memory
    store.mkdir(mode=0o711)
    options = "size=24m,mode=711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(store)], check=True)
    return store


def fill(directory: Path, leave: int) -> Path:
    """Take all space but ``leave`` bytes; the file to be removed."""
    found = os.statvfs(directory)
    filler = directory / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return filler


@pytest.mark.parametrize("mode", ["Running", "Paused"])
async def test_disk_that_fills_up_during_a_save_leaves_the_guest_as_it_was(
    rig: Rig, small: Path, mode: str
) -> None:
    rig.restart()
    uid = await rig.run(A)
    rig.site.happen(uid, "fill 8")
    await rig.world.until(A, mode)
    vmm, witness = rig.site.vmm(uid), Witness(rig)
    await held_at(rig, "step.SaveMemory.before")
    rig.world.ask(A, "Standby")
    await reached(rig)
    filler = fill(small, 1024 * 1024)
    go_on(rig)
    await rig.world.until_reason(A, "NoSpace")
    assert "SaveMemory failed" in rig.site.log.read_text()
    await eventually(lambda: "OrderSave failed" in rig.site.log.read_text())  # found out before
    assert rig.site.vmm(uid) == vmm
    await eventually(lambda: rig.world.state(A) == mode)
    now = witness.look(uid)
    if mode == "Running":
        await eventually(lambda: witness.look(uid) > now + 2)
    else:
        await asyncio.sleep(0.2)
        assert witness.look(uid) == now
    assert [path.name for path in small.glob("[0-9]*/*")] == []
    filler.unlink()
    await rig.world.until(A)
    await rig.world.until(A, "Running")
    assert rig.site.starts(uid) == 1
    assert witness.look(uid) >= now
    await gone(rig, A)


async def test_disk_without_room_for_a_save_never_disturbs_the_guest(rig: Rig, small: Path) -> None:
    rig.restart()
    uid = await rig.run(A)
    rig.site.happen(uid, "fill 8")
    filler, vmm = fill(small, 4 * 1024 * 1024), rig.site.vmm(uid)
    rig.world.ask(A, "Standby")
    ready = await rig.world.until_reason(A, "NoSpace")
    assert "are free" in ready["message"]
    assert "PauseVmm" not in rig.site.log.read_text()
    assert rig.site.vmm(uid) == vmm
    rig.world.ask(A, "Running")
    await rig.world.until(A)
    filler.unlink()
    await rig.world.until(A, "Standby")
    await gone(rig, A)
