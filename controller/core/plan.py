"""From what is and what should be to the steps between: total, deterministic, minimal.

``plan`` never fails and never guesses. What it cannot know it waits for; what no retry can mend it
says in ``waiting``; and it orders nothing destructive while a fact it rests on is unknown. One plan
is the steps that can be taken now, in order; after each the world is looked at and planned again,
so a plan may be dropped after any of its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.core import down
from controller.core.backoff import Backoff
from controller.core.desired import Desired, Hardware, Mode, Permit
from controller.core.down import wait, why_unknown
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
    CreateOverlay,
    CreateRecord,
    FetchImage,
    FinishProvision,
    OrderBoot,
    PauseVmm,
    PinImage,
    Plan,
    PrepareRun,
    ReleaseReservation,
    ResumeVmm,
    StartVmm,
    Step,
    Waiting,
)

# Nothing tells us when there is space again, so it is looked at again.
STORAGE_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Rules:
    """What is the same for every Instance of a node: the driver's edges, the restart back-off."""

    edges: frozenset[Edge]
    backoff: Backoff = field(default_factory=Backoff)
    boot_deadline: float = 120.0  # seconds from boot to the workload's start
    max_vcpus: int = 0  # of one Instance on this node; 0: no limit
    max_memory: int = 0  # bytes


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
        return wait(draft, now, seen.record.reason, seen.record.why, stalled=seen.record.stalled)
    if target is State.ABSENT:
        return down.release(draft, desired, seen, now, rules.backoff)
    if origin is State.UNKNOWN:
        return wait(draft, now, "Unknown", why_unknown(seen))
    if isinstance(seen.record, Absent):
        return _provision(draft, desired, seen, now, rules)
    record = seen.record
    if record.epoch != desired.epoch:
        return _epoch(draft, desired, record, seen, now, rules)
    if origin is State.ABSENT:
        return _provision(draft, desired, seen, now, rules)
    if seen.lock is Lock.FREE and record.run_open and not _may_start(desired, record, target):
        return down.close(draft, desired, record, seen, now, rules.backoff)
    if housekeeping := _housekeeping(desired, record, seen, target):
        return replace(draft, steps=housekeeping)
    return _travel(draft, desired, record, seen, now, rules)


def _travel(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    way = path(draft.origin, draft.target, rules.edges)
    if way is None or (len(way) > 1 and State.STANDBY in way):  # no step leads there yet
        return wait(
            draft, now, "NoPath",
            f"there is no way from {draft.origin.value} to {draft.target.value} with hypervisor "
            f"{record.hardware.hypervisor}; ask for another operatingMode",
            stalled=True,
        )  # fmt: skip
    draft = replace(draft, way=way)
    alive = draft.origin in (State.RUNNING, State.PAUSED)
    if alive and (draft.target is State.STOPPED or down.going_down(record, seen)):
        return _stop(draft, desired, record, seen, now, rules)
    if len(way) == 1:
        return _arrived(draft, seen, record, now, rules)
    return _HOPS[way[0]](draft, desired, record, seen, now, rules)


# --- bookkeeping that comes before any transition -------------------------------------------------


def _housekeeping(
    desired: Desired, record: Recorded, seen: Observed, target: State
) -> tuple[Step, ...]:
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


def _epoch(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if desired.epoch < record.epoch:
        return wait(
            draft, now, "StaleView",
            f"the object says epoch {desired.epoch}, the record {record.epoch}: waiting for news",
        )  # fmt: skip
    if seen.lock is Lock.FREE and not record.run_open:
        return replace(draft, steps=(AdoptEpoch(),))
    if seen.lock is Lock.FREE or draft.origin is State.SHUTDOWN:
        return down.close(draft, desired, record, seen, now, rules.backoff)
    because = f"a VMM of epoch {record.epoch} still lives"
    return down.discard(replace(draft, because=because), record)


# --- one function for each place a hop can start from ---------------------------------------------


def _provision(draft: Plan, desired: Desired, seen: Observed, now: float, rules: Rules) -> Plan:
    draft = replace(draft, way=(State.ABSENT, State.STOPPED))
    if desired.hardware is None or desired.epoch < 1:
        return wait(draft, now, "Pending", "waiting for the operator to place the Instance")
    if too_large := _too_large(desired.hardware, rules):
        return wait(draft, now, "TooLargeForNode", too_large, stalled=True)
    if isinstance(seen.record, Absent) and desired.ran_before:
        return wait(
            draft, now, "DiskMissing",
            "it has run on this node, but its record and disk are gone from the state directory; "
            "bring them back, or delete the Instance and create it anew",
            stalled=True,
        )  # fmt: skip
    if isinstance(seen.overlay, Unknown):
        return wait(draft, now, "Unknown", seen.overlay.why)
    steps: list[Step] = []
    if isinstance(seen.record, Absent):
        steps.append(CreateRecord())
    if not seen.overlay:
        steps.append(CreateOverlay())
    return replace(draft, steps=(*steps, FinishProvision()))


def _too_large(hardware: Hardware, rules: Rules) -> str | None:
    if rules.max_vcpus and hardware.vcpus > rules.max_vcpus:
        asked, most = f"{hardware.vcpus} vcpus", f"{rules.max_vcpus}"
    elif rules.max_memory and hardware.memory > rules.max_memory:
        asked, most = f"{hardware.memory} bytes of memory", f"{rules.max_memory}"
    else:
        return None
    return (
        f"{asked} are more than this node gives one Instance ({most}): ask for less, or elsewhere"
    )


def _boot(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if record.retry_at is not None and now < record.retry_at:
        said = record.exit.message if record.exit else "the guest rebooted again"
        return replace(
            wait(
                draft, now, "CrashLoopBackOff",
                f"{said}; restart {record.restarts} comes after a back-off of "
                f"{rules.backoff.delay(record.restarts):.0f} s",
            ),
            wake_at=record.retry_at,
        )  # fmt: skip
    if desired.permit is not Permit.GRANTED or desired.reservation is None:
        return replace(wait(draft, now, "Unscheduled", "waiting for a reservation"), wake_at=None)
    if desired.reservation == record.released:
        message = "its reservation was given back; waiting for a new one"
        return replace(wait(draft, now, "Unscheduled", message), wake_at=None)
    if seen.overlay is not True:
        return _no_overlay(draft, seen, now)
    if image := _image(draft, record, seen, now):
        return image
    if isinstance(seen.kernel, Absent | Unknown):
        why = seen.kernel.why if isinstance(seen.kernel, Unknown) else "none is on this node yet"
        return wait(draft, now, "KernelMissing", f"no guest kernel: {why}")
    first: tuple[Step, ...] = () if record.image_digest else (PinImage(),)
    if not record.run_prepared:
        first = (*first, PrepareRun())
    return replace(draft, steps=(*first, StartVmm(), OrderBoot(), ResumeVmm()))


def _image(draft: Plan, record: Recorded, seen: Observed, now: float) -> Plan | None:
    match seen.image:
        case ImageReady():
            return None
        case Unknown(why=why):
            return wait(draft, now, "Unknown", why)
        case ImagePulling(progress=progress):
            waiting = Waiting("ImagePulling", f"waiting for image, {progress}")
            return replace(draft, waiting=waiting)  # the store tells when it is there
        case ImageFailed() as failed if failed.stalled:
            return wait(draft, now, failed.reason, failed.message, stalled=True)
        case ImageFailed() as failed if now < failed.retry_at:
            waiting = Waiting(failed.reason, failed.message)
            return replace(draft, waiting=waiting, wake_at=failed.retry_at)
        case _:
            return replace(draft, steps=(FetchImage(),))


def _no_overlay(draft: Plan, seen: Observed, now: float) -> Plan:
    if isinstance(seen.overlay, Unknown):
        return wait(draft, now, "Unknown", seen.overlay.why)
    return wait(
        draft, now, "DiskMissing",
        "its writable disk is gone from the state directory; bring it back, or delete the Instance "
        "and create it anew",
        stalled=True,
    )  # fmt: skip


def _from_created(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    if draft.target is State.STOPPED or record.stop_ordered or not record.vmm_noted:
        return down.discard(draft, record)  # nothing has run in it yet
    order = () if record.boot_ordered else (OrderBoot(),)
    return replace(draft, steps=(*order, ResumeVmm()))


def _from_running(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    booting = _booting(draft, seen, record, now, rules)
    return booting or replace(draft, steps=(PauseVmm(),))


def _from_paused(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    return _storage(draft, seen, now) or replace(draft, steps=(ResumeVmm(),))


def _stop(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    down_way = path(draft.origin, State.STOPPED, rules.edges) or (draft.origin,)
    up_way = path(State.STOPPED, draft.target, rules.edges) or (State.STOPPED,)
    draft = replace(draft, way=(*down_way, *up_way[1:]))
    return down.stop(draft, desired, record, seen, now, rules.backoff)


def _from_shutdown(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    # The VMM is the last witness of how its guest ended: write that down before it goes.
    return down.close(draft, desired, record, seen, now, rules.backoff)


def _arrived(draft: Plan, seen: Observed, record: Recorded, now: float, rules: Rules) -> Plan:
    if draft.target is State.RUNNING:
        return _booting(draft, seen, record, now, rules) or draft
    return draft


def _booting(
    draft: Plan, seen: Observed, record: Recorded, now: float, rules: Rules
) -> Plan | None:
    if isinstance(seen.guest, Unknown):
        return wait(draft, now, "Unknown", seen.guest.why)
    if isinstance(seen.guest, Guest) and seen.guest.started:
        return None
    deadline = (record.run_began_at or now) + rules.boot_deadline
    if now < deadline:
        waiting = Waiting("Booting", "waiting for the guest to start its workload")
        return replace(draft, waiting=waiting, wake_at=deadline)
    return wait(
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


_Hop = Callable[[Plan, Desired, Recorded, Observed, float, Rules], Plan]

_HOPS: dict[State, _Hop] = {
    State.STOPPED: _boot,
    State.CREATED: _from_created,
    State.RUNNING: _from_running,
    State.PAUSED: _from_paused,
    State.SHUTDOWN: _from_shutdown,
}
