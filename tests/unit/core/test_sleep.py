"""What is planned to put an Instance to sleep, to wake it, and to make a fork of it."""

from dataclasses import replace
from typing import Any

import pytest

from controller.core import exits
from controller.core.backoff import Backoff
from controller.core.desired import Desired, Fork, Mode, Permit, RestartPolicy, Workload
from controller.core.observed import (
    ABSENT,
    Absent,
    Ending,
    Exit,
    Guest,
    Lock,
    Observed,
    Snapshot,
    Source,
    Unknown,
)
from controller.core.plan import plan
from controller.core.state import State
from controller.core.steps import Plan
from tests.values import RULES, a_record, a_run, a_vmm, a_wish, seen, seen_running
from tests.world_memory import SNAPSHOT

NOW = 100.0
RUN, PAUSE, SLEEP, STOP, GONE = (
    a_wish(mode) for mode in (Mode.RUNNING, Mode.PAUSED, Mode.STANDBY, Mode.STOPPED, Mode.GONE)
)
WAKE = "PrepareWake StartVmm LoadMemory OrderWake ResumeVmm RepairGuest"
SAVE = "SaveMemory KillVmm CloseRun"
DAMAGED = replace(SNAPSHOT, reason="SnapshotCorrupt", problem="chunk 3 is damaged")


def asleep(**changes: Any) -> Observed:
    return replace(seen(record=a_record(run=1), snapshot=SNAPSHOT), **changes)


def paused(**changes: Any) -> Observed:
    return seen_running(vmm=a_vmm(State.PAUSED), **changes)


def waking(state: State = State.CREATED, **changes: Any) -> Observed:
    """A VMM that was started to receive the snapshot; Paused: it has."""
    record = a_run(run=2, boot_ordered=False, run_began_at=None, waking=True, **changes)
    return seen_running(record=record, vmm=a_vmm(state), snapshot=SNAPSHOT)


def woken(**changes: Any) -> Observed:
    return seen_running(record=a_run(run=2, woken=True, **changes))


STEPS: dict[str, tuple[Desired, Observed, str]] = {
    # sleep
    "it is to sleep": (SLEEP, seen_running(), f"OrderSave PauseVmm {SAVE}"),
    "it is paused and to sleep": (SLEEP, paused(), f"OrderSave {SAVE}"),
    "its save was begun": (SLEEP, seen_running(record=a_run(saving=True)), f"PauseVmm {SAVE}"),
    "its save was begun and it is paused": (SLEEP, paused(record=a_run(saving=True)), SAVE),
    "its save is not wanted any more": (RUN, paused(record=a_run(saving=True)), "CancelSave"),
    "it is to be stopped instead": (STOP, seen_running(record=a_run(saving=True)), "CancelSave"),
    "it is saved": (SLEEP, paused(snapshot=SNAPSHOT), "KillVmm CloseRun"),
    "it is saved, and that is damaged": (SLEEP, paused(snapshot=DAMAGED), "VoidSnapshot"),
    "it has its memory, is to sleep, and the snapshot is damaged": (
        SLEEP, replace(waking(State.PAUSED), snapshot=DAMAGED), "OrderWake",
    ),
    "it is saved and dead": (
        SLEEP, seen(record=a_run(), snapshot=SNAPSHOT, guest=Guest(True)), "CloseRun",
    ),
    "it is saved and to run": (RUN, paused(snapshot=SNAPSHOT), "VoidSnapshot ResumeVmm"),
    "it is saved and to be stopped": (
        STOP, paused(snapshot=SNAPSHOT), "OrderStop PowerDown VoidSnapshot ResumeVmm",
    ),
    "it is saved and to go": (
        GONE, paused(snapshot=SNAPSHOT), "WriteTombstone KillVmm",
    ),
    "it is saved, and somebody let it go on": (
        SLEEP, seen_running(snapshot=SNAPSHOT), "VoidSnapshot",
    ),
    "it is saved, somebody let it go on, and it ended": (
        SLEEP,
        seen_running(vmm=a_vmm(State.SHUTDOWN, ending=Ending.POWERED_OFF), snapshot=SNAPSHOT),
        "VoidSnapshot",
    ),
    "its workload ended while it was to sleep": (
        SLEEP, seen_running(guest=Guest(True, Exit(3, "exited 3"))), "NoteExit",
    ),
    "it is saved, and its workload had ended before": (
        SLEEP, paused(snapshot=SNAPSHOT, guest=Guest(True, Exit(3, "exited 3"))), "VoidSnapshot",
    ),
    "it is saved and dead, and its workload had ended before": (
        SLEEP,
        seen(record=a_run(), snapshot=SNAPSHOT, guest=Guest(True, Exit(3, "exited 3"))),
        "VoidSnapshot",
    ),
    "it boots and is to sleep": (SLEEP, seen_running(guest=Guest()), ""),
    "it was paused before it was up": (SLEEP, paused(guest=Guest()), "ResumeVmm"),
    "it never ran and is to sleep": (
        SLEEP, seen(), "PinImage PrepareRun StartVmm OrderBoot ResumeVmm",
    ),
    "it sleeps": (SLEEP, asleep(), "ReleaseReservation"),
    "it sleeps and has nothing reserved": (replace(SLEEP, reservation=None), asleep(), ""),
    # wake
    "it is to wake": (RUN, asleep(), WAKE),
    "it is to wake and stay paused": (PAUSE, asleep(), "PrepareWake StartVmm LoadMemory"),
    "its wake is prepared": (
        RUN,
        asleep(record=a_record(run=2, run_open=True, run_prepared=True, waking=True)),
        WAKE.removeprefix("PrepareWake "),
    ),
    "its wake is prepared and not wanted": (
        SLEEP,
        asleep(record=a_record(run=2, run_open=True, run_prepared=True, waking=True)),
        "CloseRun",
    ),
    "its VMM died before it had its memory": (
        RUN, asleep(record=a_record(run=2, run_open=True, waking=True)), "CloseRun",
    ),
    "its VMM waits for its memory": (
        RUN, waking(), "LoadMemory OrderWake ResumeVmm RepairGuest",
    ),
    "its VMM waits and it is to sleep": (SLEEP, waking(), "KillVmm"),
    "its VMM waits and it is to be stopped": (STOP, waking(), "KillVmm"),
    "its VMM waits and is not noted": (RUN, waking(vmm_noted=False), "KillVmm"),
    "it has its memory": (RUN, waking(State.PAUSED), "OrderWake ResumeVmm"),
    "it has its memory and is to be paused": (PAUSE, waking(State.PAUSED), ""),
    "it has its memory and is to sleep": (SLEEP, waking(State.PAUSED), "KillVmm CloseRun"),
    "it has its memory, and somebody let it go on": (RUN, waking(State.RUNNING), "OrderWake"),
    "it has its memory and is to be stopped": (
        STOP, waking(State.PAUSED), "OrderStop PowerDown OrderWake ResumeVmm",
    ),
    "its memory is used and it is paused": (
        RUN, replace(woken(), vmm=a_vmm(State.PAUSED)), "ResumeVmm",
    ),
    "it was woken": (RUN, woken(), "RepairGuest"),
    "it was woken and knows who it is": (RUN, woken(repaired=True), ""),
    "it was woken and is to be paused": (PAUSE, woken(), "PauseVmm"),
    "it was woken and died": (
        RUN, seen(record=a_run(run=2, woken=True), guest=Guest(True)), "NoteExit CloseRun",
    ),
    # give up
    "it sleeps and is to be stopped": (STOP, asleep(), "VoidSnapshot"),
    "it sleeps and is to go": (
        GONE, asleep(), "WriteTombstone DestroyDisks RemoveRecord DropFinalizer",
    ),
    "its snapshot is damaged and it is to be stopped": (
        STOP, asleep(snapshot=DAMAGED), "VoidSnapshot",
    ),
    # who must leave
    "it runs and is evicted": (
        replace(RUN, permit=Permit.EVICTING), seen_running(), f"OrderSave PauseVmm {SAVE}",
    ),
    "it boots and is evicted": (
        replace(RUN, permit=Permit.EVICTING),
        seen_running(guest=Guest()),
        "OrderStop ShutDownGuest",
    ),
    "it sleeps and is evicted": (
        replace(RUN, permit=Permit.EVICTING), asleep(), "ReleaseReservation",
    ),
    "it runs and its namespace goes": (
        replace(RUN, permit=Permit.ENDING), seen_running(), "OrderStop ShutDownGuest",
    ),
    "it sleeps and the node goes down": (replace(RUN, draining=True), asleep(), ""),
    "it runs and the node goes down": (
        replace(RUN, draining=True), seen_running(), "OrderStop ShutDownGuest",
    ),
}  # fmt: skip


def made(wish: Desired, look: Observed) -> Plan:
    return plan(wish, look, NOW, RULES)


@pytest.mark.parametrize("name", STEPS)
def test_look_gives_exactly_these_steps(name: str) -> None:
    wish, look, names = STEPS[name]
    assert " ".join(step.name for step in made(wish, look).steps) == names


def test_vmm_that_waits_for_its_memory_is_still_asleep() -> None:
    assert waking().state is State.STANDBY
    assert waking(State.PAUSED).state is State.PAUSED
    assert waking(State.RUNNING).state is State.RUNNING


@pytest.mark.parametrize(
    ("look", "reason", "stalled"),
    [
        (asleep(snapshot=DAMAGED), "SnapshotCorrupt", True),
        (paused(snapshot=Unknown("EIO", "IOError")), "IOError", False),
        (asleep(overlay=False), "DiskMissing", True),
    ],
)
def test_snapshot_that_cannot_be_used_is_kept(look: Observed, reason: str, stalled: bool) -> None:
    found = made(RUN, look)
    assert found.steps == ()
    assert found.waiting is not None
    assert (found.waiting.reason, found.waiting.stalled) == (reason, stalled)


def test_wake_waits_for_its_reservation() -> None:
    for wish in (replace(RUN, permit=Permit.WITHHELD), replace(RUN, reservation=None)):
        found = made(wish, asleep())
        assert found.steps == ()
        assert found.waiting is not None
        assert found.waiting.reason == "Unscheduled"


def test_death_of_a_woken_guest_says_that_its_memory_is_used_up() -> None:
    record = a_run(woken=True)
    noted = exits.note(RestartPolicy.ON_FAILURE, seen(record=record), record, NOW, Backoff())
    assert noted.exit.reason == "MemoryConsumed"
    assert noted.exit.failed
    assert not noted.exited


# --- forks ----------------------------------------------------------------------------------------

WISH = replace(RUN, image="", fork=Fork("parent", "root", 2))
LIVING = replace(WISH, fork=Fork("parent", "root", 2, from_running=True))


def unmade(source: Source | Absent | Unknown, **changes: Any) -> Observed:
    return replace(seen(record=ABSENT, overlay=False, source=source), **changes)


def source(state: State, **changes: Any) -> Source:
    return replace(Source("web", state, started=True), **changes)


@pytest.mark.parametrize("state", [State.STOPPED, State.STANDBY])
@pytest.mark.parametrize("wish", [WISH, LIVING])
def test_resting_source_is_forked_at_once(wish: Desired, state: State) -> None:
    found = made(wish, unmade(source(state)))
    assert [step.name for step in found.steps] == ["CreateRecord", "TakeFork"]
    assert found.way == (State.ABSENT, state)


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_living_source_is_forked_only_when_that_is_allowed(state: State) -> None:
    assert made(LIVING, unmade(source(state))).steps
    refused = made(WISH, unmade(source(state)))
    assert refused.steps == ()
    assert refused.waiting is not None
    assert refused.waiting.stalled
    assert refused.waiting.reason == "SourceRunning"
    assert "fromRunning: true" in refused.waiting.message
    assert refused.wake_at is not None  # the source may go to sleep without a word to us


@pytest.mark.parametrize(
    ("found", "reason", "stalled"),
    [
        (ABSENT, "SourceGone", True),
        (Unknown("EIO", "RecordUnreadable"), "RecordUnreadable", False),
        (source(State.RUNNING, started=False), "SourceNotReady", False),
        (source(State.CREATED), "SourceNotReady", False),
        (source(State.SHUTDOWN), "SourceNotReady", False),
        (source(State.UNKNOWN), "SourceNotReady", False),
        (source(State.ABSENT), "SourceNotReady", False),
        (source(State.RUNNING, ending=True), "SourceNotReady", False),
    ],
)
def test_source_that_cannot_be_forked_now_says_why(
    found: Source | Absent | Unknown, reason: str, stalled: bool
) -> None:
    waits = made(LIVING, unmade(found)).waiting
    assert waits is not None
    assert (waits.reason, waits.stalled) == (reason, stalled)


@pytest.mark.parametrize(
    ("found", "waits"),
    [
        (source(State.STOPPED, asked=Mode.RUNNING), True),
        (source(State.STOPPED, asked=Mode.STANDBY), True),
        (source(State.STOPPED, asked=Mode.RUNNING, exited=True), False),
        (source(State.STOPPED, asked=Mode.STOPPED), False),
        (source(State.STANDBY, asked=Mode.RUNNING), False),
        (source(State.RUNNING, asked=Mode.STANDBY), True),
        (source(State.PAUSED, asked=Mode.STOPPED), True),
    ],
)
def test_source_on_its_way_is_waited_for(found: Source, waits: bool) -> None:
    planned = made(WISH, unmade(found))
    assert bool(planned.steps) is not waits
    if planned.waiting is not None:
        assert (planned.waiting.reason, planned.waiting.stalled) == ("SourceNotReady", False)


def test_inherited_memory_takes_no_other_env_command_or_args() -> None:
    for said in (Workload(("sh",)), Workload(args=("-x",)), Workload(env=(("A", "b"),))):
        wish = replace(WISH, workload=said)
        waits = made(wish, unmade(source(State.STANDBY))).waiting
        assert waits is not None
        assert waits.reason == "WorkloadInherited"
        assert made(wish, unmade(source(State.STOPPED))).steps


def test_fork_that_was_cut_off_is_made_anew() -> None:
    half = unmade(source(State.STANDBY), record=a_record(provisioned=False), overlay=True)
    assert [step.name for step in made(WISH, half).steps] == ["TakeFork"]


def test_fork_that_is_made_needs_its_source_no_more() -> None:
    look = asleep(source=ABSENT)
    assert " ".join(step.name for step in made(WISH, look).steps) == WAKE


def test_fork_says_over_its_source_only_what_it_says() -> None:
    below = Workload(("run",), ("a",), (("A", "1"), ("B", "2")))
    assert Workload().over(below) == below
    assert Workload(args=("b",)).over(below) == replace(below, args=("b",))
    assert Workload(("sh",)).over(below) == replace(below, command=("sh",), args=None)
    assert Workload(env=(("B", "3"),)).over(below).env == (("A", "1"), ("B", "3"))


def test_snapshot_counts_only_while_no_vmm_lives() -> None:
    assert asleep().state is State.STANDBY
    assert seen_running(snapshot=SNAPSHOT).state is State.RUNNING
    assert replace(asleep(), lock=Lock.UNKNOWN).state is State.UNKNOWN
    assert isinstance(asleep().snapshot, Snapshot)
