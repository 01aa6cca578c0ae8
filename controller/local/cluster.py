"""The whole cluster of one directory: control plane, registry, Nodes, agents, operator; in order.

This is the composition root of the supervisor. What does not live here: taking it down from
another process and all that concerns guests (takedown.py).
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from controller.errors import Blocked, Rejected
from controller.guest.kernel import KernelStore
from controller.host.files import write_atomic
from controller.host.process import identity
from controller.local import install as installs
from controller.local import registry, state
from controller.local.binaries import Binaries
from controller.local.controlplane import ControlPlane
from controller.local.install import Install
from controller.local.nodes import (
    NAMESPACE,
    OPERATOR_ACCOUNT,
    Keeper,
    LocalNode,
    share_memory,
)
from controller.local.probe import LOOPBACK
from controller.local.process import Program, Supervised
from controller.local.setup.machine import kernels_dir
from controller.settings import NodeSettings, dump

SOURCE = Path(__file__).resolve().parents[2]
AGENT_READY_SECONDS = 60.0
Progress = Callable[[str], None]


class Cluster:
    """All the processes of one directory, children of this process until ``stop``."""

    def __init__(self, install: Install, binaries: Binaries, progress: Progress) -> None:
        self.install = install
        self._binaries = binaries
        self._progress = progress
        self._started: list[Supervised] = []
        me = identity(os.getpid())
        self._state = state.StateFile(state_path(install.directory), me, self._all)
        self.plane = ControlPlane(
            install.directory,
            binaries,
            ports=install.ports,
            crds=crd_files(),
            durable=True,
            node_grace_seconds=install.options.node_lease_seconds,
            changed=self._state.save,
        )
        self._keeper = Keeper(self.plane.admin, install.options.node_lease_seconds, progress)

    def start(self) -> None:
        """Start everything and return when it is ready. On failure nothing stays behind.

        Raises what went wrong: Blocked, Timeout, Rejected, Unreachable.
        """
        self._state.save()
        try:
            self._link_tools()
            images = self._launch(registry.program(self.install.directory, self.install.registry))
            self._progress("starting the control plane")
            self.plane.start()
            self._progress("applying manifests")
            apply_manifests(self._binaries["kubectl"], self.plane.kubeconfig)
            images.wait_ready(20)
            self._start_operator_and_agents()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, those that use the API first. Guests are not touched."""
        self._keeper.stop()
        with ThreadPoolExecutor(len(self._started) or 1) as pool:
            list(pool.map(Supervised.stop, self._started))
        self.plane.stop()
        state_path(self.install.directory).unlink(missing_ok=True)

    def _all(self) -> list[Supervised]:
        return [*self.plane.processes, *self._started]

    def _launch(self, program: Program) -> Supervised:
        process = Supervised(program, self._state.save)
        self._started.append(process)
        process.start()
        return process

    def _start_operator_and_agents(self) -> None:
        self._progress("starting the operator and the node agents")
        waiting = [self._launch(self._operator())]
        for number, name in enumerate(self.install.node_names):
            node = self._node(number, name)
            agent = Supervised(self._agent(number, name), self._state.save)
            self._keeper.add(node, partial(_lives, agent))
            self._started.append(agent)
            agent.start()
            waiting.append(agent)
        self._keeper.start()
        for process in waiting:
            process.wait_ready(AGENT_READY_SECONDS)
            self._progress(f"{process.program.name} is ready")

    def _node(self, number: int, name: str) -> LocalNode:
        options = self.install.options
        shared = share_memory(options.nodes, options.reserved_memory_bytes)
        return LocalNode(
            name=name,
            memory_bytes=options.node_memory_bytes or shared,
            cpus=options.node_cpus or installs.host_cpus(),
            pods=options.node_pods,
            token_file=self._node_dir(name) / "token",
        )

    def _agent(self, number: int, name: str) -> Program:
        home = self._node_dir(name)
        settings = self._with_kernel(self.install.node_settings(number))
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        write_atomic(home / "config.yaml", dump(settings).encode())
        self.plane.token_kubeconfig(home / "kubeconfig", home / "token")
        probe = f"http://{LOOPBACK}:{settings.metrics_port}/readyz"
        return self._ours(f"agent-{name}", "node", home / "config.yaml", home / "kubeconfig", probe)

    @staticmethod
    def _with_kernel(settings: NodeSettings) -> NodeSettings:
        """The guest kernel that setup has fetched, so that no agent fetches its own again."""
        kernel = KernelStore(kernels_dir()).current()
        if kernel is None:
            return settings
        found = {"kernel": kernel.vmlinuz, "kernel_modules": kernel.modules}
        return settings.model_copy(update=found)

    def _operator(self) -> Program:
        home = self.install.directory
        settings = self.install.operator_settings()
        write_atomic(home / "operator.yaml", dump(settings).encode())
        account = f"system:serviceaccount:{NAMESPACE}:{OPERATOR_ACCOUNT}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
        access = self.plane.user_kubeconfig(home / "operator.kubeconfig", account, *groups)
        probe = f"http://{LOOPBACK}:{settings.probe_port}/readyz"
        return self._ours("operator", "operator", home / "operator.yaml", access, probe)

    def _ours(self, name: str, verb: str, config: Path, access: Path, probe: str) -> Program:
        argv = (sys.executable, "-m", "controller", verb)
        files = ("--config", str(config), "--kubeconfig", str(access))
        log = self.install.directory / "log" / f"{name}.log"
        # children run in /, where a source tree is not on the path by itself
        paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {"PYTHONPATH": os.pathsep.join(paths)}
        return Program(name, argv + files, log, probe, env, stop_seconds=30.0)

    def _node_dir(self, name: str) -> Path:
        return self.install.directory / "nodes" / name

    def _link_tools(self) -> None:
        """What a person types, in one directory for PATH; the plugin makes ``kubectl torpor``."""
        tools = self.install.directory / "bin"
        tools.mkdir(exist_ok=True)
        scripts = Path(sys.executable).parent
        targets = [self._binaries["kubectl"], scripts / "torpor", scripts / "kubectl-torpor"]
        for target in targets:
            link = tools / target.name
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def state_path(directory: Path) -> Path:
    """Where a directory's running processes are listed."""
    return directory / "state.json"


@contextmanager
def sole_supervisor(directory: Path) -> Iterator[None]:
    """Hold the directory for one supervisor. Raises Blocked when another has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Blocked(
                f"the cluster of {directory} runs already: torpor status; torpor down ends it"
            ) from err
        yield


def crd_files() -> list[Path]:
    """The project's CustomResourceDefinitions. Raises Rejected when there are none."""
    files = sorted((SOURCE / "crds").glob("torpor.dev_*.yaml"))
    if not files:
        raise Rejected(f"{SOURCE / 'crds'} has no CustomResourceDefinition; run torpor crds")
    return files


def apply_manifests(kubectl: Path, kubeconfig: Path) -> None:
    """Apply the kustomize base: namespace, RBAC, admission policy. Raises Rejected, Blocked."""
    base = SOURCE / "manifests" / "base"
    if not (base / "kustomization.yaml").exists():
        raise Rejected(f"{base} has no kustomization.yaml; run Torpor from its whole source tree")
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", "apply", "--server-side"]
    command += ["--force-conflicts", "--field-manager=torpor-up", "-k", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:500]
        raise Blocked(f"kubectl apply -k {base} failed: {said}")


def _lives(process: Supervised) -> bool:
    return process.running


def end_leftovers(directory: Path) -> None:
    """End what a supervisor left that died without a word; its guests go on."""
    left = state.read(state_path(directory))
    if left is not None:
        left.end()
