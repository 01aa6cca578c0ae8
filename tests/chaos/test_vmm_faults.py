"""VMMs and guests that die, end, reboot or are meddled with: noticed, and answered by policy.

Faults F70 and F72 of the fault table, drift, F42; VMMs are hollow.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.host.process import Identity, is_alive
from tests.agentkit import Rig, eventually

A = "a"
FREEZER = Path("/sys/fs/cgroup/freezer")


def kill_vmm(rig: Rig, uid: str) -> Identity:
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    os.kill(vmm.pid, signal.SIGKILL)
    return vmm


async def booting(rig: Rig, **spec: str) -> str:
    """An Instance whose guest never starts its workload; its UID."""
    uid = rig.world.create(A, **spec)
    rig.site.order(uid, "workload=hang")
    await eventually(
        lambda: rig.site.vmm(uid) is not None and rig.site.record(uid).open.boot_ordered  # type: ignore[union-attr]
    )
    return uid


async def noticed(rig: Rig, uid: str) -> float:
    """Seconds until the record knows that the run is over."""
    begun = time.monotonic()
    await eventually(lambda: rig.site.record(uid).exit is not None)
    return time.monotonic() - begun


@pytest.mark.parametrize("when", ["Running", "Paused", "booting"])
async def test_death_of_a_vmm_is_noticed_and_policy_never_leaves_it_down(
    rig: Rig, when: str
) -> None:
    rig.restart()
    if when == "booting":
        uid = await booting(rig)
    else:
        uid = await rig.run(A)
        await rig.world.until(A, when)
    kill_vmm(rig, uid)
    took = await noticed(rig, uid)
    print(f"noticed after {took * 1000:.0f} ms")
    ready = await rig.world.until_reason(A, "Failed")
    assert "the VMM died" in ready["message"]
    assert rig.world.state(A) == "Stopped"
    assert rig.world.condition(A, "Exited")["status"] == "True"
    assert rig.world.condition(A, "Scheduled")["reason"] == "Released"
    assert rig.world.condition(A, "Stalled") == {}
    assert took < 5  # a second, on a machine that has nothing else to do


@pytest.mark.parametrize("when", ["Running", "Paused", "booting"])
@pytest.mark.parametrize("policy", ["OnFailure", "Always"])
async def test_death_of_a_vmm_is_answered_with_a_new_one_on_the_same_disk(
    rig: Rig, when: str, policy: str
) -> None:
    rig.restart()
    if when == "booting":
        uid = await booting(rig, restartPolicy=policy)
        rig.site.order(uid)
    else:
        uid = await rig.run(A, restartPolicy=policy)
        await rig.world.until(A, when)
    inode = rig.site.places.overlay(uid).stat().st_ino
    dead = kill_vmm(rig, uid)
    await eventually(lambda: rig.site.vmm(uid) not in (None, dead))
    await rig.world.until(A)
    assert rig.site.places.overlay(uid).stat().st_ino == inode
    assert rig.site.record(uid).restarts == 1


async def test_restart_waits_for_its_back_off_and_says_so(rig: Rig) -> None:
    rig.restart(restart_backoff_seconds=3.0, restart_backoff_cap_seconds=3.0)
    uid = await rig.run(A, restartPolicy="Always")
    kill_vmm(rig, uid)
    ready = await rig.world.until_reason(A, "CrashLoopBackOff")
    assert "the VMM died; restart 1 comes after a back-off of 3 s" in ready["message"]
    assert rig.site.vmm(uid) is None
    assert rig.world.condition(A, "Scheduled")["status"] == "True", "a back-off keeps it"
    await rig.site.agent.kill()  # an agent's restart does not cut the back-off short
    rig.restart()
    await rig.world.until(A)
    record = rig.site.record(uid)
    assert record.open is not None
    assert record.open.boot_ordered is not None
    assert record.retry_after is not None
    assert record.open.boot_ordered.seconds >= record.retry_after.seconds


@pytest.mark.parametrize(
    ("happens", "code", "message"),
    [
        ("exit 0", 0, "exited 0"),
        ("exit 3", 3, "exited 3"),
        ("signal 9", 137, "killed by signal 9"),
        ("panic", None, "kernel panic"),
        ("crash", None, "the VMM died"),
    ],
)
async def test_end_of_a_guest_is_told_and_lasts_until_stopped_was_seen(
    rig: Rig, happens: str, code: int | None, message: str
) -> None:
    rig.restart()
    uid = await rig.run(A)
    rig.site.happen(uid, happens)
    ready = await rig.world.until_reason(A, "Completed" if code == 0 else "Failed")
    assert ready["status"] == "False"
    told = rig.world.get(A)["status"]["exit"]
    assert told.get("code") == code
    assert message in told["message"]
    await rig.site.agent.kill()
    rig.restart()
    await rig.world.until(A, "Stopped")
    assert rig.world.condition(A, "Exited") == {}
    await rig.world.until(A, "Running")
    assert "exit" not in rig.world.get(A)["status"]
    assert rig.site.starts(uid) == 2


async def test_exit_code_that_is_late_on_its_way_to_the_disk_is_waited_for(rig: Rig) -> None:
    """The VMM says that it is over before the log keeper had time to write why."""
    rig.restart()
    uid = await rig.run(A)
    opened = rig.site.record(uid).open
    assert opened is not None
    assert opened.vmm is not None
    keeper = opened.vmm.keeper.pid
    os.kill(keeper, signal.SIGSTOP)
    try:
        rig.site.happen(uid, "exit 3")
        await asyncio.sleep(0.3)  # any number of looks
    finally:
        os.kill(keeper, signal.SIGCONT)
    await rig.world.until_reason(A, "Failed")
    assert rig.world.get(A)["status"]["exit"] == {"code": 3, "message": "exited 3"}


async def test_guest_that_powers_off_without_a_word_is_not_waited_for_for_ever(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    opened = rig.site.record(uid).open
    assert opened is not None
    assert opened.vmm is not None
    keeper = opened.vmm.keeper.pid
    os.kill(keeper, signal.SIGSTOP)
    try:
        rig.site.happen(uid, "exit 3")
        await rig.world.until_reason(A, "Completed")
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert "powered itself off" in rig.world.get(A)["status"]["exit"]["message"]


async def test_reboot_from_inside_boots_again_and_is_no_exit(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    rig.site.happen(uid, "reboot")
    await eventually(lambda: rig.site.starts(uid) == 2 and rig.world.settled(A))
    record = rig.site.record(uid)
    assert (record.exit, record.restarts, record.exited) == (None, 1, False)


async def test_guest_paused_or_resumed_behind_our_back_is_put_right(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    resumes = rig.site.log.read_text().count(": ResumeVmm: ")
    begun = time.monotonic()
    rig.site.happen(uid, "pause")
    await eventually(lambda: rig.site.log.read_text().count(": ResumeVmm: ") > resumes)
    print(f"resumed after {(time.monotonic() - begun) * 1000:.0f} ms")
    await rig.world.until(A)
    await rig.world.until(A, "Paused")
    pauses = rig.site.log.read_text().count(": PauseVmm: ")
    rig.site.happen(uid, "resume")
    await eventually(lambda: rig.site.log.read_text().count(": PauseVmm: ") > pauses)
    await rig.world.until(A)
    assert rig.site.vmm(uid) == vmm
    assert rig.site.starts(uid) == 1


async def test_guest_that_a_full_disk_held_goes_on_when_there_is_space(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    rig.site.happen(uid, "storage-full")
    await rig.world.until(A)
    await eventually(lambda: ": ResumeVmm: " in rig.site.log.read_text())
    assert rig.site.vmm(uid) == vmm


async def test_guest_that_ignores_the_stop_is_killed_at_its_deadline(rig: Rig) -> None:
    rig.restart()
    uid = rig.world.create(A, stopTimeoutSeconds=0)
    rig.site.order(uid, "shutdown=hang")
    await rig.world.until(A)
    await rig.world.until(A, "Stopped")
    assert rig.site.vmm(uid) is None
    assert rig.site.record(uid).exit is None, "a stop that was ordered is no exit"


@pytest.mark.parametrize("fault", ["die", "hang"])
async def test_vmm_that_fails_to_start_is_said_and_tried_again(rig: Rig, fault: str) -> None:
    rig.restart()
    uid = rig.world.create(A)
    rig.site.order(uid, f"start={fault}")
    await eventually(lambda: "StartVmm failed" in rig.site.log.read_text(), seconds=60)
    rig.site.order(uid)
    await eventually(lambda: rig.world.ready(A).get("status") == "False")
    rig.world.edit(A, stopTimeoutSeconds=3)  # a new wish is a new chance
    await rig.world.until(A, seconds=90)
    await rig.world.until_gone(A)
    assert rig.left() == []


@contextlib.asynccontextmanager
async def unkillable(vmm: Identity) -> AsyncIterator[None]:
    """As on a dead disk: nothing ends this process before the end of the block."""
    place = FREEZER / f"torpor-test-{os.getpid()}"
    place.mkdir()
    try:
        (place / "cgroup.procs").write_text(str(vmm.pid))
        (place / "freezer.state").write_text("FROZEN")
        await eventually(lambda: (place / "freezer.state").read_text().strip() == "FROZEN")
        yield
    finally:
        (place / "freezer.state").write_text("THAWED")
        with contextlib.suppress(ProcessLookupError, OSError):
            (FREEZER / "cgroup.procs").write_text(str(vmm.pid))
        await eventually(lambda: not (place / "cgroup.procs").read_text())
        place.rmdir()


@pytest.mark.skipif(not (FREEZER / "cgroup.procs").exists(), reason="no freezer (cgroup v1) here")
async def test_delete_of_what_cannot_be_killed_stays_with_everything_in_place(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    async with unkillable(vmm):
        rig.world.delete(A)
        ready = await rig.world.until_reason(A, "VmmUnkillable", seconds=90)
        assert "did not die" in ready["message"]
        assert rig.world.get(A)["metadata"]["finalizers"]
        assert rig.site.vmm(uid) == vmm
        assert rig.site.places.overlay(uid).exists(), "the disk goes last"
        assert rig.site.places.run_of(rig.site.record(uid)).exists()
    await rig.world.until_gone(A, seconds=90)
    assert rig.left() == []


async def test_nothing_is_released_while_the_run_lock_is_held(rig: Rig) -> None:
    """The process looks dead and its lock is not free: somebody has a piece of it."""
    rig.restart()
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    piece = lock_of(vmm, rig.site.places.lock(uid))
    try:
        rig.world.delete(A)
        ready = await rig.world.until_reason(A, "Timeout", seconds=60)
        assert "KillVmm took too long" in ready["message"]
        assert not is_alive(vmm)
        assert rig.world.get(A)["metadata"]["finalizers"]
        assert rig.site.places.overlay(uid).exists()
    finally:
        os.close(piece)
    await rig.world.until_gone(A, seconds=60)
    assert rig.left() == []


def lock_of(vmm: Identity, path: Path) -> int:
    """The VMM's own open run lock, shared: as a child that it left behind would hold it."""
    import ctypes

    theirs = next(
        int(fd.name)
        for fd in Path(f"/proc/{vmm.pid}/fd").iterdir()
        if os.path.realpath(fd) == str(path)
    )
    pidfd = os.pidfd_open(vmm.pid)
    try:
        got = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, theirs, 0)  # pidfd_getfd
        assert got >= 0, os.strerror(ctypes.get_errno())
        return int(got)
    finally:
        os.close(pidfd)
