"""A model of one Instance object, its reservation Pods, and everybody who acts on them.

Operator and node agent decide with the real functions (``core.placement``, ``core.plan``,
``node.report``); the API server, the scheduler and the host are models. Writes carry the
resourceVersion they were decided on: ``Conflict`` as the API server has it. Writes are counted, and
what only one of the two may write is asserted where it is written.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from controller.core import placement, wish
from controller.core.desired import Desired, Mode
from controller.core.names import FINALIZER, UID_LABEL
from controller.core.ownership import condition, deleting, ready_is_operators
from controller.core.placement import NodeState
from controller.core.plan import plan
from controller.core.reservation import PodSettings, manifest
from controller.core.steps import DropFinalizer, Plan
from controller.node import report
from controller.node.worker import MAX_STEPS, PROGRESS_AFTER, PROGRESS_EVERY, UNDER_WAY
from tests.values import HARDWARE, RULES, UID
from tests.world import Refused, Stopped, World, ageless, breathe, effects, look

Object = dict[str, Any]
NODE = "n1"
POD_SETTINGS = PodSettings("pause:1", "default-scheduler", 10.0)
AGENT_KEYS = frozenset(
    {"observedGeneration", "state", "stateError", "conditions", "plan", "startedAt", "stoppedAt",
     "exit", "hypervisor", "image", "kernel", "snapshot", "lineage"}
)  # fmt: skip
ROUNDS = 80


class Conflict(Exception):
    """Somebody else wrote since the object was read."""


def an_instance(**spec: Any) -> Object:
    """An Instance as the API server stores it when a user has made it."""
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {
            "uid": UID, "name": "web", "namespace": "team", "generation": 1,
            "resourceVersion": "1", "finalizers": [],
        },
        "spec": {"image": "app:1", "operatingMode": "Running", **spec},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "Unknown", "reason": "Pending", "message": "new",
                 "lastTransitionTime": "1970-01-01T00:00:00Z"},
            ]
        },
    }  # fmt: skip


def a_pod(name: str = "web-6f1b9a2e", uid: str = "pod-1", **changes: Any) -> Object:
    """A reservation Pod as the operator's mirror keeps it. ``node``, ``deleting``, ``said``."""
    pod: Object = {
        "metadata": {"name": name, "uid": uid, "labels": {UID_LABEL: UID}},
        "spec": {"nodeName": changes.get("node")},
        "status": {"conditions": [changes["said"]] if "said" in changes else []},
    }
    if changes.get("deleting"):
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return pod


def merged(base: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


@dataclass
class Cluster:
    """The object, the Pods, the host; ``writes`` counts writes of both processes to the object."""

    obj: Object | None
    host: World = field(default_factory=World)
    pods: list[Object] = field(default_factory=list)
    node: NodeState = NodeState.ALIVE
    told: bool = False  # this silence of the node was said
    terminating: bool = False
    fits: bool = True  # whether the scheduler finds room
    writes: list[tuple[str, Object]] = field(default_factory=list)
    made: int = 0  # Pods, ever
    since: float | None = None
    written: float = float("-inf")
    asked: Desired | None = None

    # --- the API server ---------------------------------------------------------------------------

    def view(self) -> Object:
        """The object as it is now."""
        assert self.obj is not None
        return copy.deepcopy(self.obj)

    def patch(self, who: str, view: Object, body: Object) -> None:
        """One write. Raises Conflict when ``view`` is not the newest."""
        if self.obj is None or _version(view) != _version(self.obj):
            raise Conflict
        before, after = self.obj, merged(self.obj, body)
        assert after != before, f"{who} writes what is there: {body}"
        _admit(who, before, after, body)
        self._store(after)
        self.writes.append((who, body))

    def _store(self, after: Object) -> None:
        after["metadata"]["resourceVersion"] = str(int(_version(after)) + 1)
        over = deleting(after) and not after["metadata"]["finalizers"]
        self.obj = None if over else after

    def user(self, spec: Object) -> None:
        """The user edits spec."""
        after = merged(self.view(), {"spec": spec})
        if self.obj is None or after["spec"] == self.obj["spec"]:
            return
        after["metadata"]["generation"] += 1
        self._store(after)

    def delete(self) -> None:
        """The user deletes the Instance."""
        after = self.view()
        if not deleting(after):
            after["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._store(after)

    # --- the operator and the scheduler -----------------------------------------------------------

    def operator(self, view: Object | None = None) -> None:
        """One pass on ``view`` (the newest object when None)."""
        if self.obj is None:
            self._pods_go([action.uid for action in placement.orphaned(self.pods)])
            return
        view = view or self.view()
        facts = placement.World(
            copy.deepcopy(self.pods), self.node if self._placed(view) else NodeState.NONE,
            self.terminating, HARDWARE, "2026-01-01T00:00:00Z", silence_told=self.told,
        )  # fmt: skip
        for action in placement.decide(view, facts):
            self._carry_out(view, action)

    def _carry_out(self, view: Object, action: placement.Action) -> None:
        finalizers = view["metadata"]["finalizers"]
        match action:
            case placement.AddFinalizer():
                self.patch("operator", view, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
            case placement.DropFinalizer():
                self.patch("operator", view, {"metadata": {"finalizers": []}})
            case placement.CreatePod(node=node):
                self._make_pod(view, node)
            case placement.DeletePod(uid=uid):
                self._pods_go([uid])
            case placement.WriteStatus(status=status, assign_id=assign):
                identity = {"id": "c0ffee"} if assign else {}
                self.patch("operator", view, {"status": {**status, **identity}})
                self.told |= self.node is NodeState.SILENT

    def _make_pod(self, view: Object, node: str | None) -> None:
        body = manifest(view, HARDWARE, node, POD_SETTINGS)
        name = body["metadata"]["name"]
        if any(pod["metadata"]["name"] == name for pod in self.pods):
            return  # AlreadyExists
        self.made += 1
        self.pods.append(a_pod(name, f"pod-{self.made}"))

    def _pods_go(self, uids: list[str]) -> None:
        self.pods = [pod for pod in self.pods if pod["metadata"]["uid"] not in uids]

    def scheduler(self) -> None:
        """Bind what fits; say of the rest that it does not. What was deleted by force goes."""
        self.pods = [p for p in self.pods if "deletionGracePeriodSeconds" not in p["metadata"]]
        for pod in self.pods:
            if pod["spec"]["nodeName"] or deleting(pod) or pod["status"].get("phase"):
                continue
            if self.fits:
                pod["spec"]["nodeName"] = NODE
                pod["status"]["conditions"] = []
            else:
                said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                pod["status"]["conditions"] = [{**said, "message": "0/1 nodes fit"}]

    def evict(self) -> None:
        """A drain, a preemption, a taint: the Pods are Terminating."""
        for pod in self.pods:
            pod["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")

    def force(self) -> None:
        """Somebody deletes the Pods by force; for a moment they are still seen, Terminating."""
        self.evict()
        for pod in self.pods:
            pod["metadata"]["deletionGracePeriodSeconds"] = 0

    def finish(self) -> None:
        """The kubelet, or whoever, says that the Pods have failed: they stay, and hold nothing."""
        for pod in self.pods:
            pod["status"]["phase"] = "Failed"

    def silence(self, node: NodeState = NodeState.SILENT) -> None:
        """The agent's Lease runs out; or it is renewed."""
        self.node, self.told = node, False

    def lose(self) -> None:
        """Somebody deleted the Pods by force."""
        self.pods = []

    # --- the node agent ---------------------------------------------------------------------------

    def _placed(self, obj: Object) -> bool:
        return (obj.get("status") or {}).get("nodeName") == NODE

    def agent(self, view: Object | None = None) -> Plan | None:
        """One pass on ``view``: step by step, and at most one write at its end."""
        view = view or (self.view() if self.obj else None)
        if view is None or not self._placed(view):
            return None
        desired = wish.desired(view)
        if desired != self.asked:
            self.asked, self.since = desired, self.host.now
        if desired.mode is Mode.STOPPED:
            self.host = replace(self.host, held=False)
        made = plan(desired, look(self.host, desired), self.host.now, RULES)
        for _ in range(MAX_STEPS):
            if not made.steps:
                break
            if isinstance(made.steps[0], DropFinalizer):
                self.patch("agent", view, {"metadata": {"finalizers": []}})
                return None
            self._step(desired, made)
            made = plan(desired, look(self.host, desired), self.host.now, RULES)
        self._report(view, desired, made)
        return made

    def _step(self, desired: Desired, made: Plan) -> None:
        try:
            self.host = effects(self.host, desired, made.steps[0])[-1]
        except Stopped as failed:
            self.host = failed.world
        except Refused:
            self.host = replace(self.host, now=self.host.now + 0.5)

    def _report(self, view: Object, desired: Desired, made: Plan) -> None:
        if made.settled:
            self.since = None
        elif self.since is None:
            self.since = self.host.now
        if ready_is_operators(view) or not (made.settled or self._worth_a_word(made)):
            return
        if not made.settled:
            self.written = self.host.now
        seen = look(self.host, desired)
        after = report.status(desired, seen, made, None, view["status"])
        if made.settled:
            after["plan"] = None
        if changed := report.changes(view["status"], after):
            self.patch("agent", view, {"status": changed})

    def _worth_a_word(self, made: Plan) -> bool:
        if made.waiting and made.waiting.reason not in UNDER_WAY - {"Unscheduled"}:
            return True
        now = self.host.now
        began = self.since if self.since is not None else now
        return now - began >= PROGRESS_AFTER and now - self.written >= PROGRESS_EVERY

    # --- all together -----------------------------------------------------------------------------

    def quiet(self) -> int:
        """Everybody goes on until nothing changes. Returns the writes it took."""
        first = len(self.writes)
        for _ in range(ROUNDS):
            before = self._picture()
            self.operator()
            self.scheduler()
            self.operator()
            made = self.agent()
            self.host = breathe(self.host, 0.2)
            if self._picture() == before:
                if made is None or made.settled or not (later := self._next_look(made)):
                    return len(self.writes) - first
                self.host = replace(self.host, now=later)
        raise AssertionError(f"no end of it: {self.writes[-6:]}")

    def _next_look(self, made: Plan) -> float | None:
        shown = None if self.since is None else self.since + PROGRESS_AFTER
        times = [at for at in (made.wake_at, shown) if at is not None and at > self.host.now]
        return min(times) if times else None

    def _picture(self) -> tuple[Any, ...]:
        return (
            copy.deepcopy(self.obj),
            copy.deepcopy(self.pods),
            ageless(replace(self.host, now=0.0)),
        )

    def ready(self) -> tuple[str, str]:
        """Status and reason of Ready, which must speak of the newest generation."""
        obj = self.view()
        ready = condition(obj, "Ready")
        assert ready["observedGeneration"] == obj["metadata"]["generation"]
        return ready["status"], ready["reason"]


def _version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


def _admit(who: str, before: Object, after: Object, body: Object) -> None:
    """What schema and policies refuse."""
    old, new = before["status"], after["status"]
    assert new.get("epoch", 0) >= old.get("epoch", 0), "the epoch went back"
    if old.get("nodeName") != new.get("nodeName"):
        assert new.get("epoch", 0) > old.get("epoch", 0), "moved without an epoch"
    if new.get("observedGeneration", 0) != old.get("observedGeneration", 0):
        ready = condition(after, "Ready")
        assert ready["observedGeneration"] == new["observedGeneration"], "Ready is of another one"
    if who == "agent":
        assert set(body.get("status", {})) <= AGENT_KEYS, "the agent writes what is not its own"
        was, now = condition(before, "Scheduled"), condition(after, "Scheduled")
        assert was == now or (now["status"], now["reason"]) == ("False", "Released")
        assert "metadata" not in body or deleting(before)
