"""A cluster as ``torpor up`` starts it, with the command line and kubectl of its user."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controller.host.process import Identity, identity, is_alive
from controller.local import install as installs
from controller.local.install import REGISTRY_PORT
from tests.clusterkit import ROOT, Kubectl

EXAMPLES = ROOT / "examples"
PREFIX = "torpor-local-"
OWNER = "owner.json"


@dataclass(frozen=True)
class LocalCluster:
    """One that is up, in ``directory``."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What ``torpor up`` says to export."""
        return {
            **os.environ,
            "TORPOR_DIR": str(self.directory),
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
        }

    def torpor(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it. With ``check`` a failure is an AssertionError with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "controller", *args],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
            cwd=ROOT, env=self.environment,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"torpor {args}: {done.stdout}{done.stderr}"
        return done

    @contextlib.contextmanager
    def running(self, *args: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
        """``torpor`` in the background, killed at the end."""
        argv = [sys.executable, "-m", "controller", *args]
        options = {"stdout": subprocess.PIPE, **options}
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, text=True, cwd=ROOT, env=self.environment, **options
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @property
    def kubectl(self) -> Kubectl:
        """Of the administrator, in namespace default."""
        return Kubectl(self.directory / "bin" / "kubectl", self.directory / "kubeconfig")

    @property
    def registry(self) -> str:
        """host:port of its image registry."""
        found = installs.load(self.directory)
        assert found is not None
        return found.registry_address

    def pid(self, name: str) -> int:
        """Of a process that ``torpor status`` lists."""
        listed = json.loads(self.torpor("status", "-o", "json", check=False).stdout)["processes"]
        return int(next(each["pid"] for each in listed if each["name"] == name))

    def push(self, example: str) -> None:
        """Build an example's image, push it to this cluster's registry."""
        done = subprocess.run(
            [str(EXAMPLES / example / "build-image.sh"), self.registry],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def manifest(self, example: str) -> str:
        """An example's manifest, with this cluster's registry in place of the usual one."""
        text = (EXAMPLES / example / "instance.yaml").read_text()
        return text.replace(f"127.0.0.1:{REGISTRY_PORT}", self.registry)


@contextlib.contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """Start one with one node, yield it, leave nothing behind."""
    _clean_up_after_killed_sessions()
    base = Path(tempfile.mkdtemp(prefix=PREFIX))
    base.chmod(0o711)  # VMMs have uids of their own
    (base / OWNER).write_text(json.dumps(asdict(identity(os.getpid()))))
    cluster = LocalCluster(base / "cluster")
    try:
        cluster.torpor("up", "--detach", "--registry-port", "0")
        yield cluster
    finally:
        _remove(base)


def _clean_up_after_killed_sessions() -> None:
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        if not is_alive(Identity(**json.loads(owner.read_text()))):
            _remove(owner.parent)


def _remove(base: Path) -> None:
    cluster = LocalCluster(base / "cluster")
    if installs.load(cluster.directory) is not None:
        cluster.torpor("down", "--purge")
    shutil.rmtree(base)
