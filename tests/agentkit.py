"""Real node agents for tests, which die on order, and a cluster small enough to lie to them.

``Site``: one agent's directories; ``start`` runs the agent there, any number of times. ``World``:
a FakeApiServer and what the operator would write into its Instances. VMMs are hollow unless told
otherwise. Everything is below one directory, so that what is left over is seen.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.core import ownership
from controller.core import source as forking
from controller.core.desired import Permit
from controller.core.names import FINALIZER
from controller.host import failpoint, files, runlock
from controller.host.cgroup import Cgroup
from controller.host.process import Identity, boot_id
from controller.images.image import ImageConfig
from controller.images.shelf import Shelf
from controller.node.places import Places
from controller.node.record import Record, Records, encode
from controller.settings import NodeSettings, dump
from controller.vmm.hollow import PEOPLE_SOCKET
from controller.vmm.registry import FAULTS
from tests import leaks
from tests.fake_apiserver import FakeApiServer, fake_apiserver
from tests.waiting import unmount

ROOT = Path(__file__).resolve().parents[1]
Object = dict[str, Any]

NODE = "node-1"
NAMESPACE = "default"
IMAGE_DIGEST = f"sha256:{1:064x}"
# By digest, so that no registry is asked for it.
IMAGE = f"registry.example/app@{IMAGE_DIGEST}"
PATIENCE = 60.0  # seconds; on an idle machine nothing here takes one
KILLED = -signal.SIGKILL
PREFIX = "tak-"  # then the pid of the session that made it


async def eventually(
    condition: Callable[[], object],
    what: Callable[[], object] | str = "",
    seconds: float = PATIENCE,
) -> None:
    """Return once ``condition()`` is true. AssertionError with ``what`` after ``seconds``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"still not so after {seconds} s: {said}")
        await asyncio.sleep(0.01)


# --- processes ------------------------------------------------------------------------------------


class Zygote:
    """Makes processes of ours in milliseconds (see ``tests.zygote``)."""

    def __init__(self) -> None:
        _clean_up_after_killed_sessions()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def order(self, **order: Any) -> int:
        """Send one order; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, and with it every child that still lives."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)


class Ours:
    """One process that a Zygote made: an agent, an operator."""

    def __init__(self, zygote: Zygote, argv: list[str], log: Path, **env: str) -> None:
        self._zygote = zygote
        self.log = log
        self.pid = zygote.order(argv=argv, env=env, log=str(log))
        self._pidfd = os.pidfd_open(self.pid)
        self.code: int | None = None  # as subprocess has it: -9 for SIGKILL

    @property
    def dead(self) -> bool:
        """Whether it has ended; ``code`` says how."""
        if self.code is None and select.select([self._pidfd], [], [], 0)[0]:
            self.code = os.waitstatus_to_exitcode(self._zygote.order(wait=self.pid))
            os.close(self._pidfd)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send it a signal, unless it is dead."""
        if not self.dead:
            signal.pidfd_send_signal(self._pidfd, number)

    async def ended(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; its exit code."""
        await eventually(lambda: self.dead, lambda: f"it lives; {tail(self.log)}", seconds)
        assert self.code is not None
        return self.code

    async def stands(self) -> None:
        """Wait until it has stopped itself, at a crash point that was told so."""

        def stopped() -> bool:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

        await eventually(stopped, lambda: f"it goes on; {tail(self.log)}")

    async def kill(self) -> None:
        """SIGKILL, and its end."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def leave(self) -> int:
        """SIGTERM, and its end; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log, for messages."""
    return "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


# --- one agent's place ----------------------------------------------------------------------------


@dataclass
class Site:
    """One node agent's directories and settings, which outlive the agent."""

    home: Path
    zygote: Zygote
    kubeconfig: Path
    settings: NodeSettings
    agents: list[Ours] = field(default_factory=list)

    @property
    def places(self) -> Places:
        """Where things lie."""
        return Places(self.settings.state_dir, self.settings.run_dir)

    @property
    def log(self) -> Path:
        """What all agents of this place said."""
        return self.home / "agent.log"

    def start(self, failpoints: str = "", **changes: Any) -> Ours:
        """Start the agent; ``changes`` go into its settings from now on."""
        if changes:
            self.settings = NodeSettings.model_validate(self.settings.model_dump() | changes)
        config = self.home / "node.yaml"
        config.write_text(dump(self.settings))
        argv = ["node", "--config", str(config), "--kubeconfig", str(self.kubeconfig)]
        agent = Ours(self.zygote, argv, self.log, **{failpoint.VARIABLE: failpoints})
        self.agents.append(agent)
        return agent

    @property
    def agent(self) -> Ours:
        """The newest one."""
        return self.agents[-1]

    def order(self, uid: str, *faults: str) -> None:
        """Order faults of one hollow VMM (``state=hang``, …); call before it starts. None: none."""
        (self.places.run / FAULTS / uid).write_text("".join(f"{each}\n" for each in faults))

    def order_all(self, *faults: str) -> None:
        """The same for every hollow VMM that has no orders of its own when it starts."""
        self.order("all", *faults)

    def happen(self, uid: str, words: str) -> None:
        """Let something happen inside a hollow guest or to its VMM: ``exit 3``, ``panic``, …"""
        self.ask(uid, words)

    def ask(self, uid: str, words: str) -> str:
        """As ``happen``; what the VMM answered. Raises OSError when none lives."""
        record = self.record(uid)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.places.run_of(record) / PEOPLE_SOCKET))
            sock.sendall(f"{words}\n".encode())
            return sock.recv(4096).decode().strip()

    def record(self, uid: str) -> Record:
        """The record as it lies on disk."""
        records = Records(self.places.instances)
        records.load()
        found = records.get(uid)
        assert isinstance(found, Record), found
        return found

    def vmm(self, uid: str) -> Identity | None:
        """Who holds the run lock."""
        return runlock.holder(self.places.lock(uid))

    def starts(self, uid: str) -> int:
        """How often a hollow guest of this Instance has booted, by its own word."""
        log = self.places.logs(uid) / "workload.log"
        return log.read_text().count("hollow: started") if log.exists() else 0

    def vmms(self) -> dict[str, list[int]]:
        """Every living VMM of this place by Instance, whoever knows of it."""
        found: dict[str, list[int]] = {}
        run = str(self.places.state).encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - it is polled
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if run in words and (
                    named := re.search(rb"uid(?:\": \"|\0)([-0-9a-f]{36})", words)
                ):
                    found.setdefault(named[1].decode(), []).append(int(pid))
        return found

    async def reboot(self) -> None:
        """The host boots anew: no process, an empty run directory, every time of another boot."""
        await self.agent.kill()
        await self._end_vmms()
        records = Records(self.places.instances)
        records.load()
        for record in records.known():
            text = encode(record).decode().replace(boot_id(), "0" * len(boot_id()))
            path = self.places.instance(record.uid) / "record.json"
            path.write_bytes(encode(Record.model_validate(json.loads(text)["record"])))
        for path in self.places.run.iterdir():
            if path.name != FAULTS:
                files.remove_tree(path)

    async def _end_vmms(self) -> None:
        for pids in self.vmms().values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not self.vmms(), self.vmms)

    async def close(self) -> None:
        """End agents and VMMs, and unmount what an agent mounted."""
        for agent in self.agents:
            await agent.kill()
        await self._end_vmms()
        for cgroup in (*_cgroups(self.settings.cgroup_prefix), Path()):
            Cgroup.at(self.settings.cgroup_prefix, cgroup.name).remove()
        for mounted in reversed(_mounts_below(self.home)):
            unmount(mounted)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=20)


def bzimage(path: Path) -> Path:
    """A file that is a kernel to who only reads its head; nothing boots it."""
    head = bytearray(4096)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    head[0x600:0x605] = b"6.1.0"
    path.write_bytes(head)
    return path


def shelve_image(images: Path, rootfs: Path | None = None, *command: str) -> None:
    """An image under IMAGE_DIGEST; without a ``rootfs`` one that nothing can read."""
    shelf = Shelf(images)
    scratch = shelf.scratch()
    ready = scratch / "ready"
    ready.mkdir()
    (ready / "rootfs.erofs").write_bytes(rootfs.read_bytes() if rootfs else b"e" * 4096)
    shelf.publish(scratch, IMAGE_DIGEST, IMAGE, ImageConfig(entrypoint=command or ("/bin/app",)))
    scratch.rmdir()


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A short directory that VMMs can reach; at its end nothing may use it any more."""
    home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        files.remove_tree(home)


def _cgroups(prefix: str) -> list[Path]:
    top = Cgroup.at(prefix, ".").path
    return [path for path in top.iterdir() if path.is_dir()] if top and top.exists() else []


def _clean_up_after_killed_sessions() -> None:
    """VMMs outlive agents and sessions: end those whose session is gone, and their directories."""
    for home in Path("/tmp").glob(f"{PREFIX}*-*"):
        if Path("/proc", home.name.split("-")[1]).exists():
            continue
        for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if f"{home}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
        for mounted in reversed(_mounts_below(home)):
            _run("umount", "-l", mounted)
        files.remove_tree(home)


def _mounts_below(home: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{home}/")]


def furnish_for_qemu(site: Site, rootfs: Path, kernels: Path) -> None:
    """Make a place fit for real guests, which sleep until they are told to end."""
    _run("cp", "-al", str(kernels), str(site.places.kernels))
    files.remove_tree(site.places.images)
    site.places.images.mkdir(mode=0o711)
    shelve_image(site.places.images, rootfs, "/bin/sleep", "1000000")
    changes = {"hypervisors": ("qemu",), "kernel": None}
    site.settings = NodeSettings.model_validate(site.settings.model_dump() | changes)


def make_site(home: Path, zygote: Zygote, kubeconfig: Path, **settings: Any) -> Site:
    """A place for one agent below ``home``, with an image in its store and a tmpfs to run in."""
    state, run = home / "s", home / "r"
    state.mkdir(mode=0o711)
    run.mkdir(mode=0o711)
    _run("mount", "-t", "tmpfs", "-o", "size=16m,mode=711", "none", str(run))
    (run / FAULTS).mkdir(mode=0o755)
    (state / "images").mkdir(mode=0o711)
    shelve_image(state / "images")
    (home / "agent.log").touch()
    defaults: Object = {
        "node_name": NODE,
        "install_id": secrets.token_hex(4),
        "state_dir": state,
        "run_dir": run,
        "uid_base": 300_000 + secrets.randbelow(1000) * 100,
        "uid_count": 100,
        "cgroup_prefix": home.name,
        "metrics_port": 0,
        "hypervisors": ("hollow",),
        "kvm": "never",
        "kernel": bzimage(home / "vmlinuz"),
        "restart_backoff_seconds": 0.2,
        "restart_backoff_cap_seconds": 1.0,
        "lease_seconds": 8,
    }
    made = NodeSettings.model_validate({**defaults, **settings})
    return Site(home, zygote, kubeconfig, made)


# --- a cluster ------------------------------------------------------------------------------------


class World:
    """A FakeApiServer with Instances in it, placed as the operator places them."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        server.put("namespaces", {"metadata": {"name": "kube-system"}})
        server.put("nodes", {"metadata": {"name": NODE}})

    def create(
        self,
        name: str,
        mode: str = "Running",
        hypervisor: str = "hollow",
        memory: str = "16Mi",
        **spec: Any,
    ) -> str:
        """An Instance that the operator has placed; its UID."""
        uid = str(uuid.uuid4())
        pinned = {"image": {"digest": IMAGE_DIGEST}} if "image" not in spec else {}
        obj: Object = {
            "apiVersion": "torpor.dev/v1alpha1",
            "kind": "Instance",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": uid,
                "generation": 1,
                "finalizers": [FINALIZER],
            },
            "spec": {"image": IMAGE, "operatingMode": mode, "stopTimeoutSeconds": 2, **spec},
            "status": {
                "id": secrets.token_hex(12),
                "state": "Stopped",
                "observedGeneration": 1,
                "nodeName": NODE,
                "epoch": 1,
                "resources": {
                    "hypervisor": hypervisor,
                    "vcpus": 1,
                    "memory": memory,
                    "overlay": "16Mi",
                },
                "conditions": [_ready_unknown(1)],
                **pinned,
            },
        }
        obj["spec"].update(spec)
        self.server.put("instances", obj)
        self._operate(name)
        return uid

    def fork(
        self, name: str, source: str, mode: str = "Running", *, running: bool = False, **spec: Any
    ) -> str:
        """A fork, which is placed as soon as its source allows it; its UID.

        ``running``: its source may be paused for it.
        """
        uid = str(uuid.uuid4())
        obj: Object = {
            "apiVersion": "torpor.dev/v1alpha1",
            "kind": "Instance",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": uid,
                "generation": 1,
                "finalizers": [FINALIZER],
            },
            "spec": {
                "forkFrom": {"name": source, "fromRunning": running},
                "operatingMode": mode,
                "stopTimeoutSeconds": 2,
                **spec,
            },
            "status": {"state": "Stopped", "conditions": [_ready_unknown(1)]},
        }
        self.server.put("instances", obj)
        self._operate(name)
        return uid

    def get(self, name: str) -> Object:
        """The object as stored."""
        return self.server.get("instances", name, NAMESPACE)

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return (NAMESPACE, name) in self.server.objects.get("instances", {})

    def edit(self, name: str, **spec: Any) -> None:
        """A user edits the spec, and the operator does what follows from it."""
        obj = self.get(name)
        obj["spec"].update(spec)
        obj["metadata"]["generation"] += 1
        self.server.put("instances", obj)
        self._operate(name)

    def ask(self, name: str, mode: str) -> None:
        """Ask for an operating mode."""
        self.edit(name, operatingMode=mode)

    def status(self, name: str, **changes: Any) -> None:
        """The operator writes these keys of the status."""
        obj = self.get(name)
        obj["status"].update(changes)
        self.server.put("instances", obj)

    def schedule(self, name: str, status: str, reason: str) -> None:
        """The operator says something about the reservation."""
        obj = self.get(name)
        kept = [c for c in obj["status"]["conditions"] if c["type"] != "Scheduled"]
        said: Object = {
            "type": "Scheduled",
            "status": status,
            "reason": reason,
            "message": "said so",
        }
        said |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
        self.status(name, conditions=[*kept, said])

    def grant(self, name: str) -> str:
        """A new reservation, as after a new Pod was bound; its UID."""
        reservation = str(uuid.uuid4())
        self.status(name, reservation=reservation)
        self.schedule(name, "True", "Scheduled")
        return reservation

    def delete(self, name: str) -> None:
        """A user deletes it; the finalizer holds it."""
        obj = self.get(name)
        obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        obj["metadata"]["generation"] += 1
        self.server.put("instances", obj)

    def ready(self, name: str) -> Object:
        """Its Ready condition."""
        return dict(ownership.condition(self.get(name), "Ready"))

    def condition(self, name: str, kind: str) -> Object:
        """One of its conditions, {} if it is not there."""
        return dict(ownership.condition(self.get(name), kind))

    def state(self, name: str) -> str:
        """``status.state``."""
        return str(self.get(name)["status"].get("state"))

    def settled(self, name: str) -> bool:
        """Ready says so, for the newest generation, and about the mode that is asked for."""
        obj, ready = self.get(name), self.ready(name)
        newest = obj["metadata"]["generation"]
        said = ready.get("observedGeneration"), obj["status"].get("observedGeneration")
        asked = obj["spec"]["operatingMode"]
        here = ready.get("reason") == asked == obj["status"]["state"]
        return ready.get("status") == "True" and here and said == (newest, newest)

    def writes(self, name: str) -> int:
        """How many writes of this Instance came in."""
        path = f"/instances/{name}"
        return sum(path in seen.path for seen in self.server.requests if seen.method == "PATCH")

    async def until(self, name: str, mode: str | None = None, seconds: float = PATIENCE) -> None:
        """Ask for ``mode`` (None: what is asked already) and wait until it is so."""
        if mode is not None and self.get(name)["spec"]["operatingMode"] != mode:
            self.ask(name, mode)
        await eventually(lambda: self.settled(name), lambda: self.get(name)["status"], seconds)

    async def until_reason(self, name: str, reason: str, seconds: float = PATIENCE) -> Object:
        """Wait until Ready has this reason; the condition."""
        await eventually(
            lambda: self.ready(name).get("reason") == reason,
            lambda: self.get(name)["status"],
            seconds,
        )
        return self.ready(name)

    async def until_gone(self, name: str, seconds: float = PATIENCE) -> None:
        """Delete it and wait until nothing holds it any more."""
        if self.exists(name) and not self.get(name)["metadata"].get("deletionTimestamp"):
            self.delete(name)
        await eventually(lambda: not self.exists(name), lambda: self.get(name), seconds)

    async def operate(self) -> None:
        """Play the operator, for ever: whoever needs memory and has none gets a reservation."""
        while True:
            for _, name in list(self.server.objects.get("instances", {})):
                self._operate(name)
            await asyncio.sleep(0.02)

    def _operate(self, name: str) -> None:
        obj = self.server.objects["instances"][(NAMESPACE, name)]  # no copy: this is polled
        if forking.waits_for(obj) is not None:
            self._place(name)
            obj = self.server.objects["instances"][(NAMESPACE, name)]
        if "nodeName" not in obj["status"]:
            return
        if ownership.needs_memory(obj) and ownership.permit(obj) is Permit.WITHHELD:
            self.grant(name)

    def _place(self, name: str) -> None:
        """What placement does with a fork: beside its source, with what it inherits."""
        obj = self.get(name)
        key = (NAMESPACE, str(obj["spec"]["forkFrom"]["name"]))
        made = forking.birth(obj, self.server.objects["instances"].get(key))
        if isinstance(made, forking.NoSource):
            return
        self.status(
            name,
            id=secrets.token_hex(12),
            nodeName=made.node,
            epoch=1,
            resources=dict(made.resources),
            lineage=dict(made.lineage),
        )
        if not made.memory:
            self.schedule(name, "False", "NotNeeded")


def _ready_unknown(generation: int) -> Object:
    return {
        "type": "Ready",
        "status": "Unknown",
        "reason": "Pending",
        "message": "nobody has looked at it yet",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
        "observedGeneration": generation,
    }


# --- all of it ------------------------------------------------------------------------------------


@dataclass
class Rig:
    """A World with one Site, and what was left behind by them."""

    world: World
    site: Site
    zygote: Zygote
    most: dict[str, int] = field(default_factory=dict)  # VMMs seen living at once, by UID

    def restart(self, failpoints: str = "", **changes: Any) -> Ours:
        """Start the agent anew; the one before must be dead."""
        assert not self.site.agents or self.site.agent.dead
        return self.site.start(failpoints, **changes)

    async def run(self, name: str, **spec: Any) -> str:
        """An Instance, Running; its UID."""
        uid = self.world.create(name, **spec)
        await self.world.until(name)
        return uid

    async def count_vmms(self) -> None:
        """Look all the time how many VMMs each Instance has."""
        while True:
            for uid, pids in self.site.vmms().items():
                self.most[uid] = max(self.most.get(uid, 0), len(pids))
            await asyncio.sleep(0.1)

    def left(self) -> list[str]:
        """What there is of Instances on this host: nothing, when all were deleted."""
        places, found = self.site.places, []
        found += [str(path) for path in places.instances.iterdir()]
        kept = (FAULTS, places.socket.name)
        found += [str(path) for path in places.run.iterdir() if path.name not in kept]
        found += [str(pid) for pid in self.site.vmms().items()]
        found += map(str, places.memory.glob("[0-9]*"))
        return found + [str(path) for path in _cgroups(self.site.settings.cgroup_prefix)]


@contextlib.asynccontextmanager
async def rig(zygote: Zygote, **settings: Any) -> AsyncIterator[Rig]:
    """A World with one Site whose agent is not started yet; nothing of it is left afterwards."""
    with directory() as home:
        scope = leaks.Scope(paths=(home,), names=(home.name,))
        before = leaks.snapshot(scope)
        async with fake_apiserver() as server:
            world = World(server)
            kubeconfig = server.kubeconfig(home / "kubeconfig")
            made = Rig(world, make_site(home, zygote, kubeconfig, **settings), zygote)
            tasks = [asyncio.create_task(made.count_vmms()), asyncio.create_task(world.operate())]
            try:
                yield made
            except BaseException:
                if made.site.log.exists():
                    print(tail(made.site.log, 200))
                raise
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await made.site.close()
        assert all(count == 1 for count in made.most.values()), f"two VMMs at once: {made.most}"
        left = leaks.settle(before, scope)
        assert not left, "left behind:\n" + "\n".join(left)
