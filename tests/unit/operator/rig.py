"""The operator without kopf: a fake API server, the real mirrors, the real decisions and workers.

A reflector stands in for kopf's watch, which has no other task than to hand events on. The
scheduler is the test itself: it binds Pods, or says why not.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from controller.core.names import FINALIZER, UID_LABEL, node_lease
from controller.kube.client import Client
from controller.kube.events import EventRecorder
from controller.kube.reflector import Reflector, Timing
from controller.kube.resources import INSTANCES
from controller.kube.workqueue import WorkQueue, run_workers
from controller.operator.cluster import Cluster
from controller.operator.instances import Instances
from controller.settings import OperatorSettings
from tests.fake_apiserver import FakeApiServer, Seen
from tests.waiting import until

Object = dict[str, Any]
NAMESPACE = "ns"
NODE = "node-1"
QUICK = Timing(
    stall=30.0, connect_spacing=0.0, list_spacing=0.0, backoff=0.001, backoff_cap=0.01,
    watch_min=60, watch_max=60,
)  # fmt: skip


@dataclass
class Rig:
    """A running operator and the cluster around it."""

    server: FakeApiServer
    queue: WorkQueue[str]
    cluster: Cluster
    instances: Instances
    leading: bool = True

    def create(self, name: str = "web", **spec: object) -> Object:
        """A user creates an Instance."""
        return self.server.put("instances", instance(name, spec))

    def get(self, name: str = "web") -> Object:
        """The Instance as stored."""
        return self.server.get("instances", name, NAMESPACE)

    def has(self, name: str = "web") -> bool:
        """Whether the Instance is stored."""
        return (NAMESPACE, name) in self.server.objects.get("instances", {})

    def change(self, kind: str, name: str, **changes: object) -> Object:
        """Somebody else writes top-level keys of an object."""
        return self.server.put(kind, {**self.server.get(kind, name, NAMESPACE), **changes})

    def say(self, name: str = "web", **status: object) -> Object:
        """The node agent writes status."""
        return self.change("instances", name, status={**self.get(name)["status"], **status})

    def delete(self, name: str = "web") -> None:
        """A user deletes the Instance: it stays while it has finalizers."""
        meta = {**self.get(name)["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        self.change("instances", name, metadata=meta)

    @property
    def pods(self) -> list[Object]:
        """All Pods as stored."""
        return list(self.server.objects.get("pods", {}).values())

    async def one_pod(self) -> Object:
        """The only Pod, once it is there."""
        await until(lambda: len(self.pods) == 1)
        return self.pods[0]

    async def bind(self) -> Object:
        """The scheduler binds the only Pod."""
        name = (await self.one_pod())["metadata"]["name"]
        return self.change("pods", name, spec={**self.pods[0]["spec"], "nodeName": NODE})

    async def placed(self, name: str = "web", **spec: object) -> Object:
        """An Instance that has its node; as the agent would find it."""
        self.create(name, **spec)
        await self.bind()
        await until(lambda: self.said("Scheduled", name).get("status") == "True")
        return self.get(name)

    def said(self, kind: str, name: str = "web") -> Object:
        """One of the Instance's conditions, or nothing."""
        listed = self.get(name).get("status", {}).get("conditions", ())
        return next((found for found in listed if found["type"] == kind), {})

    def writes(self, part: str) -> list[Seen]:
        """The requests that wanted to change something, by a part of their path."""
        return [seen for seen in self.server.requests if seen.method != "GET" and part in seen.path]

    async def settled(self) -> None:
        """Until everything that is stored was seen and looked at, our own writes included."""
        await until(lambda: self._seen_all() and self.queue.idle)

    async def look_again(self) -> None:
        """Until everything was looked at once more."""
        await self.settled()
        self.instances.look_at_all()
        await self.settled()

    def _seen_all(self) -> bool:
        mirrored = (("instances", self.instances.known), ("pods", dict(self.cluster.pods.items())))
        return all(
            _versions(self.server.objects.get(kind, {}).values()) == _versions(seen.values())
            for kind, seen in mirrored
        )


@asynccontextmanager
async def running(
    server: FakeApiServer,
    client: Client,
    settings: OperatorSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Rig]:
    """A cluster with one live node, and the operator leading it."""
    server.put("namespaces", {"metadata": {"name": NAMESPACE}})
    server.put("nodes", {"metadata": {"name": NODE}})
    renew(server, "first")
    settings = settings or OperatorSettings()
    queue: WorkQueue[str] = WorkQueue("test")
    cluster = Cluster(
        client, settings, queue.add, lambda name: rig.instances.look_at_node(name), clock
    )
    for mirror in cluster.reflectors:
        mirror._timing = QUICK  # nothing here waits for a real back-off
    events = EventRecorder(client, "torpor-operator", "test")
    ids = (f"id{number}" for number in range(1000))
    instances = Instances(
        client, cluster, events, settings, lambda: next(ids), lambda: rig.leading, queue.add
    )
    rig = Rig(server, queue, cluster, instances)

    def watched(uid: str, old: Object | None, new: Object | None) -> None:
        instances.lost(uid) if new is None else instances.watched(new)

    watch = Reflector(client, INSTANCES, on_change=watched, timing=QUICK)
    work = [
        watch.run(), events.run(), run_workers(queue, instances.reconcile, 4),
        *(mirror.run() for mirror in cluster.reflectors),
    ]  # fmt: skip
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await cluster.wait_synced()
        await watch.wait_synced()
        instances.look_at_all()
        yield rig
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _versions(objects: Iterable[Object]) -> set[tuple[str, str]]:
    metas = [obj["metadata"] for obj in objects]
    return {(meta["uid"], meta["resourceVersion"]) for meta in metas}


def instance(name: str, spec: Object) -> Object:
    """An Instance as the API server stores it, its defaults filled in."""
    said = {"image": "example.com/app:1", "operatingMode": "Running", "stopTimeoutSeconds": 5}
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {"name": name, "namespace": NAMESPACE, "generation": 1},
        "spec": {**said, **spec},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "Pending"}]},
    }


def renew(server: FakeApiServer, word: str) -> None:
    """The node agent renews its Lease."""
    meta = {"name": node_lease(NODE), "namespace": "torpor-system"}
    server.put("leases", {"metadata": meta, "spec": {"renewTime": word}})


def condition(kind: str, status: str, reason: str) -> Object:
    """A condition as somebody may have written it."""
    return {
        "type": kind, "status": status, "reason": reason, "message": reason,
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip


__all__ = ["FINALIZER", "UID_LABEL", "NAMESPACE", "NODE", "Rig", "running", "renew", "condition"]
