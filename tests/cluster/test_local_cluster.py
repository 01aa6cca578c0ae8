"""The local control plane: real scheduling, restarts, and nothing left at the end."""

import os
import signal

from controller.local.controlplane import ControlPlane
from tests.clusterkit import Kubectl, wait_for
from tests.waiting import until


def test_namespace_is_ready_for_use(kubectl: Kubectl, namespace: str) -> None:
    found = kubectl.json("get", "namespace", namespace)
    assert found["status"]["phase"] == "Active"


async def test_killed_etcd_comes_back_with_its_data(
    control_plane: ControlPlane, namespace: str
) -> None:
    before = control_plane.etcd.identity
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: control_plane.etcd.identity not in (None, before))
    control_plane.etcd.wait_ready(20)
    control_plane.apiserver.wait_ready(20)
    found = wait_for(control_plane, "/api/v1/namespaces", namespace, bool)
    assert found is not None
    assert found["metadata"]["name"] == namespace
