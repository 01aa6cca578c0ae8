"""What comes in: this node's Instances by watch, and news from VMMs, guests and the image store.

All of it says only "look again at this UID". The newest object wins; what lay between is never
seen. Who vanishes from the watch may have been moved: nothing is torn down for that.
"""

from typing import Any

from controller.core import ownership, wish
from controller.core.desired import Desired, Mode
from controller.errors import Rejected
from controller.kube.client import Client
from controller.kube.reflector import Reflector
from controller.kube.resources import INSTANCES
from controller.kube.workqueue import WorkQueue
from controller.vmm.driver import EventKind

Object = dict[str, Any]


class Intake:
    """The node's Instances, and the queue of those to look at."""

    def __init__(self, client: Client, node_name: str) -> None:
        self.queue: WorkQueue[str] = WorkQueue()
        self.reflector = Reflector(
            client,
            INSTANCES,
            field_selector=f"status.nodeName={node_name}",
            on_change=self._changed,
        )

    def get(self, uid: str) -> Object | None:
        """The newest object of that UID, None when the watch has none."""
        return self.reflector.get(uid)

    def asked(self, uid: str) -> Mode | None:
        """The operating mode that this Instance asks for; None when the watch has none of it."""
        obj = self.reflector.get(uid)
        return None if obj is None else ownership.mode(obj)

    def put(self, obj: Object) -> None:
        """Take the answer to a write of ours, so that the next pass sees it."""
        self.reflector.put(obj)

    def news(self, uid: str) -> None:
        """Something happened to this Instance: look again."""
        self.queue.add(uid)

    def vmm_event(self, uid: str, kind: EventKind) -> None:
        """A VMM told something, or died."""
        self.queue.add(uid)

    def image_news(self, reference: str) -> None:
        """A pull changed its state: everybody who waits for that image looks again."""
        for uid, obj in self.reflector.items():
            if (obj.get("spec") or {}).get("image") in (reference, None):  # a fork names none
                self.queue.add(uid)

    def moved_on(self, uid: str, desired: Desired) -> bool:
        """Whether something else is asked for by now than ``desired``."""
        obj = self.reflector.get(uid)
        if obj is None:
            return True
        try:
            return wish.desired(obj) != desired
        except Rejected:
            return True

    def _changed(self, uid: str, old: Object | None, new: Object | None) -> None:
        self.queue.add(uid)
