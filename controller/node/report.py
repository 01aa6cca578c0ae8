"""Say what is: compute the status this pass found, and write it if it differs from the object's.

One merge patch of /status at most, with the resourceVersion it was computed from; a conflict means
that somebody else wrote, so the next pass looks at the newer object. Where Ready is the operator's
to write, nothing is written at all.
"""

from collections.abc import Mapping
from typing import Any

from controller.core import conditions as say
from controller.core.capacity import rounded
from controller.core.conditions import Failure
from controller.core.desired import Desired
from controller.core.observed import Observed, Recorded, Snapshot, Unknown, Vmm
from controller.core.ownership import ready_is_operators
from controller.core.state import State
from controller.core.steps import Plan
from controller.errors import Rejected
from controller.kube.client import Client
from controller.kube.resources import INSTANCES
from controller.node import clock

Status = dict[str, Any]

_OF_THE_RECORD = ("startedAt", "stoppedAt", "exit", "image", "kernel")


def status(
    desired: Desired, seen: Observed, plan: Plan, failure: Failure | None, before: Mapping[str, Any]
) -> Status:
    """The agent's part of the status, whole; a key that is to vanish is None (merge patch)."""
    record = seen.record if isinstance(seen.record, Recorded) else None
    said = say.conditions(desired, seen, plan, failure)
    state = State.STOPPED if seen.state is State.ABSENT else seen.state
    found = {
        "observedGeneration": desired.generation,
        "state": state.value,
        "stateError": say.state_error(seen),
        "conditions": say.merge(
            before.get("conditions") or (), said, _owned(said), desired.generation, clock.wall()
        ),
        "plan": _plan(plan),
        "startedAt": record.started_at if record else None,
        "stoppedAt": record.stopped_at if record else None,
        "exit": _exit(record),
        "hypervisor": _hypervisor(seen, record, before),
        "image": {"digest": record.image_digest} if record and record.image_digest else None,
        "kernel": _kernel(record),
        "snapshot": _snapshot(seen, before),
    }
    if record is not None and record.forked_at is not None:
        found["lineage"] = {**(before.get("lineage") or {}), "forkedAt": record.forked_at}
    if record is None:  # without it nothing is known of what was: what was said of it stands
        for key in _OF_THE_RECORD:
            del found[key]
    return found


def refusal(obj: Mapping[str, Any], err: Rejected) -> Status:
    """The status of an object that cannot be read: Stalled until somebody corrects it."""
    generation = obj["metadata"].get("generation", 0)
    said = (
        say.Condition("Ready", "False", err.reason, str(err)),
        say.Condition("Stalled", "True", err.reason, str(err)),
    )
    before = (obj.get("status") or {}).get("conditions") or ()
    owned = say.AGENT_OWNED - {"Exited", "RestartRequired"}
    return {
        "observedGeneration": generation,
        "conditions": say.merge(before, said, owned, generation, clock.wall()),
    }


def changes(before: Mapping[str, Any], after: Status) -> Status:
    """What of ``after`` differs from ``before``; empty = there is nothing to write."""
    return {
        key: _with_removals(before.get(key), value)
        for key, value in after.items()
        if before.get(key) != value
    }


async def write(client: Client, obj: Mapping[str, Any], after: Status) -> dict[str, Any] | None:
    """Patch the status where it differs. The object as stored then, or None if nothing was sent."""
    if ready_is_operators(obj):
        return None
    changed = changes(obj.get("status") or {}, after)
    if not changed:
        return None
    metadata = obj["metadata"]
    body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": changed}
    return await client.patch(
        INSTANCES,
        metadata["name"],
        body,
        namespace=metadata["namespace"],
        subresource="status",
    )


def _owned(said: tuple[say.Condition, ...]) -> frozenset[str]:
    # Scheduled is the operator's, but for the one word Released.
    released = any(condition.type == "Scheduled" for condition in said)
    return say.AGENT_OWNED | {"Scheduled"} if released else say.AGENT_OWNED


def _with_removals(old: Any, new: Any) -> Any:
    """A merge patch keeps what it does not name: name the keys that are to vanish."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**dict.fromkeys(set(old) - set(new)), **new}
    return new


def _plan(plan: Plan) -> Status | None:
    if not plan.steps and plan.waiting is None:
        return None
    return {
        "from": plan.origin.value,
        "to": plan.target.value,
        "steps": [step.name for step in plan.steps],
        "because": plan.because[: say.MESSAGE_LIMIT],
    }


def _snapshot(seen: Observed, before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = seen.snapshot
    if isinstance(found, Unknown) or (isinstance(found, Snapshot) and found.reason):
        return before.get("snapshot")  # it is there; what was said of it stands
    if not isinstance(found, Snapshot):
        return None
    whole = found.base_bytes + found.delta_bytes + found.state_bytes
    return {
        "takenAt": found.taken_at,
        "size": rounded(whole),
        "bytes": whole,
        "baseBytes": found.base_bytes,
        "deltaBytes": found.delta_bytes,
        "hypervisor": found.hypervisor,
    }


def _exit(record: Recorded | None) -> Status | None:
    if record is None or record.exit is None:
        return None
    ended = record.exit
    said: Status = {"message": ended.message[: say.MESSAGE_LIMIT]}
    return said if ended.code is None else {"code": ended.code, **said}


def _hypervisor(
    seen: Observed, record: Recorded | None, before: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    if isinstance(seen.vmm, Unknown):
        return before.get("hypervisor")  # it lives; what was known of it still holds
    if record is None or not isinstance(seen.vmm, Vmm):
        return None
    vmm = seen.vmm
    return {
        "type": record.hardware.hypervisor,
        "version": vmm.version,
        "pid": vmm.pid,
        "accelerator": vmm.accelerator,
    }


def _kernel(record: Recorded | None) -> Status | None:
    if record is None or record.kernel_version is None:
        return None
    return {"version": record.kernel_version, "digest": f"sha256:{record.kernel_digest}"}
