"""From what is and what should be to the steps between: total, deterministic, minimal.

``plan`` never fails and never guesses. What it cannot know it waits for; what no retry can mend it
says in ``waiting``; and it orders nothing destructive while a fact it rests on is unknown. One plan
is the steps that can be taken now, in order; after each the world is looked at and planned again,
so a plan may be dropped after any of its steps.
"""

from collections.abc import Callable
from dataclasses import replace

from controller.core import boot, down, fork, sleep
from controller.core.desired import Desired, Hardware, Mode, Permit
from controller.core.observed import (
    Absent,
    Guest,
    Lock,
    Observed,
    Recorded,
    Snapshot,
    Unknown,
    Vmm,
)
from controller.core.rules import Rules
from controller.core.state import State, path
from controller.core.steps import (
    AdoptEpoch,
    ClearExit,
    CreateOverlay,
    CreateRecord,
    FinishProvision,
    OrderBoot,
    PauseVmm,
    Plan,
    ReleaseReservation,
    ResumeVmm,
    Step,
    Waiting,
)
from controller.core.waiting import wait, why_unknown

# Nothing tells us when there is space again, so it is looked at again.
STORAGE_LOOK_SECONDS = 10.0


def aim(desired: Desired, seen: Observed) -> tuple[State, str]:
    """The state to go to now, and the sentence that says why."""
    record = seen.record if isinstance(seen.record, Recorded) else None
    if desired.mode is Mode.GONE or (record is not None and record.tombstone):
        return State.ABSENT, "the Instance is being deleted"
    if desired.permit is Permit.ENDING:
        return State.STOPPED, "its namespace is being deleted"
    asked = State(desired.mode.value)
    if desired.permit is Permit.EVICTING and asked is not State.STOPPED:
        return _rest(seen, record, save=True), "its reservation is being evicted"
    if desired.draining and asked is not State.STOPPED:
        return _rest(seen, record, save=False), "the node is going down"
    if asked is not State.STOPPED and record is not None and record.exited:
        return State.STOPPED, f"it ended and restartPolicy {desired.restart.value} leaves it so"
    return asked, f"operatingMode is {desired.mode.value}"


def _rest(seen: Observed, record: Recorded | None, *, save: bool) -> State:
    """Where it goes that must leave and would rather stay: its memory is not thrown away.

    ``save``: and a guest that runs is put to sleep; else it is only not woken.
    """
    state = seen.state
    kept = isinstance(seen.snapshot, Snapshot) and state in (State.STANDBY, State.PAUSED)
    up = isinstance(seen.guest, Guest) and seen.guest.started
    ending = record is None or down.going_down(record, seen)
    sleeps = save and up and not ending and state in (State.RUNNING, State.PAUSED)
    return State.STANDBY if kept or sleeps else State.STOPPED


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
    if undecided := sleep.undecided(draft, seen, now):
        return undecided
    if housekeeping := _housekeeping(desired, record, seen, target):
        return replace(draft, steps=housekeeping)
    return _travel(draft, desired, record, seen, now, rules)


def _travel(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    way = path(draft.origin, draft.target, rules.edges)
    if way is None:
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
    if draft.origin is State.STANDBY:
        return sleep.from_standby(draft, desired, record, seen, now)
    if len(way) == 1:
        return _arrived(draft, seen, record, now, rules)
    return _HOPS[way[0]](draft, desired, record, seen, now, rules)


# --- bookkeeping that comes before any transition -------------------------------------------------


def _housekeeping(
    desired: Desired, record: Recorded, seen: Observed, target: State
) -> tuple[Step, ...]:
    if overtaken := sleep.overtaken(record, seen, target):
        return overtaken
    if desired.mode is Mode.STOPPED and (record.exited or record.restarts):
        return (ClearExit(),)
    given_back = desired.reservation is None or record.released == desired.reservation
    given_back |= desired.draining and desired.mode is not Mode.STOPPED  # it will run again here
    rests = seen.state is target and target in (State.STOPPED, State.STANDBY)
    if seen.lock is Lock.FREE and rests and not given_back:
        return (ReleaseReservation(),)
    return ()


def _may_start(desired: Desired, record: Recorded, target: State) -> bool:
    """Whether the open run only waits for its VMM, and is still what is asked for."""
    if not record.run_prepared or target is State.STOPPED:
        return False
    if record.waking:
        return target is not State.STANDBY
    return record.workload == desired.workload.over(record.inherited)


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
    if desired.fork is not None:
        return fork.take(draft, desired, desired.fork, seen, now)
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
    if booting := boot.booting(draft, seen, record, now, rules):
        return booting
    if draft.target is State.STANDBY:
        return sleep.fall_asleep(draft, record, seen)
    return replace(draft, steps=(PauseVmm(),))


def _from_paused(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    up = isinstance(seen.guest, Guest) and seen.guest.started
    if draft.target is State.STANDBY and (up or record.waking):
        return sleep.fall_asleep(draft, record, seen)
    if storage := _storage(draft, seen, now):
        return storage
    return replace(draft, steps=(*sleep.to_run(record, seen), ResumeVmm()))


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
        if booting := boot.booting(draft, seen, record, now, rules):
            return booting
        return sleep.repair(draft, record) or draft
    return draft


def _storage(draft: Plan, seen: Observed, now: float) -> Plan | None:
    if not (isinstance(seen.vmm, Vmm) and seen.vmm.storage_full):
        return None
    message = "the node's disk is full, so the guest is held; it goes on when there is space"
    waiting = Waiting("StorageFull", message)
    return replace(draft, waiting=waiting, wake_at=now + STORAGE_LOOK_SECONDS)


_Hop = Callable[[Plan, Desired, Recorded, Observed, float, Rules], Plan]

_HOPS: dict[State, _Hop] = {
    State.STOPPED: boot.boot,
    State.CREATED: _from_created,
    State.RUNNING: _from_running,
    State.PAUSED: _from_paused,
    State.SHUTDOWN: _from_shutdown,
}
