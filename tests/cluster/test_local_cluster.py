"""The local control plane: real scheduling, Nodes without a kubelet, restarts, a clean end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.host.process import is_alive
from controller.local import nodes
from controller.local.controlplane import ControlPlane
from controller.local.nodes import Keeper, LocalNode
from tests.clusterkit import Kubectl, Object, running_control_plane, wait_for
from tests.waiting import until

ACCOUNTS = f"/api/v1/namespaces/{nodes.NAMESPACE}/serviceaccounts"


@pytest.fixture(scope="session")
def agent_account(control_plane: ControlPlane) -> None:
    """The service account that agents' tokens are of; ``manifests/`` brings it elsewhere."""
    admin = control_plane.admin
    namespace: Object = {"apiVersion": "v1", "kind": "Namespace"}
    account: Object = {"apiVersion": "v1", "kind": "ServiceAccount"}
    admin.apply(f"/api/v1/namespaces/{nodes.NAMESPACE}", {**namespace, **_named(nodes.NAMESPACE)})
    admin.apply(f"{ACCOUNTS}/{nodes.AGENT_ACCOUNT}", {**account, **_named(nodes.AGENT_ACCOUNT)})


@pytest.fixture
def node(control_plane: ControlPlane, agent_account: None, tmp_path: Path) -> Iterator[LocalNode]:
    """A Node of this test alone, not registered yet."""
    name = f"node-{os.urandom(3).hex()}"
    yield LocalNode(name, 1 << 30, cpus=2, pods=10, token_file=tmp_path / "token")
    if control_plane.admin.find(f"{nodes.NODES}/{name}"):
        control_plane.admin.delete(f"{nodes.NODES}/{name}")


def test_reservation_like_pod_is_bound_by_the_real_scheduler(
    control_plane: ControlPlane, node: LocalNode, kubectl: Kubectl, namespace: str
) -> None:
    nodes.register(control_plane.admin, node)
    kubectl.apply(_pod("fits", node.name, "512Mi"), _pod("does-not-fit", node.name, "2Gi"))
    pods = f"/api/v1/namespaces/{namespace}/pods"

    bound = wait_for(control_plane, pods, "fits", _is_bound)
    refused = wait_for(control_plane, pods, "does-not-fit", _is_unschedulable)

    assert bound is not None
    assert bound["spec"]["nodeName"] == node.name
    assert refused is not None
    assert "Insufficient memory" in refused["status"]["conditions"][0]["message"]


def test_token_of_an_agent_carries_its_node(
    control_plane: ControlPlane, node: LocalNode, kubectl: Kubectl, tmp_path: Path
) -> None:
    uid = nodes.register(control_plane.admin, node)
    nodes.issue_token(control_plane.admin, node, uid)
    access = control_plane.token_kubeconfig(tmp_path / "kubeconfig", node.token_file)

    who = kubectl.as_user(access).json("auth", "whoami")["status"]["userInfo"]

    assert node.token_file.stat().st_mode & 0o777 == 0o600
    assert who["username"] == f"system:serviceaccount:{nodes.NAMESPACE}:{nodes.AGENT_ACCOUNT}"
    assert who["extra"]["authentication.kubernetes.io/node-name"] == [node.name]


def test_token_of_an_agent_dies_with_its_node(
    control_plane: ControlPlane, node: LocalNode, kubectl: Kubectl, tmp_path: Path
) -> None:
    uid = nodes.register(control_plane.admin, node)
    nodes.issue_token(control_plane.admin, node, uid)
    access = control_plane.token_kubeconfig(tmp_path / "kubeconfig", node.token_file)
    control_plane.admin.delete(f"{nodes.NODES}/{node.name}")
    wait_for(control_plane, nodes.NODES, node.name, lambda found: found is None)

    done = kubectl.as_user(access)("auth", "whoami", check=False)

    assert done.returncode != 0


def test_node_follows_the_life_of_its_agent(control_plane: ControlPlane, node: LocalNode) -> None:
    lives = True
    keeper = Keeper(control_plane.admin, 4, report=print)
    keeper.add(node, lambda: lives)
    keeper.start()
    try:
        wait_for(control_plane, nodes.NODES, node.name, _is_untainted)
        lives = False
        wait_for(control_plane, nodes.NODES, node.name, _is_silent, seconds=40)
        lives = True
        wait_for(control_plane, nodes.NODES, node.name, _is_untainted)
    finally:
        keeper.stop()


async def test_killed_etcd_comes_back_with_its_data(
    control_plane: ControlPlane, namespace: str
) -> None:
    before = control_plane.etcd.identity
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: control_plane.etcd.identity not in (None, before))
    control_plane.etcd.wait_ready(30)
    control_plane.apiserver.wait_ready(30)
    found = wait_for(control_plane, "/api/v1/namespaces", namespace, bool)
    assert found is not None
    assert found["status"]["phase"] == "Active"


async def test_killed_apiserver_is_restarted(control_plane: ControlPlane, namespace: str) -> None:
    before = control_plane.apiserver.identity
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: control_plane.apiserver.identity not in (None, before))
    control_plane.apiserver.wait_ready(30)
    assert control_plane.admin.get(f"/api/v1/namespaces/{namespace}")


def test_writes_are_in_the_audit_log(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    kubectl.apply(_pod("counted", "nowhere", "1Mi"))
    log = (control_plane.directory / "log" / "audit.log").read_text().splitlines()
    seen = [entry for entry in map(json.loads, log) if _is_about(entry, "pods", "counted")]
    assert [entry["verb"] for entry in seen if entry["user"]["username"] == "torpor-admin"] == [
        "create"
    ]


def test_stopped_control_plane_keeps_its_data_and_leaves_no_process() -> None:
    with running_control_plane(crds=()) as plane:
        plane.admin.create("/api/v1/namespaces", {"metadata": {"name": "kept"}})
        first = [process.identity for process in plane.processes]
        plane.stop()
        assert not any(who and is_alive(who) for who in first)

        again = ControlPlane(plane.directory, plane.binaries, ports=plane.ports)
        again.start()
        try:
            assert again.admin.get("/api/v1/namespaces/kept")
        finally:
            again.stop()
        assert not any(process.running for process in again.processes)


def test_control_plane_of_a_killed_session_is_ended_by_the_next() -> None:
    """A child takes the part of a pytest that is killed in the middle."""
    script = (
        "import os, signal\n"
        "from tests.clusterkit import running_control_plane\n"
        "with running_control_plane(crds=()) as plane:\n"
        "    print(*(p.identity.pid for p in plane.processes), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [int(pid) for pid in killed.stdout.splitlines()[-1].split()]
    assert all(Path(f"/proc/{pid}").exists() for pid in left)

    with running_control_plane(crds=()):
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def _named(name: str) -> Object:
    return {"metadata": {"name": name}}


def _pod(name: str, node: str, memory: str) -> Object:
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [
                            {"key": nodes.LABEL, "operator": "In", "values": ["true"]},
                            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
                        ]
                    }
                ]
            }
        }
    }
    container = {
        "name": "reservation",
        "image": "torpor.dev/reservation:1",
        "resources": {"requests": {"memory": memory, "cpu": "100m"}, "limits": {"memory": memory}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "affinity": affinity},
    }


def _is_bound(pod: Object | None) -> bool:
    return pod is not None and "nodeName" in pod["spec"]


def _is_unschedulable(pod: Object | None) -> bool:
    conditions = [] if pod is None else pod["status"].get("conditions", [])
    return any(c.get("reason") == "Unschedulable" for c in conditions)


def _is_untainted(node: Object | None) -> bool:
    return node is not None and not node["spec"].get("taints")


def _is_silent(node: Object | None) -> bool:
    """Kubernetes itself says so: Ready=Unknown, and Pods are kept away."""
    if node is None:
        return False
    ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
    effects = {taint["effect"] for taint in node["spec"].get("taints", [])}
    return bool(ready["status"] == "Unknown" and "NoSchedule" in effects)


def _is_about(entry: Object, resource: str, name: str) -> bool:
    about = entry.get("objectRef", {})
    return bool(about.get("resource") == resource and about.get("name") == name)
