"""Node objects without a kubelet: made Ready, kept alive by their Lease, and their agents' tokens.

A Node's Lease is renewed for as long as its agent's process lives; then Kubernetes notices by
itself, as it does for a kubelet. What does not live here: starting the agents (cluster).
"""

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from controller.errors import TorporError
from controller.host.files import write_atomic
from controller.local.admin import Admin, Object, Refused

NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
NAMESPACE = "torpor-system"
AGENT_ACCOUNT = "torpor-node"
OPERATOR_ACCOUNT = "torpor-operator"
LABEL = "torpor.dev/node"
TOKEN_SECONDS = 3600
RENEW_TOKEN_AFTER = 0.5  # of its life: half of it remains for an API server that is away


@dataclass(frozen=True)
class LocalNode:
    """One Node: what it offers, and where its agent reads its token."""

    name: str
    memory_bytes: int
    cpus: int
    pods: int
    token_file: Path
    labels: dict[str, str] = field(default_factory=dict)


def register(admin: Admin, node: LocalNode) -> str:
    """Create the Node, or bring it up to date, and make it Ready; returns its UID."""
    labels = {
        LABEL: "true",
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64" if platform.machine() == "x86_64" else platform.machine(),
        **node.labels,
    }
    body: Object = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
    }
    found = admin.apply(f"{NODES}/{node.name}", body)
    renew(admin, node.name, 40)
    make_ready(admin, node)
    return str(found["metadata"]["uid"])


def make_ready(admin: Admin, node: LocalNode) -> None:
    """Write the Node's resources and Ready=True; conditions of others stay (merged by type)."""
    resources = {
        "cpu": str(node.cpus),
        "memory": str(node.memory_bytes),
        "pods": str(node.pods),
    }
    now = _stamp()
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AgentRuns",
        "message": "the node agent's process is alive",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    status = {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [ready],
        "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": node.name},
        ],
    }
    path = f"{NODES}/{node.name}/status"
    admin.patch(path, {"status": status}, "strategic-merge-patch+json")


def renew(admin: Admin, name: str, seconds: int) -> None:
    """Renew the Node's Lease; create it the first time."""
    spec = {
        "holderIdentity": name,
        "leaseDurationSeconds": seconds,
        "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    try:
        admin.patch(f"{LEASES}/{name}", {"spec": spec})
    except Refused as err:
        if err.code != 404:
            raise
        admin.create(LEASES, {"metadata": {"name": name}, "spec": spec})


def issue_token(admin: Admin, node: LocalNode, uid: str, seconds: int = TOKEN_SECONDS) -> None:
    """Write a fresh agent token, valid for ``seconds`` (at least 600) and only with this Node."""
    bound = {"kind": "Node", "apiVersion": "v1", "name": node.name, "uid": uid}
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{AGENT_ACCOUNT}/token"
    answer = admin.create(path, {"spec": {"expirationSeconds": seconds, "boundObjectRef": bound}})
    write_atomic(node.token_file, answer["status"]["token"].encode())


def is_ready(admin: Admin, name: str) -> bool:
    """Whether the Node says Ready=True."""
    conditions = admin.get(f"{NODES}/{name}").get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@dataclass
class _Kept:
    node: LocalNode
    uid: str
    alive: Callable[[], bool]
    token_due: float  # monotonic


class Keeper:
    """The thread that keeps Nodes alive while their agents are, and their tokens fresh."""

    def __init__(self, admin: Admin, lease_seconds: int, report: Callable[[str], None]) -> None:
        self._admin = admin
        self._lease_seconds = lease_seconds
        self._report = report
        self._kept: list[_Kept] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-leases", daemon=True)

    def add(self, node: LocalNode, alive: Callable[[], bool]) -> None:
        """Register the Node and write its first token; ``start`` then keeps both fresh."""
        uid = register(self._admin, node)
        issue_token(self._admin, node, uid)
        due = time.monotonic() + TOKEN_SECONDS * RENEW_TOKEN_AFTER
        self._kept.append(_Kept(node, uid, alive, due))

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Cease; Nodes go NotReady by themselves. May be called without ``start``."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        # four attempts for each lease: one slow or failed write is no node failure
        while not self._stopping.wait(self._lease_seconds / 4):
            for kept in self._kept:
                try:
                    self._keep(kept)
                except TorporError as err:  # an API outage: the next round tries again
                    self._report(f"{kept.node.name}: {err}")

    def _keep(self, kept: _Kept) -> None:
        found = self._admin.get(f"{NODES}/{kept.node.name}")
        if found["metadata"]["uid"] != kept.uid:
            # Somebody deleted the Node and made it again: tokens of the old one are void.
            kept.uid, kept.token_due = register(self._admin, kept.node), 0.0
        if kept.alive():
            renew(self._admin, kept.node.name, self._lease_seconds)
            if not is_ready(self._admin, kept.node.name):
                make_ready(self._admin, kept.node)
        if time.monotonic() >= kept.token_due:
            issue_token(self._admin, kept.node, kept.uid)
            kept.token_due = time.monotonic() + TOKEN_SECONDS * RENEW_TOKEN_AFTER


def share_memory(nodes: int, reserved_bytes: int) -> int:
    """Bytes of RAM that each of ``nodes`` may give away, the host's own need taken off."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, total - reserved_bytes) // nodes


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
