"""A fork before it has a node: what it takes from its source, or why it has to wait.

Pure: from the fork's object and its source's, as the operator knows them. The source is found by
its name until the fork is placed, by its UID ever after. What does not live here: what is done
about it (``placement``), and the forking itself (``node``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.core.desired import Mode
from controller.core.ownership import Object, deleting, fork_pending, mode

CIRCLE_MAX = 1000  # forks that wait for each other, looked through for a circle
_NAMED = 8  # of them, in a message


@dataclass(frozen=True)
class Birth:
    """What a fork takes from its source when it is placed.

    ``memory``: whether it needs a reservation for that, and not only disk.
    """

    parent: str
    node: str
    resources: Mapping[str, Any]
    lineage: Mapping[str, Any]
    memory: bool


@dataclass(frozen=True)
class NoSource:
    """Why a fork cannot be placed yet. ``stalled``: not before somebody acts."""

    reason: str
    message: str
    stalled: bool = False


def waits_for(obj: Object) -> str | None:
    """The name of the source of a fork that has no node yet; None for every other Instance."""
    if deleting(obj) or (obj.get("status") or {}).get("nodeName"):
        return None
    source = (obj.get("spec") or {}).get("forkFrom")
    return str(source["name"]) if source else None


def circle(obj: Object, find: Callable[[str], Object | None]) -> tuple[str, ...]:
    """The names of the forks that wait for each other, ``obj`` first; empty when it is in no
    circle. ``find`` gives the Instance of a name in its namespace.
    """
    first = str(obj["metadata"]["name"])
    names, at = [first], obj
    while (name := waits_for(at)) is not None and len(names) <= CIRCLE_MAX:
        if name == first:
            return tuple(names)
        found = find(name)
        if found is None or name in names:
            break
        names.append(name)
        at = found
    return ()


def birth(obj: Object, source: Object | None, ring: tuple[str, ...] = ()) -> Birth | NoSource:
    """What ``obj`` takes from ``source`` (None: there is no Instance of that name).

    ``ring`` are the names of a circle that it waits in.
    """
    if ring:
        return _in_a_circle(ring)
    name = waits_for(obj)
    if source is None:
        where = obj["metadata"]["namespace"]
        message = f"there is no Instance {name} in namespace {where} to fork from; create it"
        return NoSource("SourceNotFound", message)
    if deleting(source):
        message = f"Instance {name} is being deleted, so nothing new is forked from it"
        return NoSource("SourceDeleting", message)
    status = source.get("status") or {}
    if fork_pending(source):
        message = f"Instance {name} is itself a fork that is not finished; this one follows it"
        return NoSource("SourceNotReady", message)
    if not (status.get("nodeName") and status.get("resources")):
        message = (
            f"Instance {name} was never placed on a node, so it has nothing to fork yet; "
            "where it is Stopped, let it run once"
        )
        return NoSource("SourceNotReady", message)
    parent = str(source["metadata"]["uid"])
    before = status.get("lineage") or {}
    lineage = {
        "parent": parent,
        "root": before.get("root", parent),
        "depth": before.get("depth", 0) + 1,
    }
    needed = _memory_needed(obj, status)
    return Birth(parent, status["nodeName"], status["resources"], lineage, needed)


def _memory_needed(obj: Object, source: Object) -> bool:
    """Whether guest memory comes to be on the node: not where the source's is only shared."""
    asked = mode(obj)
    if asked is not Mode.STANDBY:
        return asked is not Mode.STOPPED
    running = source.get("state") in ("Running", "Paused")
    saved = source.get("snapshot") or (running and obj["spec"]["forkFrom"].get("fromRunning"))
    return not saved


def _in_a_circle(ring: tuple[str, ...]) -> NoSource:
    if len(ring) == 1:
        return NoSource("ForkCycle", f"{ring[0]} is to be forked from itself; delete it", True)
    named = ", ".join(ring[:_NAMED]) + (", …" if len(ring) > _NAMED else "")
    message = f"{named} wait for each other, each for the next; delete one of them"
    return NoSource("ForkCycle", message, stalled=True)
