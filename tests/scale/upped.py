"""A cluster that ``torpor up`` made, the product itself, and what a bench does with a cluster."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.local import install as installs
from controller.local.admin import Admin
from controller.local.install import Install
from controller.local.pki import Pki
from tests.scale.audit import Audit
from tests.scale.watching import Watch, gone

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
BENCH_USER = "bench"
NAMESPACE = "bench"
GONE_SECONDS = 60.0


@dataclass
class Cluster:
    """What a bench does with a cluster: Instances of one namespace, and who wrote to them."""

    admin: Admin
    directory: Path
    audit: Audit
    watch: Watch
    image: str
    state_dir: Path  # of its only node agent
    run_dir: Path
    lines: list[tuple[float, str]] = field(default_factory=list)  # said while it came up

    @property
    def instances(self) -> str:
        """The API path of the namespace's Instances."""
        return f"/apis/torpor.dev/v1alpha1/namespaces/{NAMESPACE}/instances"

    def create(self, name: str, **spec: object) -> Object:
        """Create a small Instance; gives it as stored."""
        small = {"vcpus": 1, "memory": {"size": "128Mi"}, "overlay": {"size": "64Mi"}}
        body: Object = {
            "apiVersion": "torpor.dev/v1alpha1",
            "kind": "Instance",
            "metadata": {"name": name},
            "spec": {"image": self.image, **small, **spec},
        }
        return self.admin.create(self.instances, body)

    def fork(self, source: str, name: str, **spec: object) -> Object:
        """Create a fork of ``source``; gives it as stored."""
        return self.admin.create(
            self.instances,
            {
                "apiVersion": "torpor.dev/v1alpha1",
                "kind": "Instance",
                "metadata": {"name": name},
                "spec": {"forkFrom": {"name": source, **spec}},
            },
        )

    def patch(self, name: str, **spec: object) -> Object:
        """Change its spec."""
        return self.admin.patch(f"{self.instances}/{name}", {"spec": spec})

    def delete(self, name: str) -> None:
        """Delete it and wait until it is gone."""
        began = time.monotonic()
        self.admin.delete(f"{self.instances}/{name}")
        self.watch.wait(name, gone, after=began, seconds=GONE_SECONDS)

    def place(self, obj: Object) -> Path:
        """Where its node agent keeps it."""
        return self.state_dir / "instances" / str(obj["metadata"]["uid"])

    def get(self, name: str) -> Object:
        """The object as it is now."""
        return self.admin.get(f"{self.instances}/{name}")


@contextmanager
def upped_cluster() -> Iterator[Cluster]:
    """``torpor up --detach`` in a directory of its own; ``torpor down --purge`` at the end."""
    parent = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    parent.chmod(0o711)
    directory = parent / "cluster"
    try:
        lines = _up(directory)
        install = installs.load(directory)
        assert install is not None
        push_image(install.registry_address)
        with using(
            _admin(directory, install, parent), directory, f"{install.registry_address}/hello:1",
            install.node_settings(0).state_dir, install.node_settings(0).run_dir,
        ) as cluster:  # fmt: skip
            cluster.lines = lines
            yield cluster
    finally:
        if installs.load(directory) is not None:
            _torpor("down", "--purge", "--dir", str(directory))
        shutil.rmtree(parent)


@contextmanager
def using(
    admin: Admin, directory: Path, image: str, state_dir: Path, run_dir: Path
) -> Iterator[Cluster]:
    """A Cluster over a control plane that runs, whose log is below ``directory``."""
    make_namespace(admin, NAMESPACE)
    audit = Audit(directory, BENCH_USER)
    with Watch(admin, NAMESPACE) as watch:
        try:
            yield Cluster(admin, directory, audit, watch, image, state_dir, run_dir)
        finally:
            audit.close()


def make_namespace(admin: Admin, name: str) -> None:
    """Make a namespace; returns when Pods are let in."""
    admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    while admin.find(f"/api/v1/namespaces/{name}/serviceaccounts/default") is None:
        time.sleep(0.05)


def push_image(registry: str) -> None:
    """Build the hello example's image (cached) and push it."""
    script = ROOT / "examples" / "01-hello" / "build-image.sh"
    subprocess.run([script, registry], check=True, capture_output=True, timeout=120, cwd="/")


def _up(directory: Path) -> list[tuple[float, str]]:
    """Bring it up; what it said, with the time since the start of the command."""
    argv = [*_argv("up", "--detach", "--registry-port", "0"), "--dir", str(directory)]
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            lines.append((time.monotonic() - began, line.strip()))
    lines.append((time.monotonic() - began, "up"))
    assert process.returncode == 0, lines
    listed = json.loads(_torpor("status", "-o", "json", "--dir", str(directory)).stdout)
    assert all(each["ready"] for each in listed["processes"]), listed
    return lines


def _admin(directory: Path, install: Install, own: Path) -> Admin:
    pki = Pki(directory / "pki")
    return Admin(install.ports.apiserver, pki.ca_pem, own, pki.user(BENCH_USER, "system:masters"))


def _torpor(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _argv(*args), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
        check=True, cwd=ROOT,
    )  # fmt: skip


def _argv(*args: str) -> list[str]:
    return [sys.executable, "-m", "controller", *args]
