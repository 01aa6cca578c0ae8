"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback, as one thing.

The flags live here, each with its reason where it has one. Custom resource definitions are applied
before the controller-manager starts: its garbage collector learns of a later one only at the next
discovery, up to 30 s on. What does not live here: Nodes, agents, the operator (nodes, cluster).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.errors import Rejected, Timeout
from controller.host.files import write_atomic
from controller.local import kubeconfig, probe
from controller.local.admin import Admin
from controller.local.pki import Pki
from controller.local.process import Program, Supervised

LOOPBACK = probe.LOOPBACK
READY_SECONDS = 60.0
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "pod-garbage-collector-controller",
    "resourcequota-controller",
    "clusterrole-aggregation-controller",
    "disruption-controller",
)
WRITES = ["create", "update", "patch", "delete", "deletecollection"]
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": WRITES,
            "resources": [
                {"group": "torpor.dev"},
                {"group": "", "resources": ["pods", "pods/*", "events"]},
                {"group": "events.k8s.io", "resources": ["events"]},
                {"group": "coordination.k8s.io", "resources": ["leases"]},
            ],
        },
        {"level": "None"},
    ],
}


@dataclass(frozen=True)
class Ports:
    """Where the parts listen, on loopback."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int

    @staticmethod
    def free() -> "Ports":
        """Five that are free now."""
        return Ports(*probe.free_ports(5))


class ControlPlane:
    """A control plane whose whole state is in ``directory``; start it again there and it goes on.

    ``durable=False`` lets etcd skip fsync: for tests, whose data nobody misses after a power cut.
    ``node_grace_seconds`` is how long a Node's Lease may be silent before the Node is NotReady.
    """

    def __init__(
        self,
        directory: Path,
        binaries: Mapping[str, Path],
        *,
        ports: Ports | None = None,
        crds: Sequence[Path] = (),
        durable: bool = False,
        node_grace_seconds: int = 20,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory
        self.ports = ports or Ports.free()
        self.crds = tuple(crds)
        self.durable = durable
        self.node_grace_seconds = node_grace_seconds
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        for private in ("log", "etcd"):
            (directory / private).mkdir(exist_ok=True, mode=0o700)
        self.pki = Pki(directory / "pki")
        administrator = self.pki.user("torpor-admin", "system:masters")
        self.admin = Admin(self.ports.apiserver, self.pki.ca_pem, self.pki.directory, administrator)
        self.kubeconfig = directory / "kubeconfig"
        self._write_kubeconfig(self.kubeconfig, kubeconfig.by_certificate(administrator))
        self.binaries = binaries
        self.etcd = Supervised(self._etcd(), changed)
        self.apiserver = Supervised(self._apiserver(), changed)
        self.controller_manager = Supervised(self._controller_manager(), changed)
        self.scheduler = Supervised(self._scheduler(), changed)

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{LOOPBACK}:{self.ports.apiserver}"

    @property
    def processes(self) -> tuple[Supervised, ...]:
        """All of them, in the order of their start."""
        return (self.etcd, self.apiserver, self.controller_manager, self.scheduler)

    def start(self) -> None:
        """Start all of it and return when it is ready. Raises Blocked, Timeout or Rejected."""
        try:
            for process in (self.etcd, self.apiserver):
                process.start()
                process.wait_ready(READY_SECONDS)
            apply_crds(self.admin, self.crds)
            for process in (self.controller_manager, self.scheduler):
                process.start()
            for process in (self.controller_manager, self.scheduler):
                process.wait_ready(READY_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all of it, the store last. The data stays in the directory."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Supervised.stop, (self.controller_manager, self.scheduler)))
        self.apiserver.stop()
        self.etcd.stop()

    def user_kubeconfig(self, path: Path, user: str, *groups: str) -> Path:
        """A kubeconfig by client certificate for any user, a service account's name included."""
        self._write_kubeconfig(path, kubeconfig.by_certificate(self.pki.user(user, *groups)))
        return path

    def token_kubeconfig(self, path: Path, token_file: Path) -> Path:
        """A kubeconfig that reads its token from a file each time it is needed."""
        self._write_kubeconfig(path, kubeconfig.by_token_file(token_file))
        return path

    def _write_kubeconfig(self, path: Path, user: dict[str, Any]) -> None:
        kubeconfig.write(path, self.server, self.pki.ca_pem, user)

    def _program(self, name: str, url: str, *flags: str) -> Program:
        log = self.directory / "log" / f"{name}.log"
        return Program(name, (str(self.binaries[name]), *flags), log, url)

    def _etcd(self) -> Program:
        client = f"http://{LOOPBACK}:{self.ports.etcd}"
        return self._program(
            "etcd",
            f"{client}/health",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls=http://{LOOPBACK}:{self.ports.etcd_peer}",
            f"--unsafe-no-fsync={'false' if self.durable else 'true'}",
            f"--quota-backend-bytes={1 << 30}",
            # without it the history of every write since the first start is kept
            "--auto-compaction-retention=5m",
            "--log-level=warn",
        )

    def _apiserver(self) -> Program:
        policy = self.directory / "audit-policy.yaml"
        write_atomic(policy, yaml.safe_dump(AUDIT_POLICY).encode())
        return self._program(
            "kube-apiserver",
            f"{self.server}/readyz",
            f"--etcd-servers=http://{LOOPBACK}:{self.ports.etcd}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.ports.apiserver}",
            f"--tls-cert-file={self.pki.server_cert}",
            f"--tls-private-key-file={self.pki.server_key}",
            f"--client-ca-file={self.pki.client_ca}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.pki.sa_pub}",
            f"--service-account-signing-key-file={self.pki.sa_key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            # no Endpoints of its own: a loopback address is then acceptable, as is a machine
            # that has no default route
            "--endpoint-reconciler-type=none",
            f"--advertise-address={LOOPBACK}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.directory / 'log' / 'audit.log'}",
            "--audit-log-mode=blocking",
            "--audit-log-maxsize=64",
            "--audit-log-maxbackup=2",
        )

    def _controller_manager(self) -> Program:
        url = f"https://{LOOPBACK}:{self.ports.controller_manager}/healthz"
        return self._program(
            "kube-controller-manager",
            url,
            *self._client_flags("kube-controller-manager", self.ports.controller_manager),
            f"--service-account-private-key-file={self.pki.sa_key}",
            f"--root-ca-file={self.pki.serving_ca}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={self.node_grace_seconds}s",
            f"--node-startup-grace-period={self.node_grace_seconds * 2}s",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )

    def _scheduler(self) -> Program:
        url = f"https://{LOOPBACK}:{self.ports.scheduler}/healthz"
        flags = self._client_flags("kube-scheduler", self.ports.scheduler)
        return self._program("kube-scheduler", url, *flags)

    def _client_flags(self, name: str, port: int) -> tuple[str, ...]:
        # users of their own, so that the audit log tells their writes from a person's
        access = self.directory / "pki" / f"{name}.kubeconfig"
        self.user_kubeconfig(access, f"system:{name}", "system:masters")
        return (
            f"--kubeconfig={access}",
            f"--authentication-kubeconfig={access}",
            f"--authorization-kubeconfig={access}",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics",
        )


def apply_crds(admin: Admin, files: Sequence[Path], seconds: float = 20.0) -> None:
    """Apply CustomResourceDefinitions and return when each is served. Raises Timeout, Rejected."""
    names = []
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                raise Rejected(f"{file}: a CustomResourceDefinition is expected")
            names.append(document["metadata"]["name"])
            admin.apply(f"{CRD_PATH}/{names[-1]}", document)
    deadline = time.monotonic() + seconds
    while waiting := [name for name in names if not _served(admin, name)]:
        if time.monotonic() > deadline:
            raise Timeout(
                f"not served {seconds:g} s after they were applied: {json.dumps(waiting)}"
            )
        time.sleep(0.05)


def _served(admin: Admin, name: str) -> bool:
    """Established, and seen by discovery, which follows a moment later."""
    definition = admin.get(f"{CRD_PATH}/{name}")
    conditions = definition.get("status", {}).get("conditions") or []
    if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
        return False
    spec = definition["spec"]
    for version in (v["name"] for v in spec["versions"] if v["served"]):
        found = admin.find(f"/apis/{spec['group']}/{version}")
        if found is None or spec["names"]["plural"] not in {r["name"] for r in found["resources"]}:
            return False
    return True
