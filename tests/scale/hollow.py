"""A cluster for numbers: a real control plane, the real operator and agent, and hollow VMMs.

The operator and the agent are processes of their own, started and stopped by the bench, so that one
can be measured without the other.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from controller.host import cgroup
from controller.local.admin import Admin
from controller.local.cluster import apply_manifests
from controller.local.controlplane import ControlPlane
from controller.local.nodes import NAMESPACE as SYSTEM
from controller.local.nodes import OPERATOR_ACCOUNT, Keeper, LocalNode
from controller.local.probe import LOOPBACK, free_ports
from controller.local.process import Program, Supervised
from controller.local.takedown import mounts_below
from controller.settings import Defaults, NodeSettings, OperatorSettings, dump
from tests.clusterkit import running_control_plane
from tests.registry import running_registry
from tests.scale.upped import BENCH_USER, ROOT, Cluster, push_image, using

NODE = "bench-node"
UID_COUNT = 10_000
LEASE_SECONDS = 20
READY_SECONDS = 60.0
ROOMY = {"memory_bytes": 1 << 44, "cpus": 100_000, "pods": 10_000}  # nothing waits for room


@dataclass
class Stack:
    """A control plane with one Node, and two processes to measure."""

    plane: ControlPlane
    admin: Admin
    home: Path
    registry: str
    uid_base: int
    defaults: Defaults
    keeper: Keeper
    running: dict[str, Supervised] = field(default_factory=dict)

    def start(self, name: str) -> psutil.Process:
        """Start "agent" or "operator"; returns when it is ready."""
        process = Supervised(self._agent() if name == "agent" else self._operator())
        self.running[name] = process
        process.start()
        process.wait_ready(READY_SECONDS)
        assert process.identity is not None
        return psutil.Process(process.identity.pid)

    def stop(self, name: str) -> None:
        """Stop it; anybody may call it twice."""
        if name in self.running:
            process = self.running.pop(name)
            assert process.restarts == 0, f"{name} ended by itself; see {process.program.log}"
            process.stop()

    @property
    def settings(self) -> NodeSettings:
        """The agent's."""
        return NodeSettings(
            node_name=NODE,
            install_id="00bec400",
            state_dir=self.home / "state",
            run_dir=self.home / "run",
            uid_base=self.uid_base,
            uid_count=UID_COUNT,
            cgroup_prefix=f"torpor-{self.home.name}",
            metrics_port=free_ports(1)[0],
            lease_seconds=LEASE_SECONDS,
            hypervisors=("hollow",),
            kvm="never",
            insecure_registries=(self.registry,),
        )

    def _agent(self) -> Program:
        settings = self.settings
        config = self.home / "agent.yaml"
        config.write_text(dump(settings))
        access = self.plane.token_kubeconfig(self.home / "agent.kubeconfig", self.home / "token")
        return self._program("node", config, access, settings.metrics_port)

    def _operator(self) -> Program:
        settings = OperatorSettings(
            defaults=self.defaults,
            identity="bench",  # the same after a restart, which then need not wait to lead
            node_lease_seconds=LEASE_SECONDS,
            probe_port=free_ports(1)[0],
        )
        config = self.home / "operator.yaml"
        config.write_text(dump(settings))
        account = f"system:serviceaccount:{SYSTEM}:{OPERATOR_ACCOUNT}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}")
        path = self.home / "operator.kubeconfig"
        access = self.plane.user_kubeconfig(path, account, *groups)
        return self._program("operator", config, access, settings.probe_port)

    def _program(self, verb: str, config: Path, access: Path, port: int) -> Program:
        argv = (
            *(sys.executable, "-m", "controller", verb),
            *("--config", str(config), "--kubeconfig", str(access)),
        )
        probe = f"http://{LOOPBACK}:{port}/readyz"
        return Program(verb, argv, self.home / f"{verb}.log", probe, {"PYTHONPATH": str(ROOT)}, 30)


@contextmanager
def hollow_stack() -> Iterator[Stack]:
    """Control plane, manifests, registry with the image, one roomy Node; nothing is left behind."""
    home = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    home.chmod(0o711)
    (home / "state").mkdir(mode=0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        plane = stack.enter_context(running_control_plane(node_grace_seconds=LEASE_SECONDS))
        apply_manifests(plane.binaries["kubectl"], plane.kubeconfig)
        registry = stack.enter_context(running_registry(home))
        push_image(registry.address)
        user = plane.pki.user(BENCH_USER, "system:masters")
        admin = Admin(plane.ports.apiserver, plane.pki.ca_pem, home, user)
        keeper = Keeper(admin, LEASE_SECONDS, print)
        stack.callback(keeper.stop)
        keeper.add(LocalNode(NODE, token_file=home / "token", **ROOMY), lambda: True)
        keeper.start()
        base = 1_000_000_000 + os.getpid() * UID_COUNT % 1_000_000_000
        made = Stack(plane, admin, home, registry.address, base, _defaults(), keeper)
        stack.callback(_end_guests, made)
        stack.callback(lambda: [made.stop(name) for name in tuple(made.running)])
        yield made


@contextmanager
def hollow_cluster(stack: Stack) -> Iterator[Cluster]:
    """The stack as a Cluster."""
    image = f"{stack.registry}/hello:1"
    settings = stack.settings
    with using(
        stack.admin, stack.plane.directory, image, settings.state_dir, settings.run_dir
    ) as cluster:
        yield cluster


def _defaults() -> Defaults:
    return Defaults(hypervisor="hollow", vcpus=1, memory="64Mi", overlay="64Mi")


def _end_guests(stack: Stack) -> None:
    """Whatever a failed bench left on this host: VMMs have uids that are ours alone."""
    for process in psutil.process_iter(["uids"]):
        uids = process.info["uids"]
        if uids is not None and stack.uid_base <= uids.real < stack.uid_base + UID_COUNT:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
                process.wait(10)
    deadline = time.monotonic() + 10
    for mount in mounts_below(stack.home):
        while subprocess.run(["umount", mount], check=False, timeout=30).returncode:
            assert time.monotonic() < deadline, f"{mount} is in use"
            time.sleep(0.1)
    cgroup.remove_prefix(stack.settings.cgroup_prefix)
