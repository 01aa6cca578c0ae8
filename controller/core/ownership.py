"""Who may say what in an Instance's status, and when memory is needed. Used by both processes.

The operator and the node agent share the condition list. Each sends it whole, copying the other's
part from the object whose resourceVersion it sends; these functions settle whose part is whose.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from controller.core.desired import Mode, Permit

Object = Mapping[str, Any]

OPERATORS = frozenset({"Scheduled"})
AGENTS = frozenset({"Reconciling", "Stalled", "RestartRequired", "Exited"})
RESTING = frozenset({"Stopped", "Standby"})


def condition(obj: Object, kind: str) -> Object:
    """The condition of that type, or an empty mapping."""
    listed: Iterable[Object] = (obj.get("status") or {}).get("conditions") or ()
    return next((found for found in listed if found.get("type") == kind), {})


def is_true(obj: Object, kind: str) -> bool:
    """Whether the condition of that type has status True."""
    return condition(obj, kind).get("status") == "True"


def deleting(obj: Object) -> bool:
    """Whether somebody asked for the object to go."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def mode(obj: Object) -> Mode:
    """The operating mode asked for; GONE for an object that is being deleted."""
    if deleting(obj):
        return Mode.GONE
    return Mode((obj.get("spec") or {}).get("operatingMode", Mode.RUNNING.value))


def fork_pending(obj: Object) -> bool:
    """Whether it is a fork that does not have its own copy of everything yet."""
    lineage = (obj.get("status") or {}).get("lineage") or {}
    return bool((obj.get("spec") or {}).get("forkFrom")) and not lineage.get("forkedAt")


def needs_memory(obj: Object) -> bool:
    """Whether the Instance needs a reservation now: never while Exited, never while deleted.

    Standby needs one to get there, unless the memory is on disk already. Whether a fork starts
    with memory on disk depends on its source; the operator says it at placement, by NotNeeded.
    """
    asked = mode(obj)
    if asked in (Mode.GONE, Mode.STOPPED) or is_true(obj, "Exited"):
        return False
    if asked is not Mode.STANDBY:
        return True
    status = obj.get("status") or {}
    if status.get("nodeName") and fork_pending(obj):
        return condition(obj, "Scheduled").get("reason") != "NotNeeded"
    return not status.get("snapshot")


def permit(obj: Object) -> Permit:
    """What the operator's Scheduled condition lets the node do."""
    scheduled = condition(obj, "Scheduled")
    if scheduled.get("status") == "True" and (obj.get("status") or {}).get("reservation"):
        return Permit.GRANTED
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Evicting":
        return Permit.EVICTING
    if scheduled.get("status") == "False" and scheduled.get("reason") == "NamespaceTerminating":
        return Permit.ENDING
    return Permit.WITHHELD


def ready_is_operators(obj: Object) -> bool:
    """Whether Ready and observedGeneration are the operator's to write on this object.

    They are while there is no node, and while memory is needed but the Instance rests and
    Scheduled is neither True nor a call to leave (Evicting, NamespaceTerminating).
    """
    status = obj.get("status") or {}
    if not status.get("nodeName"):
        return True
    resting = status.get("state", "Stopped") in RESTING
    return needs_memory(obj) and resting and permit(obj) is Permit.WITHHELD
