"""Instances on a real control plane, with the real operator, scheduler and hollow VMMs."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from controller.core import ownership
from controller.core.names import UID_LABEL
from controller.host import failpoint
from controller.local import nodes
from controller.local.admin import Refused
from controller.local.controlplane import ControlPlane
from controller.local.nodes import LocalNode
from tests import leaks
from tests.agentkit import (
    IMAGE,
    Object,
    Ours,
    Site,
    Zygote,
    directory,
    make_site,
    tail,
)

GROUP = "/apis/torpor.dev/v1alpha1"
PATIENCE = 60.0
LEASE_SECONDS = 3


async def eventually(
    condition: Callable[[], object], what: Callable[[], object], seconds: float = PATIENCE
) -> None:
    """As agentkit's, but asking an API server that others need, too."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {what()}")
        await asyncio.sleep(0.04)


@dataclass
class RealCluster:
    """One namespace and one Node of a control plane, with its agent's place and operators."""

    plane: ControlPlane
    namespace: str
    node: LocalNode
    site: Site
    home: Path
    operators: list[Ours] = field(default_factory=list)

    # --- processes ---

    def operate(self, failpoints: str = "", number: int = 0) -> Ours:
        """Start an operator."""
        config = self.home / "operator.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "defaults": {
                        "hypervisor": "hollow",
                        "vcpus": 1,
                        "memory": "128Mi",
                        "overlay": "16Mi",
                    },
                    "node_lease_seconds": LEASE_SECONDS,
                    "leader_lease_seconds": 2,
                    "probe_port": 0,
                }
            )
        )
        argv = ["operator", "--config", str(config), "--kubeconfig", str(self.plane.kubeconfig)]
        operator = Ours(self.site.zygote, argv, self.log, **{failpoint.VARIABLE: failpoints})
        self.operators.append(operator)
        return operator

    @property
    def log(self) -> Path:
        """What the operators said."""
        return self.home / "operator.log"

    # --- objects ---

    def path(self, name: str = "") -> str:
        """An Instance's, or the collection's."""
        whole = f"{GROUP}/namespaces/{self.namespace}/instances"
        return f"{whole}/{name}" if name else whole

    def create(self, name: str, mode: str = "Running", **spec: Any) -> str:
        """Create an Instance; its UID."""
        body = {
            "apiVersion": "torpor.dev/v1alpha1",
            "kind": "Instance",
            "metadata": {"name": name},
            "spec": {"image": IMAGE, "operatingMode": mode, "stopTimeoutSeconds": 2, **spec},
        }
        return str(self.plane.admin.create(self.path(), body)["metadata"]["uid"])

    def find(self, name: str) -> Object | None:
        """The Instance, None when there is none."""
        return self.plane.admin.find(self.path(name))

    def get(self, name: str) -> Object:
        """The Instance."""
        return self.plane.admin.get(self.path(name))

    def ask(self, name: str, mode: str) -> None:
        """Ask for an operating mode."""
        self.plane.admin.patch(self.path(name), {"spec": {"operatingMode": mode}})

    def pods(self, uid: str) -> list[Object]:
        """The reservation Pods of an Instance."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={UID_LABEL}%3D{uid}"
        found: list[Object] = self.plane.admin.get(path)["items"]
        return found

    def pod_path(self, pod: Object) -> str:
        """Where that Pod is."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"

    def condition(self, name: str, kind: str) -> Object:
        """One of its conditions, {} if it is not there."""
        return dict(ownership.condition(self.get(name), kind))

    def settled(self, name: str) -> bool:
        """Ready says so, for the newest generation, and about the mode that is asked for."""
        obj = self.get(name)
        ready, newest = ownership.condition(obj, "Ready"), obj["metadata"]["generation"]
        said = ready.get("observedGeneration"), obj["status"].get("observedGeneration")
        asked = obj["spec"]["operatingMode"]
        return (
            ready.get("status") == "True"
            and ready.get("reason") == asked == obj["status"].get("state")
            and said == (newest, newest)
        )

    async def until(self, name: str, mode: str | None = None) -> None:
        """Ask for ``mode`` (None: what is asked already) and wait until it is so."""
        if mode is not None:
            self.ask(name, mode)
        await eventually(lambda: self.settled(name), lambda: self.get(name).get("status"))

    async def until_gone(self, name: str) -> None:
        """Delete it and wait until it is gone."""
        if self.find(name) is not None:
            self.plane.admin.delete(self.path(name))
        await eventually(lambda: self.find(name) is None, lambda: self.find(name))


@contextlib.asynccontextmanager
async def real_cluster(plane: ControlPlane, zygote: Zygote) -> AsyncIterator[RealCluster]:
    """A namespace and a Node; neither operator nor agent runs yet. All of it goes at the end."""
    admin, word = plane.admin, secrets.token_hex(3)
    namespace = f"chaos-{word}"
    admin.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    with directory() as home:
        scope = leaks.Scope(paths=(home,), names=(home.name,))
        before = leaks.snapshot(scope)
        node = LocalNode(f"chaos-{word}", 4 << 30, 4, 100, home / "token")
        nodes.register(admin, node)
        site = make_site(
            home, zygote, plane.kubeconfig, node_name=node.name, lease_seconds=LEASE_SECONDS
        )
        made = RealCluster(plane, namespace, node, site, home)
        beating = asyncio.create_task(_beat(plane, node))
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        await eventually(lambda: admin.find(account), lambda: "no service account")
        try:
            yield made
        except BaseException:
            for log in (made.log, site.log):
                if log.exists():
                    print(tail(log, 80))
            raise
        finally:
            beating.cancel()
            for operator in made.operators:
                await operator.kill()
            await site.close()
            _remove(made)
        left = leaks.settle(before, scope)
        assert not left, "left behind:\n" + "\n".join(left)


async def _beat(plane: ControlPlane, node: LocalNode) -> None:
    while True:
        await asyncio.to_thread(nodes.renew, plane.admin, node.name, 40)
        if not await asyncio.to_thread(nodes.is_ready, plane.admin, node.name):
            await asyncio.to_thread(nodes.make_ready, plane.admin, node)
        await asyncio.sleep(2)


def _remove(cluster: RealCluster) -> None:
    """Whatever a test left in the API server."""
    admin = cluster.plane.admin
    with contextlib.suppress(Refused):
        for item in admin.get(cluster.path())["items"]:
            path = cluster.path(item["metadata"]["name"])
            with contextlib.suppress(Refused):
                admin.patch(path, {"metadata": {"finalizers": None}})
            with contextlib.suppress(Refused):
                admin.delete(path)
    for path in (f"/api/v1/nodes/{cluster.node.name}", f"/api/v1/namespaces/{cluster.namespace}"):
        with contextlib.suppress(Refused):
            admin.delete(path)
