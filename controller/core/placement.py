"""What the operator does about one Instance: pure, from objects to at most a few actions.

The placing itself is the scheduler's; this settles when a reservation Pod is made and given back,
and what is said meanwhile. The table it carries out:

=================================== ==============================================================
deleting                            Pods go once our finalizer is off; the finalizer is ours to
                                    drop only if there never was a node, or its Node is gone
no finalizer                        add it, before anything else exists
fork without a node                 its source is missing, going, not ready or waits for it: say so,
                                    no Pod. Else its node, hardware and lineage are the source's:
                                    with a Pod pinned there, or at once where memory on disk is
                                    all it needs. A Pod made for another source goes
needs memory, Scheduled=True        its Pod lives: nothing. Terminating: say Evicting, or
                                    NamespaceTerminating where nothing can be kept. Gone or ended
                                    while a VMM may live: a new Pod pinned to the node, the guest
                                    untouched
needs memory, asked to leave        wait until the node says Released
needs memory, Released              delete that Pod (grace 0), then make one pinned to the node
needs memory, else                  make a Pod; bound: one status write with everything; refused
                                    by the scheduler: pass its words on
needs none                          delete Pods the node gave back or never had; without a node say
                                    Ready ourselves
=================================== ==============================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from controller.api.meta import format_quantity
from controller.core.conditions import Condition, merge
from controller.core.desired import Hardware
from controller.core.names import FINALIZER, SOURCE_LABEL
from controller.core.ownership import (
    RESTING,
    Object,
    condition,
    deleting,
    is_true,
    needs_memory,
    ready_is_operators,
)
from controller.core.source import Birth, NoSource, birth, waits_for


class NodeState(Enum):
    """What is known of the node that has the Instance's disk."""

    NONE = "None"  # it has no node yet
    ALIVE = "Alive"
    SILENT = "Silent"  # its agent's Lease has run out
    GONE = "Gone"  # the Node object was deleted
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Action:
    """One write to the API server. At most one of them is a write to the Instance."""


class AddFinalizer(Action):
    """Put our finalizer on the Instance."""


class DropFinalizer(Action):
    """Take our finalizer off: nothing of it is on any node we could still ask."""


@dataclass(frozen=True)
class CreatePod(Action):
    """Make the reservation Pod. ``node``: pinned there; ``source``: UID that a fork is made of."""

    node: str | None
    source: str | None = None


@dataclass(frozen=True)
class DeletePod(Action):
    """Delete this Pod at once (grace 0, by UID)."""

    name: str
    uid: str


@dataclass(frozen=True)
class WriteStatus(Action):
    """Patch these keys of the status; ``assign_id``: and give it an id."""

    status: dict[str, Any]
    assign_id: bool = False


@dataclass(frozen=True)
class World:
    """What the operator knows beside the Instance itself."""

    pods: Sequence[Object]  # with its UID label and owner reference
    node: NodeState
    namespace_terminating: bool
    hardware: Hardware  # what spec says, settings where it is silent; a fork: its source's
    now: str  # RFC 3339, for lastTransitionTime
    silence_told: bool = False  # this silence of the node was said on it; not said twice
    source: Object | None = None  # the Instance whose name a fork without a node waits for
    circle: tuple[str, ...] = ()  # names of forks that wait for each other, this one first


def decide(obj: Object, world: World) -> tuple[Action, ...]:
    """The actions to take now, in order. Nothing to do gives an empty tuple."""
    if deleting(obj):
        return _let_go(obj, world)
    if FINALIZER not in obj["metadata"].get("finalizers", ()):
        return () if world.namespace_terminating else (AddFinalizer(),)
    if _silent(obj, world):
        return (_write(obj, world, Condition("Ready", "Unknown", "NodeUnreachable", _SILENT)),)
    if waits_for(obj) is not None:
        return _fork(obj, world)
    if not needs_memory(obj):
        return _without_memory(obj, world)
    if is_true(obj, "Scheduled"):
        return _scheduled(obj, world)
    scheduled = condition(obj, "Scheduled")
    if scheduled.get("reason") in LEAVING:
        return ()
    if scheduled.get("reason") == "Released" and (given_back := _given_back(obj, world)):
        return given_back
    return _reserve(obj, world)


LEAVING = frozenset({"Evicting", "NamespaceTerminating"})  # of Scheduled: the guest is to go


def orphaned(pods: Sequence[Object]) -> tuple[DeletePod, ...]:
    """What to do with the Pods of an Instance that does not exist any more."""
    return tuple(map(_delete, pods))


_SILENT = (
    "the node agent's Lease has run out; the guest is left alone until the node is heard again"
)


def _let_go(obj: Object, world: World) -> tuple[Action, ...]:
    if FINALIZER not in obj["metadata"].get("finalizers", ()):
        return tuple(map(_delete, world.pods))
    never_placed = not (obj.get("status") or {}).get("nodeName")
    if never_placed or world.node is NodeState.GONE:
        return (DropFinalizer(), *map(_delete, world.pods))
    return ()


def _silent(obj: Object, world: World) -> bool:
    # An agent that lost only its Lease contradicts us; to insist would be a fight without an end.
    said = world.silence_told or condition(obj, "Ready").get("reason") == "NodeUnreachable"
    return world.node is NodeState.SILENT and not said


def _without_memory(obj: Object, world: World) -> tuple[Action, ...]:
    status = obj.get("status") or {}
    if not status.get("nodeName"):
        stopped = Condition("Ready", "True", "Stopped", "no VMM; it has not been placed yet")
        return (*map(_delete, world.pods), *_say_stopped(obj, world, stopped))
    released = condition(obj, "Scheduled").get("reason") == "Released"
    unused = [
        pod for pod in world.pods if released or pod["metadata"]["uid"] != status.get("reservation")
    ]
    waited = condition(obj, "Scheduled")
    stale = waited.get("status") == "False" and waited.get("reason") not in (
        LEAVING | {"Released", "NotNeeded"}
    )
    actions: tuple[Action, ...] = tuple(map(_delete, unused))
    if stale:
        gone = Condition("Scheduled", "False", "NotNeeded", "the operating mode needs no memory")
        actions = (*actions, _write(obj, world, gone))
    return actions


def _say_stopped(obj: Object, world: World, ready: Condition) -> tuple[Action, ...]:
    status, generation = obj.get("status") or {}, obj["metadata"].get("generation", 0)
    current = condition(obj, "Ready")
    if current.get("status") == "True" and current.get("observedGeneration") == generation:
        return ()
    not_needed = Condition("Scheduled", "False", "NotNeeded", "the operating mode needs no memory")
    patch = _patch(obj, world, ready, not_needed)
    return (WriteStatus(patch, assign_id=not status.get("id")),)


def _scheduled(obj: Object, world: World) -> tuple[Action, ...]:
    status = obj["status"]
    held = [pod for pod in world.pods if pod["metadata"]["uid"] == status.get("reservation")]
    if not held or _finished(held[0]):
        if world.namespace_terminating:
            return (_evicting(obj, world, "its reservation Pod is gone"),)
        return _lost(obj, world)
    if _vanishing(held[0]):
        return ()  # not asked to leave but taken away: its DELETED comes next
    if deleting(held[0]):
        return (_evicting(obj, world, "its reservation Pod is being deleted"),)
    return ()


def _vanishing(pod: Object) -> bool:
    """Deleted with no grace: by force, so there is nothing left to wait for."""
    return deleting(pod) and pod["metadata"].get("deletionGracePeriodSeconds") == 0


def _finished(pod: Object) -> bool:
    """Failed or Succeeded by itself: it stays, but the scheduler counts nothing for it any more."""
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return ended and not deleting(pod)  # one that was asked to leave ends so, too


def _evicting(obj: Object, world: World, why: str) -> WriteStatus:
    if world.namespace_terminating:
        message = "its namespace is being deleted; the guest is stopped, not saved"
        return _write(obj, world, Condition("Scheduled", "False", "NamespaceTerminating", message))
    how = "stopped" if world.namespace_terminating else "put to sleep"
    message = f"{why}; the guest is {how}"
    return _write(obj, world, Condition("Scheduled", "False", "Evicting", message))


def _lost(obj: Object, world: World) -> tuple[Action, ...]:
    message = (
        "its reservation Pod vanished or ended; a new one is made for the same node, the guest is "
        "untouched"
    )
    lost = Condition("Scheduled", "False", "ReservationLost", message)
    return (_write(obj, world, lost),)


def _given_back(obj: Object, world: World) -> tuple[Action, ...]:
    """The Pod that the node gave back goes first; a new one has the same name."""
    reservation = (obj.get("status") or {}).get("reservation")
    return tuple(_delete(pod) for pod in world.pods if pod["metadata"]["uid"] == reservation)


def _fork(obj: Object, world: World) -> tuple[Action, ...]:
    """A fork that has no node yet. Its source may change at any time until it is placed."""
    made = birth(obj, world.source, world.circle)
    if isinstance(made, NoSource):
        return (*map(_delete, world.pods), *_say_no_source(obj, world, made))
    if world.namespace_terminating:
        return ()
    if not made.memory:
        return (*map(_delete, world.pods), _placed_without_memory(obj, world, made))
    if others := [pod for pod in world.pods if _is_of_another(pod, made)]:
        return tuple(map(_delete, others))
    return _reserve(obj, world, made)


def _is_of_another(pod: Object, made: Birth) -> bool:
    """Made for a source that had this one's name before, or where it was before."""
    labels = pod["metadata"].get("labels") or {}
    return labels.get(SOURCE_LABEL) != made.parent or (
        (pod["spec"].get("nodeName") or made.node) != made.node
    )


def _say_no_source(obj: Object, world: World, found: NoSource) -> tuple[Action, ...]:
    said = [Condition("Ready", "False", found.reason, found.message)]
    if found.stalled:
        said.append(Condition("Stalled", "True", found.reason, found.message))
    patch = _patch(obj, world, *said, drop=frozenset({"Scheduled"}))
    status = obj.get("status") or {}
    if all(status.get(key) == value for key, value in patch.items()):
        return ()
    return (WriteStatus(patch, assign_id=not status.get("id")),)


def _placed_without_memory(obj: Object, world: World, made: Birth) -> WriteStatus:
    not_needed = Condition("Scheduled", "False", "NotNeeded", "the fork needs no memory")
    pending = Condition("Ready", "False", "Pending", f"node {made.node} is to fork it")
    patch = {**_patch(obj, world, not_needed, pending), **_inherited(made)}
    return WriteStatus(patch, assign_id=not (obj.get("status") or {}).get("id"))


def _inherited(made: Birth) -> dict[str, Any]:
    return {
        "nodeName": made.node,
        "epoch": 1,
        "resources": dict(made.resources),
        "lineage": dict(made.lineage),
    }


def _reserve(obj: Object, world: World, made: Birth | None = None) -> tuple[Action, ...]:
    if world.namespace_terminating:
        return ()  # nothing new is made there; the deletion comes to every Instance in it
    if leaving := [pod for pod in world.pods if deleting(pod) or _finished(pod)]:
        return tuple(map(_delete, leaving))
    if not world.pods:
        if made is not None:
            return (CreatePod(made.node, made.parent),)
        return (CreatePod((obj.get("status") or {}).get("nodeName")),)
    pod = world.pods[0]
    if pod["spec"].get("nodeName"):
        return (_bound(obj, world, pod, made),)
    return _waiting(obj, world, pod)


def _bound(obj: Object, world: World, pod: Object, made: Birth | None) -> WriteStatus:
    status = obj.get("status") or {}
    node = pod["spec"]["nodeName"]
    scheduled = Condition("Scheduled", "True", "Scheduled", f"reserved on node {node}")
    alive = status.get("state", "Stopped") not in RESTING
    patch: dict[str, Any]
    if alive:  # a lost reservation is back; Ready is the node's to say
        patch = _patch(obj, world, scheduled)
    else:
        pending = Condition("Ready", "False", "Pending", f"node {node} is to run it")
        patch = _patch(obj, world, scheduled, pending)
    patch["reservation"] = pod["metadata"]["uid"]
    if made is not None:
        patch |= _inherited(made)
    elif not status.get("nodeName"):
        patch |= {"nodeName": node, "epoch": 1, "resources": resources(world.hardware)}
    if not status.get("state"):
        patch["state"] = "Stopped"
    return WriteStatus(patch, assign_id=not status.get("id"))


def _waiting(obj: Object, world: World, pod: Object) -> tuple[Action, ...]:
    said = condition(pod, "PodScheduled")
    if said.get("status") != "False":
        return ()  # the scheduler has not looked at it yet
    reason, message = said.get("reason", "Unschedulable"), said.get("message", "")
    scheduled = Condition("Scheduled", "False", reason, message)
    return _say_waiting(obj, world, scheduled)


def refused(obj: Object, world: World, message: str) -> tuple[Action, ...]:
    """The API server refused the Pod (quota, limits, admission): say it in its words."""
    return _say_waiting(obj, world, Condition("Scheduled", "False", "ReservationRefused", message))


def _say_waiting(obj: Object, world: World, scheduled: Condition) -> tuple[Action, ...]:
    before = condition(obj, "Scheduled")
    generation = obj["metadata"].get("generation", 0)
    same = before.get("reason") == scheduled.reason and before.get("message") == scheduled.message
    silent = world.node is NodeState.SILENT
    ready = condition(obj, "Ready")
    ours = ready_is_operators(obj) and not silent
    old = ready.get("observedGeneration") != generation or ready.get("reason") == "NodeUnreachable"
    if same and not (ours and old):
        return ()
    said = [scheduled]
    if ours:
        said.append(Condition("Ready", "False", "WaitingForNode", scheduled.message))
    patch = _patch(obj, world, *said)
    status = obj.get("status") or {}
    if not status.get("state"):
        patch["state"] = "Stopped"
    return (WriteStatus(patch, assign_id=not status.get("id")),)


def resources(hardware: Hardware) -> dict[str, Any]:
    """``status.resources``: the hardware in force, sizes as quantities."""
    return {
        "hypervisor": hardware.hypervisor,
        "vcpus": hardware.vcpus,
        "memory": format_quantity(hardware.memory),
        "overlay": format_quantity(hardware.overlay),
        "diskBandwidth": hardware.disk_bandwidth,
    }


def _write(obj: Object, world: World, *said: Condition) -> WriteStatus:
    return WriteStatus(_patch(obj, world, *said))


def _patch(
    obj: Object, world: World, *said: Condition, drop: frozenset[str] = frozenset()
) -> dict[str, Any]:
    generation = obj["metadata"].get("generation", 0)
    before = (obj.get("status") or {}).get("conditions") or ()
    owned = drop | {condition.type for condition in said}
    if not (obj.get("status") or {}).get("nodeName"):
        owned |= {"Stalled"}  # no agent is there yet who could say it, or take it back
    patch: dict[str, Any] = {"conditions": merge(before, said, owned, generation, world.now)}
    if any(condition.type == "Ready" and condition.status != "Unknown" for condition in said):
        patch["observedGeneration"] = generation
        patch["state"] = (obj.get("status") or {}).get("state") or "Stopped"
    return patch


def _delete(pod: Object) -> DeletePod:
    return DeletePod(pod["metadata"]["name"], pod["metadata"]["uid"])
