"""torpor up, status and down, as a person types them, with the real operator and agents."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from controller.host.process import is_alive
from controller.local import install as installs
from controller.local import state, takedown
from controller.local.cluster import state_path
from controller.local.install import Install
from controller.local.state import Entry, State
from tests.clusterkit import ROOT, Kubectl
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="torpor up needs root"),
    pytest.mark.timeout(300),
]
EXAMPLE = ROOT / "examples" / "01-hello"
NAMES = [
    "supervisor", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
    "registry", "operator", "agent-node-1", "agent-node-2",
]  # fmt: skip


@dataclass(frozen=True)
class Torpor:
    """The command line, for one directory."""

    directory: Path

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "controller", *args, "--dir", str(self.directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0 or not check, f"torpor {args}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self("up", "--detach", "--nodes", "2", "--registry-port", "0", "--node-lease-seconds", "8")

    @property
    def install(self) -> Install:
        found = installs.load(self.directory)
        assert found is not None
        return found

    @property
    def running(self) -> State:
        found = state.read(state_path(self.directory))
        assert found is not None
        return found

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.running.processes if entry.name == name)

    def kubectl(self) -> Kubectl:
        return Kubectl(self.directory / "bin" / "kubectl", self.directory / "kubeconfig")


@pytest.fixture(scope="module")
def place() -> Iterator[Torpor]:
    """A directory that VMMs can reach; whatever a failed test left in it is taken down."""
    directory = Path(tempfile.mkdtemp(prefix="torpor-up-")) / "cluster"
    directory.parent.chmod(0o711)
    torpor = Torpor(directory)
    yield torpor
    if (install := installs.load(directory)) is not None:
        if takedown.guests(install):  # only an agent can stop them
            torpor("up", "--detach", check=False)
        torpor("down", "--purge")
    shutil.rmtree(directory.parent, ignore_errors=True)


@pytest.fixture
def torpor(place: Torpor) -> Torpor:
    """A cluster that is up, whatever the test before did to it."""
    left = state.read(state_path(place.directory))
    if left is None or not left.supervised:
        place.up()
    return place


def test_every_process_is_listed_and_ready(torpor: Torpor) -> None:
    listed = json.loads(torpor("status", "-o", "json").stdout)["processes"]
    assert [each["name"] for each in listed] == NAMES
    assert all(each["ready"] and Path(f"/proc/{each['pid']}").exists() for each in listed)


def test_nodes_are_ready_and_share_the_memory(torpor: Torpor) -> None:
    kubectl = torpor.kubectl()
    kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
    found = kubectl.json("get", "nodes", "-l", "torpor.dev/node=true")["items"]
    memory = [int(node["status"]["allocatable"]["memory"]) for node in found]
    assert [node["metadata"]["name"] for node in found] == ["node-1", "node-2"]
    assert sum(memory) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_instances_can_be_listed(torpor: Torpor) -> None:
    assert torpor.kubectl().json("get", "inst", "-A")["items"] == []


def test_second_up_is_refused(torpor: Torpor) -> None:
    done = torpor("up", "--detach", check=False)
    assert done.returncode == 1
    assert "runs already" in done.stderr


@pytest.mark.parametrize("name", ["agent-node-1", "operator", "registry"])
async def test_killed_process_is_restarted(torpor: Torpor, name: str) -> None:
    before = torpor.entry(name).who
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: torpor.entry(name).who not in (None, before))
    await until(lambda: torpor.entry(name).ready, seconds=60)
    assert torpor.entry(name).restarts > 0


async def test_up_takes_over_from_a_killed_supervisor(torpor: Torpor) -> None:
    before = torpor.running
    assert before.supervisor is not None
    os.kill(before.supervisor.pid, signal.SIGKILL)
    await until(lambda: not before.supervised)
    assert all(entry.running for entry in before.processes), "nothing else may die with it"

    torpor.up()

    assert not any(entry.running for entry in before.processes)
    assert torpor("status").returncode == 0


def test_down_leaves_nothing_running_and_up_finds_all_objects_again(torpor: Torpor) -> None:
    running, install = torpor.running, torpor.install
    torpor.kubectl()("create", "configmap", "kept", "--from-literal=a=b")

    torpor("down")

    identities = [running.supervisor, *(entry.who for entry in running.processes)]
    assert not any(who is not None and is_alive(who) for who in identities)
    assert takedown.mounts_below(install.run_dir) == []
    assert not install.run_dir.exists()
    assert torpor("status", check=False).returncode == 1

    torpor.up()

    assert torpor.kubectl().json("get", "configmap", "kept")["data"] == {"a": "b"}
    assert torpor.install == install, "ports and ids stay"


def test_left_guest_is_adopted_and_a_stopped_one_starts_again(torpor: Torpor) -> None:
    registry, kubectl = torpor.install.registry_address, torpor.kubectl()
    subprocess.run(["sh", EXAMPLE / "build-image.sh", registry], check=True, timeout=120)
    instance = yaml.safe_load((EXAMPLE / "instance.yaml").read_text())
    instance["spec"]["image"] = f"{registry}/hello:1"
    kubectl.apply(instance)
    first = _vmm_of_ready(kubectl)

    torpor("down", "--guests", "leave")
    assert Path(f"/proc/{first}").exists()
    assert torpor("down", check=False).returncode == 1, "nobody is there to stop it"
    torpor.up()
    assert _vmm_of_ready(kubectl) == first

    torpor("down", "--guests", "stop")
    assert takedown.guests(torpor.install) == []
    torpor.up()
    assert _vmm_of_ready(kubectl) != first
    kubectl("delete", "inst", "hello", "--timeout=60s")
    assert takedown.guests(torpor.install) == []


async def test_down_ends_what_a_killed_supervisor_left(torpor: Torpor) -> None:
    before = torpor.running
    assert before.supervisor is not None
    os.kill(before.supervisor.pid, signal.SIGKILL)
    await until(lambda: not before.supervised)
    torpor("down")
    assert not any(entry.running for entry in before.processes)
    assert not torpor.install.run_dir.exists()


def test_interrupted_foreground_up_takes_all_of_it_down(place: Torpor) -> None:
    if state.read(state_path(place.directory)) is not None:
        place("down")
    argv = [sys.executable, "-m", "controller", "up", "--dir", str(place.directory)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as foreground:
        assert foreground.stdout is not None
        lines = iter(foreground.stdout.readline, "")
        assert any("Ctrl-C ends it" in line for line in lines)
        running = place.running
        foreground.send_signal(signal.SIGINT)
        assert foreground.wait(60) == 0
    assert not any(entry.running for entry in running.processes)
    assert not place.install.run_dir.exists()


def test_purge_removes_everything(place: Torpor) -> None:
    place("down", "--purge")
    assert not place.directory.exists()


def _vmm_of_ready(kubectl: Kubectl) -> int:
    """The pid of hello's VMM, once it is Ready for what is asked."""
    kubectl("wait", "--for=condition=Ready", "inst/hello", "--timeout=55s")
    return int(kubectl.json("get", "inst", "hello")["status"]["hypervisor"]["pid"])
