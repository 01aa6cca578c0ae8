"""What the node agent says of an Instance: every condition it owns, every pass, also on error.

Ready = actual matches desired, in every operating mode. Reconciling and Stalled follow kstatus:
they are there only while they are true. What does not live here: the operator's Scheduled
(``operator``), and the sending (``node.report``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.core.desired import Desired, Mode, Permit
from controller.core.observed import Guest, Observed, Recorded, Vmm
from controller.core.ownership import AGENTS, OPERATORS
from controller.core.state import State
from controller.core.steps import Plan
from controller.core.waiting import why_unknown

MESSAGE_LIMIT = 1024  # of a condition's message, in characters; the API allows 32768


@dataclass(frozen=True)
class Condition:
    """One condition without its times. ``status``: "True", "False" or "Unknown"."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class Failure:
    """The step that failed last, in words. ``stalled``: no retry helps."""

    reason: str
    message: str
    stalled: bool


def conditions(
    desired: Desired, seen: Observed, plan: Plan, failure: Failure | None
) -> tuple[Condition, ...]:
    """All conditions the agent owns, as they are now."""
    ready = _ready(desired, seen, plan, failure)
    found = [ready]
    if stalled := _stalled(plan, failure):
        found.append(stalled)
    elif ready.status != "True" and not _held(desired, seen):
        found.append(Condition("Reconciling", "True", ready.reason, ready.message))
    record = seen.record if isinstance(seen.record, Recorded) else None
    if record is None:
        return tuple(found)
    if record.exited:
        found.append(Condition("Exited", "True", *_ended(record)))
    if _restart_required(desired, seen, record):
        message = "env, command or args changed; they act at the next boot: stop it and run it"
        found.append(Condition("RestartRequired", "True", "SpecChanged", message))
    if desired.reservation is not None and record.released == desired.reservation:
        message = f"the node gave the reservation back: {plan.because}"
        found.append(Condition("Scheduled", "False", "Released", message))
    return tuple(found)


def merge(
    previous: Iterable[Mapping[str, Any]],
    mine: Iterable[Condition],
    owned: frozenset[str],
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """The whole condition list to send: ``mine`` stamped, what is not ``owned`` copied.

    lastTransitionTime moves only with the status (metav1.Condition's rule). Of the types in
    ``owned``, those that are not in ``mine`` vanish. Ready comes first, the rest in a fixed order,
    so that an unchanged list is equal to the one before. What the operator says of the reservation
    holds whatever the spec's generation is, and ``kubectl wait`` overlooks a condition that names
    an older one: so it names none.
    """
    before = {str(entry["type"]): dict(entry) for entry in previous}
    after = {kind: entry for kind, entry in before.items() if kind not in owned}
    for condition in mine:
        old = before.get(condition.type)
        same = old is not None and old.get("status") == condition.status
        of = {} if condition.type in OPERATORS else {"observedGeneration": generation}
        after[condition.type] = {
            "type": condition.type,
            "status": condition.status,
            **of,
            "lastTransitionTime": old["lastTransitionTime"] if old and same else now,
            "reason": condition.reason,
            "message": condition.message[:MESSAGE_LIMIT],
        }
    return sorted(after.values(), key=lambda entry: (entry["type"] != "Ready", entry["type"]))


_DOWN = {State.STOPPED: "stopped", State.STANDBY: "asleep"}

AGENT_OWNED = AGENTS | {"Ready"}


def _ready(desired: Desired, seen: Observed, plan: Plan, failure: Failure | None) -> Condition:
    record = seen.record if isinstance(seen.record, Recorded) else None
    if plan.settled and record is not None and record.exited and desired.mode is not Mode.STOPPED:
        return Condition("Ready", "False", *_ended(record))
    if failure is not None:
        return Condition("Ready", "False", failure.reason, failure.message)
    if plan.settled:
        return _arrived(desired, seen, plan)
    status = "Unknown" if plan.origin is State.UNKNOWN else "False"
    reason = plan.waiting.reason if plan.waiting else "Reconciling"
    return Condition("Ready", status, reason, plan.sentence)


def _arrived(desired: Desired, seen: Observed, plan: Plan) -> Condition:
    leaving = desired.permit in (Permit.EVICTING, Permit.ENDING)
    if leaving and desired.mode is not Mode.STOPPED and plan.origin.value != desired.mode.value:
        return Condition("Ready", "False", "Evicted", f"{_DOWN[plan.origin]}: {plan.because}")
    asked = desired.mode.value in (plan.origin.value, State.STOPPED.value)
    if desired.draining and not asked:
        message = f"{_DOWN[plan.origin]}: {plan.because}"
        return Condition("Ready", "False", "NodeStopping", message)
    sentence = {
        State.RUNNING: "the guest says that its workload runs",
        State.PAUSED: "the guest's virtual CPUs are stopped",
        State.STOPPED: "no VMM; the disk is kept",
        State.STANDBY: "no VMM; memory and disk are kept",
    }.get(plan.origin, plan.because)
    return Condition("Ready", "True", plan.origin.value, sentence)


def _stalled(plan: Plan, failure: Failure | None) -> Condition | None:
    if failure is not None and failure.stalled:
        return Condition("Stalled", "True", failure.reason, failure.message)
    if plan.waiting is not None and plan.waiting.stalled:
        return Condition("Stalled", "True", plan.waiting.reason, plan.waiting.message)
    return None


def _held(desired: Desired, seen: Observed) -> bool:
    """Whether policy keeps it down: an end, not a way."""
    return isinstance(seen.record, Recorded) and seen.record.exited


def _ended(record: Recorded) -> tuple[str, str]:
    if record.exit is None:
        return "Failed", "it ended"
    reason = record.exit.reason or ("Failed" if record.exit.failed else "Completed")
    return reason, f"{record.exit.message}; set operatingMode Stopped, then Running, to run again"


def _restart_required(desired: Desired, seen: Observed, record: Recorded) -> bool:
    lives = isinstance(seen.vmm, Vmm) and isinstance(seen.guest, Guest)
    boots_with = desired.workload.over(record.inherited)
    return lives and record.workload is not None and record.workload != boots_with


def state_error(seen: Observed) -> str | None:
    """Why the state is Unknown, in one line; None when it is known."""
    return why_unknown(seen)[:MESSAGE_LIMIT] if seen.state is State.UNKNOWN else None
