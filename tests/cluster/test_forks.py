"""Forks and sleepers on the real API server and scheduler, with the real operator.

There is no agent: the tests play it, by writing the status that it would write.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.core.names import UID_LABEL
from controller.core.ownership import condition
from controller.local import nodes
from controller.local.admin import Admin, Refused
from controller.local.controlplane import ControlPlane
from controller.local.nodes import LocalNode
from tests.clusterkit import ROOT, wait_for
from tests.identities import INSTANCES, Object

TIME = "2026-01-01T00:00:00Z"
SNAPSHOT: Object = {
    "takenAt": TIME, "size": "3.9Mi", "bytes": 4089446, "baseBytes": 4000000, "deltaBytes": 9446,
    "hypervisor": "qemu 7.2.22",
}  # fmt: skip
GIB = 1 << 30


@dataclass(frozen=True)
class Scene:
    """A Node with room for 2.5 GiB and one with much, a namespace, and an operator."""

    plane: ControlPlane
    namespace: str
    node: str  # the small one
    large: str

    @property
    def admin(self) -> Admin:
        return self.plane.admin

    @property
    def collection(self) -> str:
        return f"{INSTANCES}/namespaces/{self.namespace}/instances"

    def path(self, name: str) -> str:
        return f"{self.collection}/{name}"

    def create(self, name: str, mode: str = "Running", **spec: Any) -> Object:
        """A user creates an Instance, of an image unless it is a fork."""
        origin = {} if "forkFrom" in spec else {"image": "app:1"}
        body = {
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Instance", "metadata": {"name": name},
            "spec": {**origin, "operatingMode": mode, **spec},
        }  # fmt: skip
        return self.admin.create(self.collection, body)

    def fork(self, name: str, of: str, mode: str = "Running", **spec: Any) -> Object:
        return self.create(name, mode, forkFrom={"name": of}, **spec)

    def ask(self, name: str, mode: str) -> None:
        self.admin.patch(self.path(name), {"spec": {"operatingMode": mode}})

    def until(self, name: str, holds: Callable[[Object], object]) -> Object:
        found = wait_for(self.plane, self.collection, name, lambda obj: obj and holds(obj))
        assert found is not None
        return found

    def until_ready_says(self, name: str, reason: str) -> Object:
        return self.until(name, lambda obj: condition(obj, "Ready").get("reason") == reason)

    def until_scheduled(self, name: str, status: str = "True", reason: str = "Scheduled") -> Object:
        def holds(obj: Object) -> bool:
            said = condition(obj, "Scheduled")
            return (said.get("status"), said.get("reason")) == (status, reason)

        return self.until(name, holds)

    def pods(self, obj: Object) -> list[Object]:
        uid = obj["metadata"]["uid"]
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={UID_LABEL}%3D{uid}"
        found: list[Object] = self.admin.get(path)["items"]
        return found

    def until_no_pod(self, obj: Object, pod: str) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        wait_for(self.plane, path, pod, lambda found: found is None)
        assert self.pods(obj) == []

    def agent_says(self, name: str, state: str, released: bool = False, **status: Any) -> Object:
        """Its agent is where the spec wants it."""
        obj = self.admin.get(self.path(name))
        ready = {
            "type": "Ready", "status": "True", "reason": state, "message": "", "observedGeneration":
            obj["metadata"]["generation"], "lastTransitionTime": TIME,
        }  # fmt: skip
        gone = ready | {"type": "Scheduled", "status": "False", "reason": "Released"}
        kept = [c for c in obj["status"]["conditions"] if c["type"] != "Ready"]
        said = {"state": state, "conditions": [ready, *([gone] if released else kept)], **status}
        return self.admin.patch(f"{self.path(name)}/status", {"status": said})

    def running(self, name: str, **spec: Any) -> Object:
        """An Instance that runs."""
        self.create(name, **spec)
        self.until_scheduled(name)
        return self.agent_says(name, "Running", startedAt=TIME)

    def asleep(self, name: str, **spec: Any) -> Object:
        """An Instance that ran and sleeps; its reservation is given back."""
        obj = self.running(name, **spec)
        pod = self.pods(obj)[0]["metadata"]["name"]
        self.ask(name, "Standby")
        obj = self.agent_says(name, "Standby", released=True, snapshot=SNAPSHOT)
        self.until_no_pod(obj, pod)
        return obj


@pytest.fixture(scope="module")
def operated(control_plane: ControlPlane, tmp_path_factory: Any) -> Iterator[tuple[str, str]]:
    """The names of two Nodes that stay Ready; an operator runs."""
    home, word = tmp_path_factory.mktemp("operator"), secrets.token_hex(3)
    system = f"system-{word}"
    control_plane.admin.create("/api/v1/namespaces", {"metadata": {"name": system}})
    small = LocalNode(f"small-{word}", int(2.5 * GIB), 4, 100, home / "token")
    large = LocalNode(f"large-{word}", 64 * GIB, 16, 100, home / "token")
    for node in (small, large):
        nodes.register(control_plane.admin, node)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(control_plane.admin, (small, large), stop))
    beating.start()
    try:
        with _operator(control_plane, home, system):
            yield small.name, large.name
    finally:
        stop.set()
        beating.join()
        for name in (small.name, large.name):
            control_plane.admin.delete(f"/api/v1/nodes/{name}")
        control_plane.admin.delete(f"/api/v1/namespaces/{system}")


def _beat(admin: Admin, beating: tuple[LocalNode, ...], stop: threading.Event) -> None:
    while not stop.wait(2.0):
        for node in beating:
            nodes.renew(admin, node.name, 40)
            if not nodes.is_ready(admin, node.name):
                nodes.make_ready(admin, node)


@contextlib.contextmanager
def _operator(plane: ControlPlane, home: Path, namespace: str) -> Iterator[None]:
    settings = {"namespace": namespace, "leader_lease_seconds": 2, "probe_port": 0}
    config = home / "operator.yaml"
    config.write_text(yaml.safe_dump(settings))
    argv = [sys.executable, "-m", "controller", "operator", "--config", str(config)]
    argv += ["--kubeconfig", str(plane.kubeconfig)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env=dict(os.environ))
    try:
        yield
        assert process.poll() is None, (home / "log").read_text()[-4000:]
    except BaseException:
        print((home / "log").read_text()[-4000:])
        raise
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def scene(
    control_plane: ControlPlane, operated: tuple[str, str], namespace: str
) -> Iterator[Scene]:
    made = Scene(control_plane, namespace, *operated)
    yield made
    for item in made.admin.get(made.collection)["items"]:
        path = made.path(item["metadata"]["name"])
        with contextlib.suppress(Refused):  # the operator lets go of those without a node
            made.admin.delete(path)
            made.admin.patch(path, {"metadata": {"finalizers": None}})
        wait_for(made.plane, made.collection, item["metadata"]["name"], lambda obj: obj is None)


def test_fork_runs_beside_its_source_with_its_hardware(scene: Scene) -> None:
    source = scene.asleep("web", nodeName=scene.node, vcpus=3, memory={"size": "512Mi"})
    fork = scene.fork("copy", "web")
    placed = scene.until_scheduled("copy")["status"]
    uid = source["metadata"]["uid"]
    assert (placed["nodeName"], placed["epoch"], placed["state"]) == (scene.node, 1, "Stopped")
    assert placed["lineage"] == {"parent": uid, "root": uid, "depth": 1}
    assert placed["resources"] == source["status"]["resources"]
    assert (placed["resources"]["vcpus"], placed["resources"]["memory"]) == (3, "512Mi")
    (pod,) = scene.pods(fork)
    assert pod["spec"]["nodeName"] == scene.node
    assert pod["spec"]["containers"][0]["resources"]["requests"]["memory"] == str(640 << 20)
    assert scene.admin.get(scene.path("web")) == source, "the source is left as it is"


@pytest.mark.parametrize("mode", ["Standby", "Stopped"])
def test_fork_without_memory_of_its_own_takes_no_room(scene: Scene, mode: str) -> None:
    scene.asleep("web")
    fork = scene.fork("copy", "web", mode)
    placed = scene.until_scheduled("copy", "False", "NotNeeded")
    assert placed["status"]["nodeName"]
    assert condition(placed, "Ready")["reason"] == "Pending"
    assert scene.pods(fork) == []
    status = {"lineage": {"forkedAt": TIME}} | ({"snapshot": SNAPSHOT} if mode == "Standby" else {})
    done = scene.agent_says("copy", mode, **status)
    scene.ask("copy", "Running")
    woken = scene.until_scheduled("copy")
    assert woken["status"]["lineage"] == done["status"]["lineage"]
    assert len(scene.pods(fork)) == 1


def test_source_is_awaited_by_its_name(scene: Scene) -> None:
    scene.fork("copy", "web")
    waiting = scene.until_ready_says("copy", "SourceNotFound")
    assert "create it" in condition(waiting, "Ready")["message"]
    scene.create("web", "Stopped")
    scene.until_ready_says("copy", "SourceNotReady")
    scene.ask("web", "Running")
    parent = scene.until_scheduled("web")["metadata"]["uid"]
    assert scene.until_scheduled("copy")["status"]["lineage"]["parent"] == parent


def test_fork_of_a_fork_follows_when_that_is_done(scene: Scene) -> None:
    root = scene.asleep("web")["metadata"]["uid"]
    scene.fork("child", "web", "Stopped")
    scene.until_scheduled("child", "False", "NotNeeded")
    scene.fork("grandchild", "child", "Stopped")
    scene.until_ready_says("grandchild", "SourceNotReady")
    child = scene.agent_says("child", "Stopped", lineage={"forkedAt": TIME})["metadata"]["uid"]
    placed = scene.until_scheduled("grandchild", "False", "NotNeeded")
    assert placed["status"]["lineage"] == {"parent": child, "root": root, "depth": 2}


def test_tree_shows_the_family_when_the_source_is_gone(scene: Scene) -> None:
    root = scene.asleep("web")["metadata"]["uid"]
    for name in ("one", "two"):
        scene.fork(name, "web", "Standby")
        scene.until_scheduled(name, "False", "NotNeeded")
    scene.agent_says("one", "Standby", lineage={"forkedAt": TIME}, snapshot=SNAPSHOT)
    rest = [["├─", "one", "Standby", "3.9Mi"], ["└─", "two", "Stopped"]]
    assert _tree(scene, "two") == [["web", "Standby", "3.9Mi"], *rest]
    scene.admin.delete(scene.path("web"))
    scene.admin.patch(scene.path("web"), {"metadata": {"finalizers": None}})
    assert _tree(scene, "one") == [[root, "(deleted)"], *rest]


def _tree(scene: Scene, name: str) -> list[list[str]]:
    argv = [sys.executable, "-m", "controller", "tree", name, "-n", scene.namespace]
    argv += ["--kubeconfig", str(scene.plane.kubeconfig)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["NAME", "STATE", "SNAPSHOT"]
    return [row.split() for row in rows]


def test_forks_of_each_other_are_stalled_until_one_goes(scene: Scene) -> None:
    scene.fork("a", "b")
    scene.fork("b", "a")
    for name in ("a", "b"):
        stuck = scene.until(name, lambda obj: condition(obj, "Stalled").get("status") == "True")
        assert condition(stuck, "Ready")["reason"] == "ForkCycle"
    scene.admin.delete(scene.path("b"))
    left = scene.until_ready_says("a", "SourceNotFound")
    assert condition(left, "Stalled") == {}


def test_deleted_source_that_comes_again_is_another(scene: Scene) -> None:
    old = scene.asleep("web", nodeName=scene.node)
    scene.asleep("full", nodeName=scene.node, memory={"size": "2Gi"})
    scene.ask("full", "Running")
    scene.until_scheduled("full")
    fork = scene.fork("copy", "web")
    scene.until_scheduled("copy", "False", "Unschedulable")  # its source's node is full
    scene.admin.delete(scene.path("web"))
    scene.until_ready_says("copy", "SourceDeleting")
    scene.admin.patch(scene.path("web"), {"metadata": {"finalizers": None}})
    scene.until_ready_says("copy", "SourceNotFound")
    new = scene.asleep("web", nodeName=scene.large)
    placed = scene.until_scheduled("copy")["status"]
    assert placed["nodeName"] == scene.large
    assert placed["lineage"]["parent"] == new["metadata"]["uid"] != old["metadata"]["uid"]
    (pod,) = scene.pods(fork)
    assert pod["metadata"]["uid"] == placed["reservation"]


def test_sleeper_wakes_on_its_own_node_or_waits_for_room_there(scene: Scene) -> None:
    web = scene.asleep("web", nodeName=scene.node)
    scene.asleep("full", nodeName=scene.node, memory={"size": "2Gi"})
    scene.ask("full", "Running")
    full = scene.until_scheduled("full")
    scene.ask("web", "Running")
    waiting = scene.until_scheduled("web", "False", "Unschedulable")
    assert "Insufficient memory" in condition(waiting, "Scheduled")["message"]
    assert condition(waiting, "Ready")["reason"] == "WaitingForNode"
    assert waiting["status"]["snapshot"] == SNAPSHOT
    pod = scene.pods(full)[0]["metadata"]["name"]
    scene.ask("full", "Standby")
    scene.agent_says("full", "Standby", released=True, snapshot=SNAPSHOT)
    scene.until_no_pod(full, pod)
    assert scene.until_scheduled("web")["status"]["nodeName"] == web["status"]["nodeName"]


def test_guest_in_an_ending_namespace_is_told_so(scene: Scene) -> None:
    scene.running("web")
    scene.admin.delete(f"/api/v1/namespaces/{scene.namespace}")
    said = scene.until_scheduled("web", "False", "NamespaceTerminating")
    assert "not saved" in condition(said, "Scheduled")["message"]
