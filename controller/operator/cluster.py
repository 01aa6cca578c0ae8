"""What the operator knows of the cluster beside the Instances: Pods, Nodes, Leases, namespaces.

Each is mirrored by a reflector of ours; every change says which Instances to look at again. A fact
that was not seen yet is unknown, never absent.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from controller.core.names import UID_LABEL, node_lease
from controller.core.placement import NodeState
from controller.kube.client import Client
from controller.kube.reflector import Reflector
from controller.kube.resources import LEASES, NAMESPACES, NODES, PODS
from controller.settings import OperatorSettings

log = logging.getLogger(__name__)

Object = dict[str, Any]
SILENCE_LOOK_SECONDS = 1.0


class Cluster:
    """Mirrors of what placement needs. ``look`` is called with the UID of an Instance."""

    def __init__(
        self,
        client: Client,
        settings: OperatorSettings,
        look: Callable[[str], None],
        look_at_node: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._look_at_node, self._clock = look, look_at_node, clock
        self._pods: dict[str, dict[str, Object]] = defaultdict(dict)  # Instance UID -> Pod UID
        self._silent_after = settings.node_lease_seconds
        self._renewed: dict[str, tuple[str, float]] = {}  # node -> renewTime, when we saw it
        self.pods = Reflector(
            client, PODS, label_selector=UID_LABEL, on_change=self._pod_changed, trim=_trim_pod
        )
        self.nodes = Reflector(client, NODES, on_change=self._node_changed, trim=_names_only)
        self.leases = Reflector(
            client, LEASES, namespace=settings.namespace, on_change=self._lease_changed
        )
        self.namespaces = Reflector(
            client, NAMESPACES, on_change=self._namespace_changed, trim=_names_only
        )
        self._node_names: dict[str, str] = {}  # name -> UID: a Node may come anew
        self._silent: set[str] = set()  # nodes whose silence was told
        self._terminating: set[str] = set()  # names of namespaces

    @property
    def reflectors(self) -> tuple[Reflector, ...]:
        """All mirrors, to be run."""
        return (self.pods, self.nodes, self.leases, self.namespaces)

    @property
    def synced(self) -> bool:
        """Every mirror has seen one complete list."""
        return all(reflector.synced for reflector in self.reflectors)

    async def wait_synced(self) -> None:
        """Until every mirror has seen one complete list."""
        for reflector in self.reflectors:
            await reflector.wait_synced()

    def pods_of(self, uid: str) -> list[Object]:
        """The reservation Pods of an Instance, oldest first."""
        found = self._pods.get(uid, {}).values()
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def instances_with_pods(self) -> list[str]:
        """UIDs of all Instances that have a Pod."""
        return list(self._pods)

    def namespace_terminating(self, name: str) -> bool:
        """Whether that namespace is being deleted."""
        return name in self._terminating

    def node(self, name: str | None) -> NodeState:
        """What is known of that node, by its object and by its agent's Lease."""
        if not name:
            return NodeState.NONE
        if not self.synced:
            return NodeState.UNKNOWN
        if name not in self._node_names:
            return NodeState.GONE
        left = self.lease_left(name)
        if left is None:
            return NodeState.UNKNOWN
        return NodeState.ALIVE if left > 0 else NodeState.SILENT

    def lease_left(self, name: str) -> float | None:
        """Seconds until the agent's Lease runs out, by our own clock; None without a Lease."""
        if name not in self._renewed:
            return None
        return self._renewed[name][1] + self._silent_after - self._clock()

    async def watch_silence(self) -> None:
        """Tell of nodes as they fall silent, for ever: when a Lease runs out, nothing happens."""
        while True:
            await asyncio.sleep(SILENCE_LOOK_SECONDS)
            self.tell_silence()

    def tell_silence(self) -> None:
        """Have the Instances looked at of every node that fell silent since the last time."""
        fallen = [
            name
            for name in self._renewed.keys() - self._silent
            if self.node(name) is NodeState.SILENT
        ]
        self._silent.update(fallen)
        for name in fallen:
            self._look_at_node(name)

    def renewed(self, node: str | None) -> str:
        """When that node's Lease was renewed last, in its own words; empty if that is not known."""
        return self._renewed[node][0] if node in self._renewed else ""

    def put_pod(self, pod: Object) -> None:
        """Take the answer to a create of ours."""
        self.pods.put(pod)

    def _pod_changed(self, uid: str, old: Object | None, new: Object | None) -> None:
        pod = new or old or {}
        owner = pod["metadata"]["labels"][UID_LABEL]
        if old and new and (before := old["metadata"]["labels"][UID_LABEL]) != owner:
            self._pod_changed(uid, old, None)  # relabelled: the one before has lost it
            log.warning("Pod %s: its label moved from %s to %s", uid, before, owner)
        if not _owned_by(pod, owner):
            return  # somebody else's Pod with our label
        if new is None:
            self._pods[owner].pop(uid, None)
            if not self._pods[owner]:
                del self._pods[owner]
        else:
            self._pods[owner][uid] = new
        self._look(owner)

    def _node_changed(self, uid: str, old: Object | None, new: Object | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        if new is None:
            if self._node_names.get(name) == uid:  # a relist tells of the new one first
                del self._node_names[name]
            self._look_at_node(name)
        else:
            self._node_names[name] = uid

    def _lease_changed(self, uid: str, old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        name = new["metadata"]["name"].removeprefix(node_lease(""))
        renewed = str((new.get("spec") or {}).get("renewTime"))
        before = self._renewed.get(name)
        if before is not None and before[0] == renewed:
            return
        # Only our own clock counts: the time at which we saw it change.
        self._renewed[name] = (renewed, self._clock())
        self._silent.discard(name)
        if before is None or before[1] + self._silent_after < self._clock():
            self._look_at_node(name)

    def _namespace_changed(self, uid: str, old: Object | None, new: Object | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        if new is not None and new["metadata"].get("deletionTimestamp"):
            self._terminating.add(name)
        else:
            self._terminating.discard(name)


def _owned_by(pod: Object, instance_uid: str) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == instance_uid and owner.get("controller") for owner in owners)


def _trim_pod(pod: Object) -> Object:
    """Only what placement reads: a mirror of thousands of Pods stays small."""
    meta, status = pod["metadata"], pod.get("status") or {}
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
    times = ("deletionTimestamp", "deletionGracePeriodSeconds", "creationTimestamp")
    conditions = [c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"]
    return {
        "metadata": {key: meta[key] for key in (*kept, *times) if key in meta},
        "spec": {"nodeName": (pod.get("spec") or {}).get("nodeName")},
        "status": {"conditions": conditions, "phase": status.get("phase")},
    }


def _names_only(obj: Object) -> Object:
    meta = obj["metadata"]
    kept = ("name", "uid", "resourceVersion", "deletionTimestamp")
    return {"metadata": {key: meta[key] for key in kept if key in meta}}
