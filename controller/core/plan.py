"""From what is and what should be to the steps between: total, deterministic, minimal.

``plan`` never fails and never guesses. What it cannot know it waits for; what no retry can mend it
says in ``waiting``; and it orders nothing destructive while a fact it rests on is unknown. One plan
is the steps that can be taken now, in order; after each the world is looked at and planned again,
so a plan may be dropped after any of its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.core import exits
from controller.core.backoff import Backoff
from controller.core.desired import Desired, Mode, Permit
from controller.core.observed import (
    Absent,
    Guest,
    ImageFailed,
    ImagePulling,
    ImageReady,
    Lock,
    Observed,
    Recorded,
    Unknown,
    Vmm,
)
from controller.core.state import Edge, State, path
from controller.core.steps import (
    AdoptEpoch,
    ClearExit,
    CloseRun,
    CreateOverlay,
    CreateRecord,
    DestroyDisks,
    DropFinalizer,
    FetchImage,
    FinishProvision,
    KillVmm,
    OrderBoot,
    OrderStop,
    PauseVmm,
    PinImage,
    Plan,
    PowerDown,
    PrepareRun,
    ReleaseReservation,
    RemoveRecord,
    ResumeVmm,
    ShutDownGuest,
    StartVmm,
    Step,
    Waiting,
    WriteTombstone,
)

# A guest that was told to stop may still flush its disks for this long after its grace period.
FLUSH_SECONDS = 5.0
# Nothing tells us when these change, so they are looked at again.
LOOK_AGAIN_SECONDS = 2.0
STORAGE_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Rules:
    """What is the same for every Instance of a node: the driver's edges, the restart back-off."""

    edges: frozenset[Edge]
    backoff: Backoff = field(default_factory=Backoff)
    boot_deadline: float = 120.0  # seconds from boot to the workload's start


def aim(desired: Desired, seen: Observed) -> tuple[State, str]:
    """The state to go to now, and the sentence that says why."""
    record = seen.record if isinstance(seen.record, Recorded) else None
    if desired.mode is Mode.GONE or (record is not None and record.tombstone):
        return State.ABSENT, "the Instance is being deleted"
    if desired.permit is Permit.EVICTING:
        return State.STOPPED, "its reservation is being evicted"
    if desired.draining:
        return State.STOPPED, "the node is going down"
    asked = State(desired.mode.value)
    if asked in (State.RUNNING, State.PAUSED) and record is not None and record.exited:
        return State.STOPPED, f"it ended and restartPolicy {desired.restart.value} leaves it so"
    return asked, f"operatingMode is {desired.mode.value}"


def plan(desired: Desired, seen: Observed, now: float, rules: Rules) -> Plan:
    """Plan from ``seen`` to ``desired`` at boot time ``now`` (seconds). Total: never raises."""
    target, because = aim(desired, seen)
    origin = seen.state
    draft = Plan(origin, target, (origin,), (), because)
    if isinstance(seen.record, Unknown):
        return _wait(draft, now, seen.record.reason, seen.record.why, stalled=seen.record.stalled)
    if target is State.ABSENT:
        return _release(draft, desired, seen, now)
    if origin is State.UNKNOWN:
        return _wait(draft, now, "Unknown", _why_unknown(seen))
    if isinstance(seen.record, Absent):
        return _provision(draft, desired, seen, now)
    record = seen.record
    if record.epoch != desired.epoch:
        return _epoch(draft, desired, record, seen, now)
    if origin is State.ABSENT:
        return _provision(draft, desired, seen, now)
    if housekeeping := _housekeeping(desired, record, seen, now, rules, target):
        return replace(draft, steps=housekeeping)
    return _travel(draft, desired, record, seen, now, rules)


def _travel(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    way = path(draft.origin, draft.target, rules.edges)
    if way is None:
        return _wait(
            draft, now, "NoPath",
            f"there is no way from {draft.origin.value} to {draft.target.value} with hypervisor "
            f"{record.hardware.hypervisor}; ask for another operatingMode",
            stalled=True,
        )  # fmt: skip
    draft = replace(draft, way=way)
    if len(way) == 1:
        return _arrived(draft, seen, record, now, rules)
    return _HOPS[way[0]](draft, desired, record, seen, now, rules)


# --- bookkeeping that comes before any transition -------------------------------------------------


def _housekeeping(
    desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules, target: State
) -> tuple[Step, ...]:
    if seen.lock is Lock.FREE and record.run_open and not _may_start(desired, record, target):
        return (*_note_exit(desired, record, seen, now, rules), CloseRun())
    if desired.mode is Mode.STOPPED and (record.exited or record.restarts):
        return (ClearExit(),)
    given_back = desired.reservation is None or record.released == desired.reservation
    given_back |= desired.draining and desired.mode is not Mode.STOPPED  # it will run again here
    if seen.lock is Lock.FREE and target is State.STOPPED and not given_back:
        return (ReleaseReservation(),)
    return ()


def _may_start(desired: Desired, record: Recorded, target: State) -> bool:
    """Whether the open run only waits for its VMM, and is still what is asked for."""
    asked = target in (State.RUNNING, State.PAUSED)
    return record.run_prepared and asked and record.workload == desired.workload


def _note_exit(
    desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> tuple[Step, ...]:
    # A run that was never let go, or that ended because we said so, has no exit.
    if record.exit_noted or record.stop_ordered or not record.boot_ordered:
        return ()
    return (exits.note(desired.restart, seen, record, now, rules.backoff),)


def _epoch(draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float) -> Plan:
    if desired.epoch < record.epoch:
        return _wait(
            draft, now, "StaleView",
            f"the object says epoch {desired.epoch}, the record {record.epoch}: waiting for news",
        )  # fmt: skip
    if seen.lock is Lock.FREE:
        return replace(draft, steps=(AdoptEpoch(),))
    return replace(draft, steps=(KillVmm(),), because=f"a VMM of epoch {record.epoch} still lives")


# --- one function for each place a hop can start from ---------------------------------------------


def _provision(draft: Plan, desired: Desired, seen: Observed, now: float) -> Plan:
    draft = replace(draft, way=(State.ABSENT, State.STOPPED))
    if desired.hardware is None or desired.epoch < 1:
        return _wait(draft, now, "Pending", "waiting for the operator to place the Instance")
    if isinstance(seen.record, Absent) and desired.ran_before:
        return _wait(
            draft, now, "DiskMissing",
            "it has run on this node, but its record and disk are gone from the state directory; "
            "bring them back, or delete the Instance and create it anew",
            stalled=True,
        )  # fmt: skip
    if isinstance(seen.overlay, Unknown):
        return _wait(draft, now, "Unknown", seen.overlay.why)
    steps: list[Step] = []
    if isinstance(seen.record, Absent):
        steps.append(CreateRecord())
    if not seen.overlay:
        steps.append(CreateOverlay())
    return replace(draft, steps=(*steps, FinishProvision()))


def _boot(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if record.retry_at is not None and now < record.retry_at:
        said = record.exit.message if record.exit else "it failed"
        return replace(
            _wait(
                draft, now, "CrashLoopBackOff",
                f"{said}; restart {record.restarts} comes after a back-off of "
                f"{rules.backoff.delay(record.restarts):.0f} s",
            ),
            wake_at=record.retry_at,
        )  # fmt: skip
    if desired.permit is not Permit.GRANTED or desired.reservation is None:
        return replace(_wait(draft, now, "Unscheduled", "waiting for a reservation"), wake_at=None)
    if desired.reservation == record.released:
        message = "its reservation was given back; waiting for a new one"
        return replace(_wait(draft, now, "Unscheduled", message), wake_at=None)
    if seen.overlay is not True:
        return _no_overlay(draft, seen, now)
    if image := _image(draft, record, seen, now):
        return image
    if isinstance(seen.kernel, Absent | Unknown):
        why = seen.kernel.why if isinstance(seen.kernel, Unknown) else "none is on this node yet"
        return _wait(draft, now, "KernelMissing", f"no guest kernel: {why}")
    first: tuple[Step, ...] = () if record.image_digest else (PinImage(),)
    if not record.run_prepared:
        first = (*first, PrepareRun())
    return replace(draft, steps=(*first, StartVmm(), OrderBoot(), ResumeVmm()))


def _image(draft: Plan, record: Recorded, seen: Observed, now: float) -> Plan | None:
    match seen.image:
        case ImageReady():
            return None
        case Unknown(why=why):
            return _wait(draft, now, "Unknown", why)
        case ImagePulling(progress=progress):
            waiting = Waiting("ImagePulling", f"waiting for image, {progress}")
            return replace(draft, waiting=waiting)  # the store tells when it is there
        case ImageFailed() as failed if failed.stalled:
            return _wait(draft, now, failed.reason, failed.message, stalled=True)
        case ImageFailed() as failed if now < failed.retry_at:
            waiting = Waiting(failed.reason, failed.message)
            return replace(draft, waiting=waiting, wake_at=failed.retry_at)
        case _:
            return replace(draft, steps=(FetchImage(),))


def _no_overlay(draft: Plan, seen: Observed, now: float) -> Plan:
    if isinstance(seen.overlay, Unknown):
        return _wait(draft, now, "Unknown", seen.overlay.why)
    return _wait(
        draft, now, "DiskMissing",
        "its writable disk is gone from the state directory; bring it back, or delete the Instance "
        "and create it anew",
        stalled=True,
    )  # fmt: skip


def _from_created(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if draft.target in (State.RUNNING, State.PAUSED):
        order = () if record.boot_ordered else (OrderBoot(),)
        return replace(draft, steps=(*order, ResumeVmm()))
    return replace(draft, steps=(KillVmm(),))  # nothing has run in it yet


def _from_running(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if draft.target is State.PAUSED:
        booting = _booting(draft, seen, record, now, rules)
        return booting or replace(draft, steps=(PauseVmm(),))
    return _ladder(draft, desired, record, seen, now)


def _from_paused(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if draft.target is State.RUNNING:
        return _storage(draft, seen, now) or replace(draft, steps=(ResumeVmm(),))
    # A paused guest hears nothing: press the button, let it go on, then ask it properly.
    order = () if record.stop_ordered else (OrderStop(),)
    press = () if seen.stopping else (PowerDown(),)
    return replace(draft, steps=(*order, *press, ResumeVmm()))


def _from_shutdown(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    # The VMM is the last witness of how its guest ended: write that down before it goes.
    return replace(draft, steps=(*_note_exit(desired, record, seen, now, rules), KillVmm()))


def _ladder(draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float) -> Plan:
    guest = seen.guest if isinstance(seen.guest, Guest) else Guest()
    if not record.stop_ordered:
        return replace(draft, steps=(OrderStop(), ShutDownGuest(desired.stop_timeout)))
    # ordered before a reboot of the host yet alive cannot be; treat it as overdue
    ordered = record.stop_ordered_at if record.stop_ordered_at is not None else 0.0
    deadline = ordered + desired.stop_timeout + FLUSH_SECONDS
    if now >= deadline:
        return replace(draft, steps=(KillVmm(),))
    if not seen.stopping:
        left = max(0, min(desired.stop_timeout, int(deadline - FLUSH_SECONDS - now)))
        return replace(draft, steps=(ShutDownGuest(left),))
    message = f"{draft.because}: waiting for the guest to shut down"
    return replace(draft, waiting=Waiting("Stopping", message), wake_at=deadline)


def _arrived(draft: Plan, seen: Observed, record: Recorded, now: float, rules: Rules) -> Plan:
    if draft.target is State.RUNNING:
        return _booting(draft, seen, record, now, rules) or draft
    return draft


def _booting(
    draft: Plan, seen: Observed, record: Recorded, now: float, rules: Rules
) -> Plan | None:
    guest = seen.guest if isinstance(seen.guest, Guest) else Guest()
    if guest.started or guest.exit is not None:
        return None
    deadline = (record.run_began_at or now) + rules.boot_deadline
    if now < deadline:
        waiting = Waiting("Booting", "waiting for the guest to start its workload")
        return replace(draft, waiting=waiting, wake_at=deadline)
    return _wait(
        draft, now, "GuestSilent",
        f"the guest has not started its workload within {rules.boot_deadline:.0f} s; see its "
        "console: torpor logs NAME --source console",
    )  # fmt: skip


def _storage(draft: Plan, seen: Observed, now: float) -> Plan | None:
    if not (isinstance(seen.vmm, Vmm) and seen.vmm.storage_full):
        return None
    message = "the node's disk is full, so the guest is held; it goes on when there is space"
    waiting = Waiting("StorageFull", message)
    return replace(draft, waiting=waiting, wake_at=now + STORAGE_LOOK_SECONDS)


# --- deletion: a state to reach like any other ----------------------------------------------------


def _release(draft: Plan, desired: Desired, seen: Observed, now: float) -> Plan:
    record = seen.record
    if isinstance(record, Absent):
        if seen.lock is Lock.FREE:
            return replace(draft, origin=State.ABSENT, steps=(DropFinalizer(),))
        return _wait(draft, now, "Unknown", "a VMM lives that has no record; it is left alone")
    if not isinstance(record, Recorded):
        return _wait(draft, now, record.reason, record.why, stalled=record.stalled)
    mark = () if record.tombstone else (WriteTombstone(),)
    match seen.lock:
        case Lock.UNKNOWN:
            return _wait(draft, now, "Unknown", _why_unknown(seen))
        case Lock.FREE:
            close = (CloseRun(),) if record.run_open else ()
            disks = (DestroyDisks(),) if record.provisioned else ()
            ending = (RemoveRecord(), DropFinalizer())
            return replace(draft, steps=(*mark, *close, *disks, *ending))
        case _:
            return _bring_down(replace(draft, steps=mark), desired, record, seen, now)


def _bring_down(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float
) -> Plan:
    if draft.origin is not State.RUNNING:
        # Nothing in it can be asked. Its process is: the kill proves whose it is before it strikes.
        return replace(draft, steps=(*draft.steps, KillVmm()))
    asked = _ladder(replace(draft, steps=()), desired, record, seen, now)
    return replace(asked, steps=(*draft.steps, *asked.steps))


# --- words ----------------------------------------------------------------------------------------


def _why_unknown(seen: Observed) -> str:
    if seen.lock is Lock.UNKNOWN:
        return "cannot tell whether its VMM lives: the run lock cannot be read"
    for fact in (seen.vmm, seen.record, seen.snapshot):
        if isinstance(fact, Unknown):
            return fact.why
    return "its VMM lives but was not found"


def _wait(draft: Plan, now: float, reason: str, message: str, *, stalled: bool = False) -> Plan:
    waiting = Waiting(reason, message, stalled)
    return replace(draft, waiting=waiting, wake_at=None if stalled else now + LOOK_AGAIN_SECONDS)


_Hop = Callable[[Plan, Desired, Recorded, Observed, float, Rules], Plan]

_HOPS: dict[State, _Hop] = {
    State.STOPPED: _boot,
    State.CREATED: _from_created,
    State.RUNNING: _from_running,
    State.PAUSED: _from_paused,
    State.SHUTDOWN: _from_shutdown,
}
