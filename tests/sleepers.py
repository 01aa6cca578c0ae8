"""Guests that can be caught at running twice, going back, or being somebody else, and their API.

``WITNESS`` is a workload that counts in RAM, appends each number to a file on its disk with fsync,
finds both to agree each time, and prints it. It prints who it is whenever that changes.
"""

import asyncio
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.core.names import UID_LABEL
from controller.core.ownership import condition
from controller.host import runlock
from controller.local import install as installs
from controller.local.admin import Admin
from controller.local.pki import Pki
from controller.node.places import Places
from controller.node.record import Record, Records
from tests.localcluster import LocalCluster

Object = dict[str, Any]

WITNESS = r"""
import hashlib, os, time

big = bytearray(b"\xa5") * (int(os.environ.get("BIG_MIB", "0")) << 20)
wakes = 0


def text(path):
    with open(path) as file:
        return file.read().strip()


def last():
    size = os.fstat(journal).st_size
    return int(os.pread(journal, 9, size - 9)) if size else 0


def woken():
    "The wall clock was stepped: the first time zero all of it, later see that it is zero."
    if wakes == 1:
        for start in range(0, len(big), 1 << 20):
            big[start : start + (1 << 20)] = bytes(1 << 20)
        print("zeroed", len(big), flush=True)
    elif wakes > 1:
        print("zero", wakes, big.count(0) == len(big), flush=True)


journal = os.open("/journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
count, was, offset = last(), None, None
print("start", count, text("/proc/sys/kernel/random/boot_id"), flush=True)
while True:
    now = time.time() - time.monotonic()
    if offset is not None and abs(now - offset) > 0.2:
        wakes += 1
        woken()
    offset = now
    if last() != count:
        print("gap", count, last(), flush=True)
    count += 1
    os.write(journal, b"%08d\n" % count)
    os.fsync(journal)
    who = os.uname().nodename, text("/etc/machine-id")
    if who != was:
        was = who
        uuid = text("/proc/sys/kernel/random/uuid")
        noise = hashlib.sha256(os.urandom(1024)).hexdigest()
        print("who", *who, uuid, noise, flush=True)
    print("tick", count, time.time(), flush=True)
    time.sleep(0.2)
"""
# The same for a guest that has busybox only.
SHELL_WITNESS = """
n=$(tail -n 1 /journal 2>/dev/null); n=${n:-0}; echo start $n; touch /journal
while :; do
  was=$(tail -n 1 /journal); [ "${was:-0}" = $n ] || echo gap $n $was
  n=$((n+1)); echo $n | dd of=/journal oflag=append conv=notrunc,fsync 2>/dev/null
  echo tick $n 0; sleep 0.1
done
"""
PATIENCE = 90.0


@dataclass(frozen=True)
class Tick:
    """One line of a guest's log: the number, and its wall clock then."""

    count: int
    time: float


@dataclass(frozen=True)
class Story:
    """All that a witness printed, in order."""

    lines: tuple[tuple[str, ...], ...]

    def of(self, word: str) -> list[tuple[str, ...]]:
        """The lines that begin with ``word``, without it."""
        return [line[1:] for line in self.lines if line[0] == word]

    @property
    def ticks(self) -> list[Tick]:
        return [Tick(int(count), float(when)) for count, when in self.of("tick")]

    @property
    def last(self) -> int:
        """The highest number; 0 before the first."""
        return max((tick.count for tick in self.ticks), default=0)

    def check(self, boots: int = 1) -> None:
        """It counted on without gap or repeat, disk and memory always agreed."""
        counts = [tick.count for tick in self.ticks]
        assert self.of("gap") == []
        assert len(self.of("start")) == boots
        if counts:
            assert counts == list(range(counts[0], counts[0] + len(counts)))


def story(log: Path) -> Story:
    """What was logged so far; the last line may be half."""
    whole, _, _ = (log.read_text() if log.exists() else "").rpartition("\n")
    return Story(tuple(tuple(line.split()) for line in whole.splitlines() if line.split()))


def journal(overlay: Path) -> list[int]:
    """The numbers in the file on a guest's disk, as a mount would find them; nobody has it open."""
    with tempfile.TemporaryDirectory() as home:
        copy = str(shutil.copy(overlay, home))
        replay = ["e2fsck", "-y", "-E", "journal_only", copy]
        subprocess.run(replay, capture_output=True, timeout=20, check=False)
        show = ["debugfs", "-R", "cat /upper/journal", copy]
        done = subprocess.run(show, check=True, capture_output=True, text=True, timeout=20)
    return [int(line) for line in done.stdout.split()]


@dataclass(frozen=True)
class Sleepers:
    """Instances of witnesses on a cluster that ``torpor up`` started, in namespace default."""

    cluster: LocalCluster
    admin: Admin
    places: Places

    # --- the API ---

    @staticmethod
    def path(name: str = "") -> str:
        whole = "/apis/torpor.dev/v1alpha1/namespaces/default/instances"
        return f"{whole}/{name}" if name else whole

    def create(self, name: str, mode: str = "Running", memory: str = "96Mi", **spec: Any) -> str:
        """A witness; its UID."""
        image = {
            "image": f"{self.cluster.registry}/counter:1",
            "vcpus": 1,
            "memory": {"size": memory},
            "overlay": {"size": "64Mi"},
            "command": ["/usr/bin/python3", "-u", "-c", WITNESS],
        }
        return self.post(name, {**image, "operatingMode": mode, "stopTimeoutSeconds": 2, **spec})

    def fork(self, name: str, of: str, mode: str = "Running", **spec: Any) -> str:
        """A fork of ``of``; its UID. ``from_running`` as in forkFrom."""
        origin = {"name": of, "fromRunning": spec.pop("from_running", False)}
        wish = {"forkFrom": origin, "operatingMode": mode, "stopTimeoutSeconds": 2, **spec}
        return self.post(name, wish)

    def post(self, name: str, spec: Object) -> str:
        body = {
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Instance",
            "metadata": {"name": name}, "spec": spec,
        }  # fmt: skip
        return str(self.admin.create(self.path(), body)["metadata"]["uid"])

    def get(self, name: str) -> Object:
        return self.admin.get(self.path(name))

    def uid(self, name: str) -> str:
        return str(self.get(name)["metadata"]["uid"])

    def ask(self, name: str, mode: str) -> None:
        self.admin.patch(self.path(name), {"spec": {"operatingMode": mode}})

    def condition(self, name: str, kind: str) -> Object:
        return dict(condition(self.get(name), kind))

    def said(self, name: str, kind: str) -> tuple[str | None, str | None]:
        """Status and reason of a condition."""
        found = self.condition(name, kind)
        return found.get("status"), found.get("reason")

    def pods(self, uid: str) -> list[Object]:
        path = f"/api/v1/namespaces/default/pods?labelSelector={UID_LABEL}%3D{uid}"
        found: list[Object] = self.admin.get(path)["items"]
        return found

    def events(self, uid: str) -> dict[str, str]:
        """Reason to newest message of what was told of it."""
        path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3D{uid}"
        return {each["reason"]: each["message"] for each in self.admin.get(path)["items"]}

    def settled(self, name: str) -> bool:
        """Ready says so, for the newest generation, and about the mode that is asked for."""
        obj = self.get(name)
        ready, newest = condition(obj, "Ready"), obj["metadata"]["generation"]
        asked, status = obj["spec"]["operatingMode"], obj["status"]
        said = ready.get("observedGeneration"), status.get("observedGeneration")
        there = ready.get("reason") == asked == status.get("state")
        return ready.get("status") == "True" and there and said == (newest, newest)

    async def eventually(self, holds: Callable[[], object], name: str) -> None:
        """Wait for it; an AssertionError shows the status of ``name``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while not holds():
            if loop.time() > deadline:
                found = self.admin.find(self.path(name)) or {}
                raise AssertionError(f"{name}: still not so: {found.get('status')}")
            await asyncio.sleep(0.05)

    async def until(self, *names: str, mode: str | None = None) -> None:
        """Ask for ``mode`` (None: what is asked already) and wait until it is so."""
        if mode is not None:
            for name in names:
                self.ask(name, mode)
        for name in names:
            await self.eventually(lambda name=name: self.settled(name), name)

    async def until_said(self, name: str, kind: str, status: str, reason: str) -> Object:
        """Wait for a condition; it."""
        await self.eventually(lambda: self.said(name, kind) == (status, reason), name)
        return self.condition(name, kind)

    async def until_event(self, uid: str, name: str, reason: str) -> str:
        """Wait until it was told; the message."""
        await self.eventually(lambda: reason in self.events(uid), name)
        return self.events(uid)[reason]

    async def remove(self, *names: str) -> None:
        """Delete them and wait until they are gone."""
        for name in names:
            if self.admin.find(self.path(name)) is not None:
                self.admin.delete(self.path(name))
        for name in names:
            await self.eventually(lambda n=name: self.admin.find(self.path(n)) is None, name)

    async def leave(self, *names: str) -> None:
        """Remove them, and see that no file of the memory store is left."""
        await self.remove(*names)
        store = self.places.memory
        await self.eventually(lambda: not any(store.glob("[0-9]*")), "the memory store")

    # --- the host ---

    def story(self, uid: str) -> Story:
        return story(self.places.logs(uid) / "workload.log")

    async def counts_on(self, name: str, uid: str) -> int:
        """Wait until it printed two more numbers; the highest of them."""
        since = self.story(uid).last
        await self.eventually(lambda: self.story(uid).last >= since + 2, name)
        return self.story(uid).last

    def record(self, uid: str) -> Record:
        records = Records(self.places.instances)
        records.load()
        found = records.get(uid)
        assert isinstance(found, Record), found
        return found

    def alive(self, uid: str) -> bool:
        """Whether a VMM of it lives."""
        return runlock.holder(self.places.lock(uid)) is not None

    def images_of(self, gid: int) -> set[str]:
        """The names of the memory files of one family."""
        place = self.places.state / "memory" / str(gid)
        return {path.name for path in place.iterdir()} if place.exists() else set()

    def gid(self, uid: str) -> int:
        """Of its family."""
        lineage = self.record(uid).lineage
        assert lineage is not None
        return lineage.gid


def sleepers(cluster: LocalCluster) -> Sleepers:
    """The image is pushed; the administrator's calls are ready."""
    install = installs.load(cluster.directory)
    assert install is not None
    cluster.push("02-counter")
    node = install.node_settings(0)
    pki = Pki(cluster.directory / "pki")
    own = Path(tempfile.mkdtemp(dir=cluster.directory))
    user = pki.user(f"tests-{secrets.token_hex(2)}", "system:masters")
    admin = Admin(install.ports.apiserver, pki.ca_pem, own, user)
    return Sleepers(cluster, admin, Places(node.state_dir, node.run_dir))
