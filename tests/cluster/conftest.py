"""Fixtures on one real control plane per session (stages: plane -> namespace -> kubectl).

Not for xdist: a control plane for each worker takes more memory and start-up than it saves, and
sharing one between processes would need a protocol of its own. Run with ``-p no:xdist`` or ``-n0``.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.local import binaries
from controller.local.controlplane import ControlPlane
from tests.clusterkit import Kubectl, running_control_plane, wait_for
from tests.localcluster import LocalCluster, local_cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver, kube-controller-manager, kube-scheduler; no Nodes yet."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("tests on a control plane share one: run them with -n0")
    with running_control_plane(node_grace_seconds=10) as plane:
        yield plane


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A whole cluster as ``torpor up`` starts it: operator, registry, one node with its agent."""
    with local_cluster() as up:
        yield up


@pytest.fixture(scope="session")
def kubeconfig(control_plane: ControlPlane) -> Path:
    """The administrator's kubeconfig."""
    return control_plane.kubeconfig


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of this test alone, in which Pods can be created already."""
    name = f"t-{secrets.token_hex(4)}"
    control_plane.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    # Pods are refused until the service account they default to is there
    wait_for(control_plane, f"/api/v1/namespaces/{name}/serviceaccounts", "default", bool)
    yield name
    control_plane.admin.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def kubectl(kubeconfig: Path, namespace: str) -> Kubectl:
    """kubectl as the administrator, in this test's namespace."""
    return Kubectl(binaries.find()["kubectl"], kubeconfig, namespace)
