# ruff: noqa: E501 - a table reads best with one case in a line
"""The planner as a table: one healthy look, one change of it, exactly these steps."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from controller.core import observed, steps
from controller.core.desired import Desired, Mode, Permit, RestartPolicy, Workload
from controller.core.invariants import problems
from controller.core.observed import (
    ABSENT,
    Ending,
    Exit,
    Guest,
    ImageFailed,
    ImagePulling,
    ImageReady,
    Lock,
    Observed,
    Unknown,
)
from controller.core.plan import plan
from controller.core.rules import Rules
from controller.core.state import State, all_edges, can_transition
from tests.values import DIGEST, HARDWARE, RULES, a_record, a_run, a_vmm, a_wish, seen, seen_running
from tests.world_memory import SNAPSHOT

NOW = 100.0
EXIT = Exit(3, "exited 3")
CRASHED = a_record(run=1, image_digest=DIGEST, exit=EXIT, restarts=2, retry_at=120.0)
BLIND = Unknown("I/O error")
BOOT = "PrepareRun StartVmm OrderBoot ResumeVmm"
TAKE_DOWN = "WriteTombstone DestroyDisks RemoveRecord DropFinalizer"
RUN, PAUSE, STOP, GONE = (
    a_wish(mode) for mode in (Mode.RUNNING, Mode.PAUSED, Mode.STOPPED, Mode.GONE)
)


def paused(**changes: Any) -> Observed:
    return seen_running(vmm=a_vmm(State.PAUSED), **changes)


def created(**changes: Any) -> Observed:
    record = a_run(boot_ordered=False, run_began_at=None)
    return replace(
        seen(record=record, lock=Lock.HELD, vmm=a_vmm(State.CREATED), guest=Guest()), **changes
    )


def shut(ending: Ending = Ending.POWERED_OFF, **record: Any) -> Observed:
    guest = Guest(True, EXIT) if ending is Ending.POWERED_OFF else Guest(True)
    vmm = a_vmm(State.SHUTDOWN, ending=ending)
    return seen_running(vmm=vmm, guest=guest, record=a_run(**record))


def dead(**record: Any) -> Observed:
    return seen_running(vmm=ABSENT, lock=Lock.FREE, record=a_run(**record))


def told(at: float, **changes: Any) -> Observed:
    """It runs, and was ordered to stop at boot time ``at``."""
    return seen_running(record=a_run(stop_ordered=True, stop_ordered_at=at), **changes)


CASES: dict[str, tuple[Desired, Observed, str]] = {
    # settled
    "it runs": (RUN, seen_running(), ""),
    "it is paused": (PAUSE, paused(), ""),
    "it is stopped and its reservation given back": (STOP, seen(record=a_record(released="pod-1")), ""),
    "it runs, though its reservation was lost": (replace(RUN, permit=Permit.WITHHELD), seen_running(), ""),
    "policy leaves it ended": (RUN, seen(record=a_record(exited=True, exit=EXIT, released="pod-1")), ""),
    # provision
    "nothing is here": (RUN, seen(record=ABSENT, overlay=False), "CreateRecord CreateOverlay FinishProvision"),
    "the record was written": (RUN, seen(record=a_record(provisioned=False), overlay=False), "CreateOverlay FinishProvision"),
    "the disk was made": (RUN, seen(record=a_record(provisioned=False)), "FinishProvision"),
    "it is to be stopped before it was made": (STOP, seen(record=ABSENT, overlay=False), "CreateRecord CreateOverlay FinishProvision"),
    # boot
    "it never ran": (RUN, seen(), f"PinImage {BOOT}"),
    "it ran before": (RUN, seen(record=a_record(run=1, image_digest=DIGEST)), BOOT),
    "the image was not asked for": (RUN, seen(image=ABSENT), "FetchImage"),
    "a pull failed and its wait is over": (RUN, seen(image=ImageFailed("ImageDenied", "m", False, 99)), "FetchImage"),
    "the run was prepared": (RUN, seen(record=a_record(run=1, image_digest=DIGEST, run_open=True, run_prepared=True, workload=Workload())), "StartVmm OrderBoot ResumeVmm"),
    "the run was prepared, then args changed": (replace(RUN, workload=Workload(args=("x",))), seen(record=a_record(run=1, run_open=True, run_prepared=True, workload=Workload())), "CloseRun"),
    "the run was prepared, then it was to stop": (STOP, seen(record=a_record(run=1, run_open=True, run_prepared=True, workload=Workload())), "CloseRun"),
    "preparing was cut off": (RUN, seen(record=a_record(run=1, run_open=True)), "CloseRun"),
    "its VMM was started": (RUN, created(), "OrderBoot ResumeVmm"),
    "its guest ended and its last words are on their way": (RUN, seen_running(vmm=a_vmm(State.SHUTDOWN, ending=Ending.POWERED_OFF), guest=Guest(started=True, unheard=True)), ""),
    "it was to stop, and nobody waits for last words": (STOP, seen_running(record=a_run(stop_ordered=True, stop_ordered_at=90.0), vmm=a_vmm(State.SHUTDOWN, ending=Ending.POWERED_OFF), guest=Guest(started=True, unheard=True)), "KillVmm"),
    "its VMM was started and never noted": (RUN, created(record=a_run(boot_ordered=False, run_began_at=None, vmm_noted=False)), "KillVmm"),
    "its boot was ordered": (RUN, created(record=a_run()), "ResumeVmm"),
    "it is to be paused and never ran": (PAUSE, seen(), f"PinImage {BOOT}"),
    "its back-off is over": (RUN, seen(record=replace(CRASHED, retry_at=99.0)), BOOT),
    # pause
    "it is to be paused": (PAUSE, seen_running(), "PauseVmm"),
    "it is to go on": (RUN, paused(), "ResumeVmm"),
    "somebody paused it": (RUN, paused(), "ResumeVmm"),
    "somebody let it go on": (PAUSE, seen_running(), "PauseVmm"),
    # stop
    "it is to be stopped": (STOP, seen_running(), "OrderStop ShutDownGuest"),
    "the stop was ordered": (STOP, told(99), "ShutDownGuest"),
    "the stop was ordered and the guest told": (STOP, told(99, stopping=True), ""),
    "the guest ignores it": (STOP, told(89, stopping=True), "KillVmm"),
    "the stop was ordered before a host reboot": (STOP, seen_running(record=a_run(stop_ordered=True)), "KillVmm"),
    "it is paused and to be stopped": (STOP, paused(), "OrderStop PowerDown ResumeVmm"),
    "paused, stop ordered": (STOP, paused(record=a_run(stop_ordered=True, stop_ordered_at=99)), "PowerDown ResumeVmm"),
    "paused, button pressed": (STOP, paused(record=a_run(stop_ordered=True, stop_ordered_at=99), stopping=True), "ResumeVmm"),
    "paused again and again": (STOP, paused(record=a_run(stop_ordered=True, stop_ordered_at=89), stopping=True), "KillVmm"),
    "it is to run again while it shuts down": (RUN, told(99, stopping=True), ""),
    "it is to run again and ignores the stop": (RUN, told(80, stopping=True), "KillVmm"),
    "it is to be paused while it shuts down": (PAUSE, told(99), "ShutDownGuest"),
    "it was started and is to be stopped": (STOP, created(), "KillVmm"),
    "its boot was ordered and it is to be stopped": (STOP, created(record=a_run()), "OrderStop"),
    "its stop was ordered before it booted, and it is to run": (RUN, created(record=a_run(stop_ordered=True)), "KillVmm"),
    "it shut down as ordered": (STOP, shut(stop_ordered=True), "KillVmm"),
    "it is dead as ordered": (STOP, dead(stop_ordered=True), "CloseRun"),
    "it is stopped": (STOP, seen(), "ReleaseReservation"),
    "it was evicted": (replace(RUN, permit=Permit.EVICTING), seen(), "ReleaseReservation"),
    "the node goes down": (replace(RUN, draining=True), seen_running(), "OrderStop ShutDownGuest"),
    "the node went down": (replace(RUN, draining=True), seen(), ""),
    "the node goes down, it is to be stopped anyway": (replace(STOP, draining=True), seen(), "ReleaseReservation"),
    # end
    "its workload ended": (RUN, shut(), "NoteExit KillVmm"),
    "its end was noted": (RUN, shut(exit_noted=True, exit=EXIT), "KillVmm"),
    "its end was noted and it is dead": (RUN, dead(exit_noted=True, exit=EXIT), "CloseRun"),
    "its VMM died": (RUN, dead(), "NoteExit CloseRun"),
    "its VMM died before its boot was ordered": (RUN, dead(boot_ordered=False), "CloseRun"),
    "the guest rebooted": (RUN, shut(Ending.RESET), "NoteExit KillVmm"),
    "the host rebooted": (RUN, dead(rebooted=True, run_began_at=None), "NoteExit CloseRun"),
    "its workload ended, its guest did not": (RUN, seen_running(guest=Guest(True, EXIT)), "NoteExit"),
    "noted, and its guest does not end": (RUN, seen_running(guest=Guest(True, EXIT), record=a_run(exit_noted=True)), "OrderStop"),
    "noted, and it had its time": (RUN, told(80, guest=Guest(True, EXIT)), "KillVmm"),
    "policy leaves it ended, reservation held": (RUN, seen(record=a_record(exited=True, exit=EXIT)), "ReleaseReservation"),
    "Stopped was observed": (STOP, seen(record=a_record(exited=True, exit=EXIT, released="pod-1")), "ClearExit"),
    "Stopped was observed in a back-off": (STOP, seen(record=CRASHED), "ClearExit"),
    # epoch
    "it was placed again": (replace(RUN, epoch=2), seen(), "AdoptEpoch"),
    "it was placed again with a run open": (replace(RUN, epoch=2), dead(stop_ordered=True), "CloseRun"),
    "it was placed again while it runs": (replace(RUN, epoch=2), seen_running(), "OrderStop"),
    "it was placed again, stop ordered": (replace(RUN, epoch=2), told(99), "KillVmm"),
    # delete
    "it is deleted and nothing is here": (GONE, seen(record=ABSENT, overlay=False), "DropFinalizer"),
    "it is deleted": (GONE, seen(), TAKE_DOWN),
    "it is deleted, disks gone": (GONE, seen(record=a_record(provisioned=False, tombstone=True)), "RemoveRecord DropFinalizer"),
    "it is deleted half-made": (GONE, seen(record=a_record(provisioned=False), overlay=False), "WriteTombstone RemoveRecord DropFinalizer"),
    "it is deleted while it runs": (GONE, seen_running(), "WriteTombstone OrderStop ShutDownGuest"),
    "it is deleted while paused": (GONE, paused(), "WriteTombstone KillVmm"),
    "it is deleted while it hangs": (GONE, seen_running(vmm=BLIND), "WriteTombstone KillVmm"),
    "it is deleted after its end": (GONE, dead(tombstone=True), "CloseRun DestroyDisks RemoveRecord DropFinalizer"),
    "its tombstone is written, whatever is asked": (RUN, seen(record=a_record(tombstone=True)), "DestroyDisks RemoveRecord DropFinalizer"),
}  # fmt: skip

WAITS: dict[str, tuple[Desired, Observed, str, bool]] = {
    "the lock cannot be read": (RUN, seen(lock=Lock.UNKNOWN), "Unknown", False),
    "the lock cannot be read on delete": (GONE, seen(lock=Lock.UNKNOWN), "Unknown", False),
    "the VMM does not answer": (RUN, seen_running(vmm=BLIND), "Unknown", False),
    "the VMM does not answer and is to stop": (STOP, seen_running(vmm=BLIND), "Unknown", False),
    "the record cannot be read": (RUN, seen(record=BLIND), "Unknown", False),
    "the record is a newer agent's": (GONE, seen(record=Unknown("m", "RecordNewer", True)), "RecordNewer", True),
    "a VMM has no record": (GONE, seen(record=ABSENT, lock=Lock.HELD, vmm=a_vmm()), "Unknown", False),
    "it is not placed": (a_wish(epoch=0, hardware=None), seen(record=ABSENT), "Pending", False),
    "its disk was here once": (a_wish(ran_before=True), seen(record=ABSENT), "DiskMissing", True),
    "its disk is gone": (RUN, seen(overlay=False), "DiskMissing", True),
    "its disk cannot be looked at": (RUN, seen(overlay=BLIND), "Unknown", False),
    "its first disk cannot be looked at": (RUN, seen(record=a_record(provisioned=False), overlay=BLIND), "Unknown", False),
    "no reservation": (replace(RUN, permit=Permit.WITHHELD), seen(), "Unscheduled", False),
    "its reservation was given back": (RUN, seen(record=a_record(released="pod-1")), "Unscheduled", False),
    "the image is being pulled": (RUN, seen(image=ImagePulling("40 %")), "ImagePulling", False),
    "the pull failed": (RUN, seen(image=ImageFailed("RegistryTLS", "m", False, 130)), "RegistryTLS", False),
    "the pull cannot succeed": (RUN, seen(image=ImageFailed("ImageNotFound", "m", True, 0)), "ImageNotFound", True),
    "the image store cannot be read": (RUN, seen(image=BLIND), "Unknown", False),
    "no kernel": (RUN, seen(kernel=ABSENT), "KernelMissing", False),
    "back-off": (RUN, seen(record=CRASHED), "CrashLoopBackOff", False),
    "it boots": (RUN, seen_running(guest=Guest()), "Booting", False),
    "it boots and is to be paused": (PAUSE, seen_running(guest=Guest()), "Booting", False),
    "it says nothing": (RUN, seen_running(guest=Guest(), record=a_run(run_began_at=-30.0)), "GuestSilent", False),
    "its reports cannot be read": (RUN, seen_running(guest=BLIND), "Unknown", False),
    "it died and its reports cannot be read": (RUN, replace(dead(), guest=BLIND), "Unknown", False),
    "it shut down and its reports cannot be read": (RUN, replace(shut(), guest=BLIND), "Unknown", False),
    "it shuts down": (STOP, told(99, stopping=True), "Stopping", False),
    "the disk is full": (RUN, seen_running(vmm=a_vmm(State.PAUSED, storage_full=True)), "StorageFull", False),
    "the object is older than the record": (RUN, seen(record=a_record(epoch=2)), "StaleView", False),
}  # fmt: skip


def made(wish: Desired, look: Observed) -> steps.Plan:
    found = plan(wish, look, NOW, RULES)
    assert problems(found, look) == ()
    assert all(can_transition(a, b) for a, b in pairwise(found.way))
    return found


@pytest.mark.parametrize("sentence", CASES)
def test_look_gives_exactly_these_steps(sentence: str) -> None:
    wish, look, expected = CASES[sentence]
    found = made(wish, look)
    assert " ".join(step.name for step in found.steps) == expected
    if not expected:
        assert found.settled or found.waiting is not None


@pytest.mark.parametrize("sentence", WAITS)
def test_look_that_allows_nothing_says_what_it_waits_for(sentence: str) -> None:
    wish, look, reason, stalled = WAITS[sentence]
    found = made(wish, look)
    assert found.steps == ()
    assert found.waiting is not None
    assert (found.waiting.reason, found.waiting.stalled) == (reason, stalled)
    assert found.sentence
    assert "\n" not in found.sentence


def test_wait_ends_when_its_time_comes() -> None:
    def wake(look: Observed, wish: Desired = RUN) -> float | None:
        return made(wish, look).wake_at

    assert wake(seen(record=CRASHED)) == 120.0
    assert wake(seen(image=ImageFailed("RegistryTLS", "m", False, 130.0))) == 130.0
    assert wake(told(99, stopping=True), STOP) == 99 + 5 + 5
    assert wake(seen_running(guest=Guest())) == 10 + RULES.boot_deadline
    assert wake(seen_running(vmm=a_vmm(State.PAUSED, storage_full=True))) == NOW + 10
    assert wake(seen(overlay=False)) is None  # stalled: somebody has to change something


def test_grace_is_what_is_left_of_it() -> None:
    (step,) = made(STOP, told(98)).steps
    assert step == steps.ShutDownGuest(3)
    assert made(STOP, seen_running()).steps[1] == steps.ShutDownGuest(5)
    (late,) = made(STOP, told(92)).steps
    assert late == steps.ShutDownGuest(0)


def test_exit_is_noted_as_policy_makes_of_it() -> None:
    never = made(a_wish(restart=RestartPolicy.NEVER), shut()).steps[0]
    always = made(a_wish(restart=RestartPolicy.ALWAYS), shut()).steps[0]
    assert never == steps.NoteExit(EXIT, exited=True, restarts=1, delay=0.0)
    assert always == steps.NoteExit(EXIT, exited=False, restarts=1, delay=10.0)


def test_crash_loop_says_which_restart_comes_and_after_what() -> None:
    waiting = made(RUN, seen(record=CRASHED)).waiting
    assert waiting is not None
    assert waiting.message == "exited 3; restart 2 comes after a back-off of 20 s"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (RUN, "operatingMode is Running"),
        (GONE, "the Instance is being deleted"),
        (replace(RUN, permit=Permit.EVICTING), "its reservation is being evicted"),
        (replace(RUN, draining=True), "the node is going down"),
    ],
)
def test_plan_says_because_of_what(wish: Desired, words: str) -> None:
    assert made(wish, seen_running()).because == words


# --- any look whatsoever --------------------------------------------------------------------------

_BLIND = st.just(BLIND)
_TIMES = st.sampled_from((None, 50.0, 95.0, 150.0))
_EXITS = st.sampled_from((None, EXIT, Exit(0, "exited 0")))
_FLAGS = {f.name: st.booleans() for f in fields(observed.Recorded) if f.type is bool}
_RECORDS = st.builds(
    lambda **changes: replace(a_record(), **changes),
    **_FLAGS,
    epoch=st.integers(1, 2), released=st.sampled_from((None, "pod-1")), exit=_EXITS,
    image_digest=st.sampled_from((None, DIGEST)), run_began_at=_TIMES, retry_at=_TIMES,
    stop_ordered_at=_TIMES, workload=st.sampled_from((None, Workload())),
)  # fmt: skip
_VMMS = st.builds(
    a_vmm,
    st.sampled_from((State.CREATED, State.RUNNING, State.PAUSED, State.SHUTDOWN)),
    ending=st.sampled_from((None, *Ending)), storage_full=st.booleans(),
)  # fmt: skip
_IMAGES = st.sampled_from(
    (ABSENT, BLIND, ImageReady(DIGEST), ImagePulling("x"), ImageFailed("NoSpace", "m", False, 130))
)
LOOKS = st.builds(
    Observed,
    record=st.one_of(_RECORDS, st.just(ABSENT), _BLIND),
    lock=st.sampled_from(Lock),
    vmm=st.one_of(_VMMS, st.just(ABSENT), _BLIND),
    guest=st.one_of(st.builds(Guest, st.booleans(), _EXITS), st.just(ABSENT), _BLIND),
    image=_IMAGES,
    kernel=st.sampled_from(("6.1", ABSENT, BLIND)),
    overlay=st.sampled_from((True, False, BLIND)),
    snapshot=st.sampled_from((ABSENT, SNAPSHOT, BLIND)),
    stopping=st.booleans(),
)
WISHES = st.builds(
    a_wish,
    st.sampled_from(Mode), permit=st.sampled_from(Permit), restart=st.sampled_from(RestartPolicy),
    reservation=st.sampled_from((None, "pod-1")), epoch=st.integers(0, 2),
    hardware=st.sampled_from((None, HARDWARE)), draining=st.booleans(), ran_before=st.booleans(),
)  # fmt: skip


@given(LOOKS, WISHES, st.booleans())
@settings(max_examples=400, deadline=None, database=None)
def test_any_look_and_any_wish_give_a_lawful_plan(
    look: Observed, wish: Desired, every_edge: bool
) -> None:
    rules = Rules(all_edges()) if every_edge else RULES
    found = plan(wish, look, NOW, rules)
    assert found == plan(wish, look, NOW, rules)
    assert problems(found, look) == ()
    assert found.settled or found.steps or found.waiting is not None
    if look.lock is Lock.UNKNOWN or isinstance(look.record, Unknown):
        assert found.steps == ()
