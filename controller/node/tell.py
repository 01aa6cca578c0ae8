"""Events: what a person reads in ``kubectl describe`` about a transition, at most two for each.

An Event is told when the Ready condition changes its reason to one that is not under way, and by
the steps of sleep, wake and fork themselves (``about``); the recorder folds repeats together.
"""

from collections.abc import Mapping
from typing import Any

from controller.core.capacity import rounded
from controller.core.ownership import condition
from controller.kube.events import EventRecorder
from controller.memory.manifest import Manifest

_QUIET = frozenset({"Reconciling", "Booting", "Stopping", "Pending", "Unscheduled", "StaleView"})
_QUIET |= {"Standby"}  # StandbyReached has told it
_NORMAL = frozenset({"Running", "Paused", "Stopped", "Completed", "ImagePulling"})


def about(
    events: EventRecorder,
    obj: Mapping[str, Any],
    reason: str,
    message: str,
    *,
    warning: bool = False,
) -> None:
    """Tell what a step does or did; nothing for an object that is gone."""
    if obj["metadata"].get("name"):
        events.event(obj, "Warning" if warning else "Normal", reason, message)


def saved(manifest: Manifest) -> str:
    """What a snapshot took, in words."""
    pages = manifest.delta or manifest.base
    what = "changed pages" if manifest.delta else "used pages"
    return f"memory is on disk: {rounded(pages.on_disk)} of {what}, and device state"


def fork(paused: float, disk: float, written: int, *, together: bool) -> str:
    """What a fork cost, in words."""
    if together:
        return (
            "it has a disk of its own; it was made together with another fork, which says the cost"
        )
    how = f"{rounded(written)} copied in {disk:.2f} s" if written else "shared by reflink"
    stood = f"; its source stood still for {paused:.2f} s" if paused else ""
    return f"it has a disk of its own ({how}){stood}"


def transition(events: EventRecorder, obj: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Tell the change of Ready from ``obj`` to the written status ``after``, if it is one."""
    before = condition(obj, "Ready")
    ready = condition({"status": after}, "Ready")
    if ready.get("reason") == before.get("reason") or ready.get("reason") in _QUIET:
        return
    kind = "Normal" if ready["reason"] in _NORMAL else "Warning"
    events.event(obj, kind, str(ready["reason"]), str(ready["message"]))
