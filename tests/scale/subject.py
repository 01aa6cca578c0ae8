"""One Instance with a quarter of its memory filled, that is put to sleep, woken and forked."""

import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.local import install as installs
from controller.memory.manifest import Manifest
from tests.scale.baresleep import BareWake, snapshot_of
from tests.scale.upped import Cluster
from tests.scale.watching import ready

Object = dict[str, Any]
MIB = 1 << 20
SECONDS = 180.0  # for anything, on a busy machine
BLOCK = 32  # MiB
# Fills memory by copying: a guest without KVM makes random bytes too slowly for gigabytes.
_FILL = """
cd /dev/shm
head -c 1048576 /dev/urandom > one
cat {ones} > block
rm one
{more}
echo filled
while :; do sleep 3600; done
"""


@dataclass(frozen=True)
class Save:
    """What one Standby took, in seconds, and the agent's own account of it."""

    total: float  # from the patch to Ready, as a watcher sees it
    pause: float
    state: float
    pages: float
    durable: float


@dataclass(frozen=True)
class Subject:
    """The Instance ``name``; ``ram`` in bytes."""

    cluster: Cluster
    name: str
    ram: int

    @staticmethod
    def filled(cluster: Cluster, mib: int, name: str = "") -> "Subject":
        """Created, running, a quarter filled and idle."""
        subject = Subject(cluster, name or f"sleeps-{mib}", mib * MIB)
        blocks = mib // 4 // BLOCK - 1
        more = f"cat {'block ' * blocks} > more" if blocks else ""
        script = _FILL.format(ones="one " * BLOCK, more=more)
        began = time.monotonic()
        obj = cluster.create(
            subject.name, memory={"size": f"{mib}Mi"}, command=["/bin/sh", "-c", script]
        )
        cluster.watch.wait(subject.name, ready("Running"), after=began, seconds=SECONDS)
        log = cluster.place(obj) / "log" / "workload.log"
        while not log.exists() or b"filled" not in log.read_bytes():
            assert time.monotonic() - began < SECONDS, cluster.get(subject.name)
            time.sleep(0.1)
        return subject

    def order(self, mode: str) -> float:
        """Ask for ``mode``; seconds until a watcher sees it Ready."""
        began = time.monotonic()
        self.cluster.patch(self.name, operatingMode=mode)
        return self.cluster.watch.wait(self.name, ready(mode), after=began, seconds=SECONDS) - began

    def sleep(self) -> Save:
        """To Standby, from Running."""
        before = _agent_seconds(self.cluster)
        total = self.order("Standby")
        now = _agent_seconds(self.cluster)
        parts = ("PauseVmm", "state", "pages", "durable")
        return Save(total, *(now.get(part, 0.0) - before.get(part, 0.0) for part in parts))

    @property
    def pid(self) -> int:
        """Its VMM."""
        return int(self.cluster.get(self.name)["status"]["hypervisor"]["pid"])

    @property
    def argv(self) -> tuple[str, ...]:
        """Of its VMM, which lives."""
        return tuple(Path(f"/proc/{self.pid}/cmdline").read_text().rstrip("\0").split("\0"))

    @property
    def place(self) -> Path:
        """Where its node agent keeps it."""
        return self.cluster.place(self.cluster.get(self.name))

    @property
    def store(self) -> Path:
        """The memory store of its node."""
        return self.cluster.state_dir / "memory"

    @property
    def mapped(self) -> Path:
        """The image that its VMM maps."""
        word = next(word for word in self.argv if word.startswith("memory-backend-file,"))
        found = re.search(r"mem-path=([^,]*)", word)
        assert found, word
        return Path(found[1])

    @property
    def snapshot(self) -> Manifest:
        """What it sleeps on."""
        return snapshot_of(self.place)

    def bare(self, argv: tuple[str, ...], home: Path) -> BareWake:
        """How to wake it without us, now that it sleeps; ``argv`` of the VMM that it had."""
        return BareWake.of(argv, self.place, self.store, home)


def _agent_seconds(cluster: Cluster) -> dict[str, float]:
    """Seconds that the agent has spent in steps and in parts of a save, by name."""
    install = installs.load(cluster.directory)
    assert install is not None
    url = f"http://127.0.0.1:{install.node_settings(0).metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^torpor_(?:step|save)_seconds_sum\{\w+="(\w+)"\} (\S+)$', text, re.M)
    return {name: float(seconds) for name, seconds in found}
