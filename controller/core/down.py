"""The way down: how a guest is stopped, how an ended run is closed, how an Instance is deleted.

An ordered stop is finished whatever is asked for meanwhile: a guest that was told to shut down
cannot be told otherwise, so it is brought down and, if it is to run, booted again. The exit of a
run is written down before its last witness goes, and not while a witness cannot be heard. What
does not live here: when to stop (``plan``), and what an exit means (``exits``).
"""

from dataclasses import replace

from controller.core import exits, sleep
from controller.core.backoff import Backoff
from controller.core.desired import Desired
from controller.core.observed import (
    Absent,
    Guest,
    Lock,
    Observed,
    Recorded,
    Snapshot,
    Unknown,
)
from controller.core.state import State
from controller.core.steps import (
    CloseRun,
    DestroyDisks,
    DropFinalizer,
    KillVmm,
    OrderStop,
    Plan,
    PowerDown,
    RemoveRecord,
    ResumeVmm,
    ShutDownGuest,
    Step,
    Waiting,
    WriteTombstone,
)
from controller.core.waiting import wait, why_unknown

# A guest that was told to stop may still flush its disks for this long after its grace period.
FLUSH_SECONDS = 5.0
WORDS_LOOK_SECONDS = 0.1


def going_down(record: Recorded, seen: Observed) -> bool:
    """Whether the guest that runs (or is paused) has ended, or was told to end."""
    ended = isinstance(seen.guest, Guest) and seen.guest.exit is not None
    return record.stop_ordered or ended


def stop(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, backoff: Backoff
) -> Plan:
    """The ladder down from a guest that runs or is paused: ask, wait, kill at the deadline."""
    ended = isinstance(seen.guest, Guest) and seen.guest.exit is not None
    if given_up := sleep.outlived(record, seen):
        return replace(draft, steps=given_up)
    if ended and _unnoted(record, seen):
        return note_end(draft, desired, record, seen, now, backoff)
    paused = draft.origin is State.PAUSED
    grace = _grace(desired, record, now)
    # A paused guest hears nothing: press the button and let it go on.
    press: Step = PowerDown() if paused else ShutDownGuest(grace)
    tell = () if seen.stopping or ended else (press,)
    go_on = (*sleep.to_run(record, seen), ResumeVmm()) if paused else ()
    if not record.stop_ordered:
        return replace(draft, steps=(OrderStop(), *tell, *go_on))
    deadline = _deadline(desired, record)
    if now >= deadline:
        return replace(draft, steps=(KillVmm(),))
    if steps := (*tell, *go_on):
        return replace(draft, steps=steps)
    message = f"{draft.because}: waiting for the guest to shut down"
    return replace(draft, waiting=Waiting("Stopping", message), wake_at=deadline)


def close(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, backoff: Backoff
) -> Plan:
    """From a VMM that has shut down, or is gone, to a closed run."""
    if given_up := sleep.outlived(record, seen):
        return replace(draft, steps=given_up)
    last: Step = CloseRun() if seen.lock is Lock.FREE else KillVmm()
    if not _unnoted(record, seen):
        return replace(draft, steps=(last,))
    noted = note_end(draft, desired, record, seen, now, backoff)
    return replace(noted, steps=(*noted.steps, last)) if noted.steps else noted


def note_end(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, backoff: Backoff
) -> Plan:
    """Write down how the run ended; wait while its witness cannot be heard."""
    if isinstance(seen.guest, Unknown):
        return wait(draft, now, "Unknown", seen.guest.why)
    if isinstance(seen.guest, Guest) and seen.guest.unheard:
        message = "the guest has ended; waiting for its last words"
        waiting = Waiting("Stopping", message)
        return replace(draft, waiting=waiting, wake_at=now + WORDS_LOOK_SECONDS)
    return replace(draft, steps=(exits.note(desired.restart, seen, record, now, backoff),))


def discard(draft: Plan, record: Recorded) -> Plan:
    """Kill a VMM whose guest is not to be asked; that it ends is our order, not an exit."""
    if record.boot_ordered and not record.stop_ordered:
        # alone: a running guest is never killed in the pass that ordered its stop
        return replace(draft, steps=(OrderStop(),))
    return replace(draft, steps=(KillVmm(),))


def release(draft: Plan, desired: Desired, seen: Observed, now: float, backoff: Backoff) -> Plan:
    """Deletion: a state to reach like any other."""
    record = seen.record
    if isinstance(record, Absent):
        if seen.lock is Lock.FREE:
            return replace(draft, origin=State.ABSENT, steps=(DropFinalizer(),))
        return wait(draft, now, "Unknown", "a VMM lives that has no record; it is left alone")
    if not isinstance(record, Recorded):
        return wait(draft, now, record.reason, record.why, stalled=record.stalled)
    mark = () if record.tombstone else (WriteTombstone(),)
    match seen.lock:
        case Lock.UNKNOWN:
            return wait(draft, now, "Unknown", why_unknown(seen))
        case Lock.FREE:
            end = (CloseRun(),) if record.run_open else ()
            disks = (DestroyDisks(),) if record.provisioned else ()
            ending = (RemoveRecord(), DropFinalizer())
            return replace(draft, steps=(*mark, *end, *disks, *ending))
        case _ if draft.origin is not State.RUNNING:
            # Nothing in it can be asked. Its process is: the kill proves whose it is first.
            return replace(draft, steps=(*mark, KillVmm()))
    asked = stop(draft, desired, record, seen, now, backoff)
    return replace(asked, steps=(*mark, *asked.steps))


def _unnoted(record: Recorded, seen: Observed) -> bool:
    # A run that was never let go, or that ended because we said so, has no exit; nor has one whose
    # memory lies safely on disk.
    if isinstance(seen.snapshot, Snapshot):
        return False
    return record.owes_exit


def _deadline(desired: Desired, record: Recorded) -> float:
    # ordered before a reboot of the host yet alive cannot be; treat it as overdue
    ordered = record.stop_ordered_at if record.stop_ordered_at is not None else 0.0
    return ordered + desired.stop_timeout + FLUSH_SECONDS


def _grace(desired: Desired, record: Recorded, now: float) -> int:
    if not record.stop_ordered:
        return desired.stop_timeout
    left = int(_deadline(desired, record) - FLUSH_SECONDS - now)
    return max(0, min(desired.stop_timeout, left))
