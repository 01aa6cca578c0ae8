"""Events: what a person reads in ``kubectl describe`` about a transition, at most two for each.

An Event is told when the Ready condition changes its reason to one that is not under way; the
recorder folds repeats together.
"""

from collections.abc import Mapping
from typing import Any

from controller.core.ownership import condition
from controller.kube.events import EventRecorder

_QUIET = frozenset({"Reconciling", "Booting", "Stopping", "Pending", "Unscheduled", "StaleView"})
_NORMAL = frozenset({"Running", "Paused", "Standby", "Stopped", "Completed", "ImagePulling"})


def transition(events: EventRecorder, obj: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Tell the change of Ready from ``obj`` to the written status ``after``, if it is one."""
    before = condition(obj, "Ready")
    ready = condition({"status": after}, "Ready")
    if ready.get("reason") == before.get("reason") or ready.get("reason") in _QUIET:
        return
    kind = "Normal" if ready["reason"] in _NORMAL else "Warning"
    events.event(obj, kind, str(ready["reason"]), str(ready["message"]))
