"""Carry out what ``core.placement`` decides, one Instance at a time, only while we lead.

Every write carries the resourceVersion it was decided on; a conflict means that somebody was
faster, so the newer object is decided on again. That fences two operators at once: the second one's
write is refused, never doubled.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from controller.core import placement
from controller.core.desired import Hardware
from controller.core.names import FINALIZER, UID_LABEL
from controller.core.ownership import condition
from controller.core.placement import (
    Action,
    AddFinalizer,
    CreatePod,
    DeletePod,
    DropFinalizer,
    World,
    WriteStatus,
)
from controller.core.reservation import PodSettings, manifest
from controller.core.source import waits_for
from controller.core.wish import hardware as settled
from controller.errors import Retry
from controller.host import failpoint
from controller.kube.client import Client
from controller.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from controller.kube.events import EventRecorder
from controller.kube.resources import INSTANCES, PODS
from controller.operator.cluster import Cluster
from controller.operator.defaults import hardware
from controller.operator.known import Known, version
from controller.settings import OperatorSettings

log = logging.getLogger(__name__)

Object = dict[str, Any]
REFUSED_RETRY_SECONDS = 30.0
WATCH_DEAD_SECONDS = 90.0
SOURCE_SOON_SECONDS = 1.0

failpoint.register(
    *(
        f"operator.{action.__name__}.{when}"
        for action in (AddFinalizer, CreatePod, DeletePod, DropFinalizer, WriteStatus)
        for when in ("before", "after")
    )
)


@dataclass
class Instances:
    """Every Instance of the cluster, and what is done about each."""

    client: Client
    cluster: Cluster
    events: EventRecorder
    settings: OperatorSettings
    new_id: Callable[[], str]
    leads: Callable[[], bool]
    look: Callable[[str], None]
    known: Known = field(default_factory=Known)
    _unseen: dict[str, tuple[int, float]] = field(default_factory=dict)
    _told_silence: dict[str, str] = field(default_factory=dict)  # UID -> the Lease it was said of

    def watched(self, obj: Object) -> None:
        """The watch brought this object."""
        uid = obj["metadata"]["uid"]
        if uid in self._unseen and version(obj) >= self._unseen[uid][0]:
            del self._unseen[uid]
        self.saw(obj)

    @property
    def watch_lives(self) -> bool:
        """Whether the watch brings back what we write: a dead one is silent, not an error."""
        now = time.monotonic()
        return all(now - since < WATCH_DEAD_SECONDS for _, since in self._unseen.values())

    def saw(self, obj: Object) -> None:
        """The newest object, from the watch or from a write of ours."""
        if self.known.put(obj):
            self.look(obj["metadata"]["uid"])
            self._look_at_forks_of(obj)

    def lost(self, uid: str) -> None:
        """The object is gone from the API server."""
        obj = self.known.drop(uid)
        self._unseen.pop(uid, None)
        self._told_silence.pop(uid, None)
        self.look(uid)
        if obj is not None:
            self._look_at_forks_of(obj)

    def _look_at_forks_of(self, obj: Object) -> None:
        for uid in self.known.forks_waiting_for(obj):
            self.look(uid)

    def look_at_node(self, name: str) -> None:
        """Something changed about that node: look at all that live there."""
        for uid, obj in self.known.items():
            if (obj.get("status") or {}).get("nodeName") == name:
                self.look(uid)

    def look_at_all(self) -> None:
        """We lead since now: nothing was done for what happened before."""
        for uid in (*self.known, *self.cluster.instances_with_pods()):
            self.look(uid)

    async def reconcile(self, uid: str) -> float | None:
        """Decide and act for one Instance. Seconds until the next look, None: when told."""
        if not (self.leads() and self.cluster.synced):
            return None  # taking over looks at every key
        obj = self.known.get(uid)
        if obj is None:
            await self._clean_up(uid)
            return None
        if await self._source_is_on_its_way(obj):
            return SOURCE_SOON_SECONDS
        obj = self.known.get(uid, obj)  # newer, if it changed meanwhile
        world = self._world(obj)
        for action in placement.decide(obj, world):
            if not await self._do(obj, world, action):
                return REFUSED_RETRY_SECONDS
        return None

    async def _source_is_on_its_way(self, obj: Object) -> bool:
        """Whether a fork's source exists, and only our watch has not brought it yet."""
        name, namespace = waits_for(obj), obj["metadata"]["namespace"]
        if name is None or self.known.named(namespace, name) is not None:
            return False
        found = await self.client.get(INSTANCES, name, namespace)
        # It may be gone again by now, so nothing is taken from this answer but that it is to come.
        return found is not None and self.known.named(namespace, name) is None

    async def _clean_up(self, uid: str) -> None:
        """Pods whose Instance our watch does not have: delete them if it truly is gone."""
        pods = self.cluster.pods_of(uid)
        if not pods:
            return
        meta = pods[0]["metadata"]
        owner = next(o for o in meta["ownerReferences"] if o["uid"] == uid)
        found = await self.client.get(INSTANCES, owner["name"], meta["namespace"])
        if found is not None and found["metadata"]["uid"] == uid:
            self.saw(found)
            return
        for pod in pods:
            await self._delete_pod(pod["metadata"])

    def _world(self, obj: Object) -> World:
        status, namespace = obj.get("status") or {}, obj["metadata"]["namespace"]
        name = waits_for(obj)
        source = None if name is None else self.known.named(namespace, name)
        return World(
            pods=self.cluster.pods_of(obj["metadata"]["uid"]),
            node=self.cluster.node(status.get("nodeName")),
            namespace_terminating=self.cluster.namespace_terminating(namespace),
            hardware=self._hardware(obj, source),
            source=source,
            circle=() if name is None else self.known.circle(obj),
            now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            silence_told=self._told_silence.get(obj["metadata"]["uid"])
            == self.cluster.renewed(status.get("nodeName")),
        )

    def _hardware(self, obj: Object, source: Object | None) -> Hardware:
        for born in (obj, source or {}):
            if frozen := settled((born.get("status") or {}).get("resources")):
                return frozen
        return hardware(obj["spec"], self.settings.defaults)

    async def _do(self, obj: Object, world: World, action: Action) -> bool:
        """Carry out one action. False: refused by the API server for good, try much later."""
        failpoint.hit(f"operator.{type(action).__name__}.before")
        done = await self._carry_out(obj, world, action)
        failpoint.hit(f"operator.{type(action).__name__}.after")
        return done

    async def _carry_out(self, obj: Object, world: World, action: Action) -> bool:
        match action:
            case AddFinalizer():
                finalizers = [*obj["metadata"].get("finalizers", ()), FINALIZER]
                await self._patch_finalizers(obj, finalizers)
            case DropFinalizer():
                left = [f for f in obj["metadata"].get("finalizers", ()) if f != FINALIZER]
                await self._patch_finalizers(obj, left)
            case CreatePod():
                return await self._create_pod(obj, world, action)
            case DeletePod(name=name, uid=uid):
                await self._delete_pod(
                    {"name": name, "uid": uid, "namespace": obj["metadata"]["namespace"]}
                )
            case WriteStatus(status=status, assign_id=assign):
                await self._write(obj, {**status, "id": self.new_id()} if assign else status)
        return True

    async def _create_pod(self, obj: Object, world: World, asked: CreatePod) -> bool:
        settings = PodSettings(
            self.settings.reservation_image,
            self.settings.scheduler_name,
            self.settings.cpu_allocation_ratio,
        )
        body = manifest(obj, world.hardware, asked.node, settings, asked.source)
        try:
            pod = await self.client.create(PODS, body, obj["metadata"]["namespace"])
        except AlreadyExists:
            return await self._taken(obj, world, body["metadata"]["name"])
        except (Forbidden, Invalid) as err:
            for action in placement.refused(obj, world, str(err)):
                await self._do(obj, world, action)
            return False
        self.cluster.put_pod(pod)
        return True

    async def _taken(self, obj: Object, world: World, name: str) -> bool:
        """A Pod of that name is there: ours, not seen by the watch yet, or somebody else's."""
        found = await self.client.get(PODS, name, obj["metadata"]["namespace"])
        meta, uid = (found or {}).get("metadata") or {}, obj["metadata"]["uid"]
        if found is None:  # no watch of ours tells of somebody else's Pod: try again
            raise Retry(f"Pod {name} was in the way and went")
        if any(o.get("uid") == uid for o in meta.get("ownerReferences") or ()):
            if (meta.get("labels") or {}).get(UID_LABEL) == uid:
                self.cluster.put_pod(found)
                return True
            await self._delete_pod(meta)
            raise Retry(f"Pod {name} had lost its label, so our watch cannot see it: made anew")
        message = f"Pod {name} is in the way and belongs to somebody else; delete it"
        for action in placement.refused(obj, world, message):
            await self._do(obj, world, action)
        return False

    async def _delete_pod(self, meta: Object) -> None:
        await self.client.delete(PODS, meta["name"], meta["namespace"], grace=0, uid=meta["uid"])

    async def _patch_finalizers(self, obj: Object, finalizers: list[str]) -> None:
        version = obj["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version, "finalizers": finalizers}}
        await self._patch(obj, body, None)

    async def _write(self, obj: Object, status: Object) -> None:
        version = obj["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "status": status}
        await self._patch(obj, body, "status")

    async def _patch(self, obj: Object, body: Object, subresource: str | None) -> None:
        meta = obj["metadata"]
        try:
            written = await self.client.patch(
                INSTANCES,
                meta["name"],
                body,
                namespace=meta["namespace"],
                subresource=subresource,
            )
        except NotFound:
            self.lost(meta["uid"])
            return
        except Conflict:
            await self._check_identity(meta)
            raise
        if meta["uid"] not in self.known:
            return  # the watch was faster: this write let it go
        if subresource == "status":
            self._tell(obj, written)
            self._note_silence(obj, written)
        self._unseen.setdefault(meta["uid"], (version(written), time.monotonic()))
        self.saw(written)

    async def _check_identity(self, meta: Object) -> None:
        """Forget an object whose name belongs to another: kopf tells of no deletion in a relist."""
        found = await self.client.get(INSTANCES, meta["name"], meta["namespace"])
        if found is None or found["metadata"]["uid"] != meta["uid"]:
            self.lost(meta["uid"])

    def _note_silence(self, before: Object, after: Object) -> None:
        was, now = (condition(obj, "Ready").get("reason") for obj in (before, after))
        if now == "NodeUnreachable" != was:
            renewed = self.cluster.renewed(after["status"].get("nodeName"))
            self._told_silence[after["metadata"]["uid"]] = renewed

    def _tell(self, before: Object, after: Object) -> None:
        was, now = condition(before, "Scheduled"), condition(after, "Scheduled")
        if (was.get("reason"), was.get("message")) == (now.get("reason"), now.get("message")):
            return
        if now.get("reason") in (None, "NotNeeded", "Released"):
            return
        kind = "Normal" if now.get("status") == "True" else "Warning"
        self.events.event(after, kind, str(now["reason"]), str(now.get("message")))
