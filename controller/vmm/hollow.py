"""Hollow VMMs: real processes that hold locks and sockets and run nothing. For tests only.

One small process each (``hollow_herd`` has them all in one). For scale, and for faults: a file of
orders makes them hang, lie, refuse or die. Everything around them is real:
they inherit the run lock, map their memory image privately, speak the guest's frames, and outlive
the agent. What does not live here: the process itself (``hollow_process``), and any guest.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Blocked, Bug, Retry, Timeout
from controller.host.process import Process, Sandbox, spawn
from controller.vmm.birth import GREETING_SECONDS, greeted, sockets
from controller.vmm.driver import (
    BOOT_EDGES,
    SNAPSHOT_EDGES,
    Capabilities,
    DeviceModel,
    EventKind,
    Handle,
    NotAllowed,
    OnEvent,
    Version,
    VmmState,
    unheard,
)
from controller.vmm.held import Held, HeldVmms, kill
from controller.vmm.machine import CHANNEL_SOCKET, Launch, Machine, socket_path

MONITOR_SOCKET = "hollow.sock"
PEOPLE_SOCKET = "people.sock"
PROGRAM = Path(__file__).with_name("hollow_process.py")
VERSION = Version("1", "hollow-1")

SECONDS = 5.0  # for any answer
CONNECT_SECONDS = 2.0
LINE_BYTES = 64 * 1024
_EMPTY_IMAGE = "/dev/zero"
_CONFIG_HEAD = struct.Struct("<8sIII")  # of the config disk: magic, version, length, checksum
_FIELD = struct.Struct("<BI")
_NONCE = 6
_STATES = {
    "created": State.CREATED,
    "running": State.RUNNING,
    "paused": State.PAUSED,
    "shutdown": State.SHUTDOWN,
}
_ENDINGS = {
    "powered-off": Ending.POWERED_OFF,
    "reset": Ending.RESET,
    "panicked": Ending.PANICKED,
}
_EVENTS = {
    "changed": EventKind.CHANGED,
    "storage": EventKind.STORAGE,
    "spoke": EventKind.SPOKE,
}


class _Link:
    """A connection to one hollow VMM's monitor: numbered lines, and events between them."""

    def __init__(
        self, handle: Handle, tell: Callable[[EventKind], None], lost: Callable[[], None]
    ) -> None:
        self._lost = lost
        self._path = socket_path(handle.run_dir, MONITOR_SOCKET)
        self._tell = tell
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._number = 0

    @property
    def connected(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def connect(self, seconds: float) -> None:
        """Connect anew. Raises Timeout, Retry."""
        await self.close()
        try:
            async with asyncio.timeout(seconds):
                reader, self._writer = await asyncio.open_unix_connection(
                    str(self._path), limit=LINE_BYTES
                )
                greeting = await reader.readline()
        except TimeoutError:
            await self.close()
            raise Timeout(f"{self._path} does not greet", reason="VmmSilent") from None
        except OSError as error:
            raise Retry(f"cannot connect to {self._path}: {error}", reason="VmmSilent") from error
        if greeting != b"hollow 1\n":
            await self.close()
            raise Retry(f"{self._path} greets with {greeting[:40]!r}", reason="VmmSilent")
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, words: str) -> str:
        """One command and its answer. Raises Timeout, Retry, NotAllowed."""
        if self._writer is None:
            raise Retry(f"{self._path} is not connected", reason="VmmSilent")
        self._number += 1
        number = str(self._number)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(f"{number} {words}\n".encode())
        try:
            said: str = await asyncio.wait_for(answer, SECONDS)
        except TimeoutError:
            word = words.partition(" ")[0]
            raise Timeout(f"{self._path} did not answer {word}", reason="VmmSilent") from None
        finally:
            self._waiting.pop(number, None)
        verdict, _, text = said.partition(" ")
        if verdict != "ok":
            raise NotAllowed(f"{self._path} refused: {text}")
        return text

    async def close(self) -> None:
        """As held.Link says."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reading = self._writer = None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "closed its monitor"
        try:
            while line := await reader.readline():
                number, _, rest = line.decode().rstrip("\n").partition(" ")
                if number == "event":
                    self._tell(_EVENTS[rest])
                elif number in self._waiting:
                    self._waiting[number].set_result(rest)
                elif not number.isdecimal():  # a number is an answer that came too late
                    raise ValueError(number)
        except (OSError, ValueError, KeyError) as error:
            why = f"speaks nonsense: {error!r}"
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Retry(f"{self._path} {why}", reason="VmmSilent"))
        self._lost()


_Vmm = Held[_Link]


class HollowDriver:
    """One process per VMM. ``faults``: a directory with a file of orders per UID, or ``all``."""

    name = "hollow"
    capabilities = Capabilities(
        edges=BOOT_EDGES | SNAPSHOT_EDGES,
        guest=False,
        snapshot=True,
        disk_bandwidth=False,
        max_volumes=23,
        memory_overhead=0,
    )

    def __init__(self, faults: Path | None = None) -> None:
        self._faults = faults
        self._vmms: HeldVmms[_Link] = HeldVmms(self._make_link, self._tell)
        self.on_event: OnEvent = unheard

    async def probe(self) -> Version:
        """As the contract says."""
        system_python()
        return VERSION

    async def describe(self, machine: Machine) -> DeviceModel:
        """As the contract says."""
        build = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()
        seen = [machine.hardware.vcpus, machine.hardware.memory]
        disks = [(disk.serial, disk.read_only, disk.limited) for disk in machine.disks]
        return DeviceModel(
            version=VERSION.version,
            build=build[:16],
            machine_type=machine.machine_type or VERSION.machine_type,
            cpu_model="none",
            cpu_features=(),
            devices=hashlib.sha256(json.dumps([seen, disks]).encode()).hexdigest(),
        )

    async def start(self, machine: Machine, launch: Launch) -> Handle:
        """As the contract says."""
        held = self._vmms.get(machine.uid)
        if held is not None and not held.process.dead:
            raise Bug(f"VMM of {machine.uid} is asked to start, but one lives")
        await self.release(machine.uid)
        os.set_blocking(launch.vmm_log, False)
        with sockets(machine.run_dir, (MONITOR_SOCKET, PEOPLE_SOCKET, CHANNEL_SOCKET)) as listeners:
            process = await self._spawn(machine, launch, listeners)
        handle = Handle(machine.uid, process.identity, machine.run_dir)
        vmm = self._vmms.hold(handle, process)
        try:
            await greeted(process, self._connect(vmm, GREETING_SECONDS), launch)
        except BaseException:
            await asyncio.shield(self.kill(handle))
            await self.release(machine.uid)
            raise
        self._vmms.watch(vmm)
        return handle

    async def adopt(self, handle: Handle) -> None:
        """As the contract says."""
        await self._ready(handle)

    async def state(self, handle: Handle) -> VmmState:
        """As the contract says."""
        state, ending, full = (await self._ask(handle, "state")).split()
        return VmmState(_STATES[state], _ENDINGS.get(ending), storage_full=full == "1")

    async def resume(self, handle: Handle) -> None:
        """As the contract says."""
        await self._ask(handle, "resume")

    async def pause(self, handle: Handle) -> None:
        """As the contract says."""
        await self._ask(handle, "pause")

    async def power_down(self, handle: Handle) -> None:
        """As the contract says."""
        await self._ask(handle, "powerdown")

    async def kill(self, handle: Handle) -> None:
        """As the contract says."""
        await kill(handle)
        await self._vmms.bury(handle.uid)

    async def save(self, handle: Handle, fd: int) -> None:
        """As the contract says."""
        os.write(fd, bytes.fromhex(await self._ask(handle, "save")))

    async def load(self, handle: Handle, fd: int) -> None:
        """As the contract says."""
        vmm = await self._ready(handle)
        try:
            await vmm.link.ask(f"load {os.read(fd, 4096).hex()}")
        except NotAllowed:
            raise
        except Retry as error:
            raise Blocked(f"refused the state: {error}", reason="DeviceStateRefused") from error

    async def release(self, uid: str) -> None:
        """As the contract says."""
        await self._vmms.release(uid)

    async def _spawn(self, machine: Machine, launch: Launch, listeners: list[int]) -> Process:
        config, fds = self._config(machine, launch, listeners)
        config["fds"] = fds
        # The program comes on stdin: its uid need not be able to reach our files.
        with PROGRAM.open("rb") as program:
            return await spawn(
                [system_python(), "-I", "-S", "-", json.dumps(config)],
                sandbox=Sandbox(launch.uid, launch.gid, launch.groups, cgroup=launch.cgroup),
                pass_fds=tuple(fds),
                stdin=program.fileno(),
                stdout=launch.vmm_log,
                stderr=launch.vmm_log,
                env=dict(launch.environment) or None,
            )

    def _config(
        self, machine: Machine, launch: Launch, listeners: list[int]
    ) -> tuple[dict[str, object], list[int]]:
        """What the program is told, and the descriptors that its ``names`` name."""
        named = {
            **dict(zip(("monitor", "people", "channel"), listeners, strict=True)),
            "report": launch.report,
            "console": launch.console_log,
            "log": launch.workload_log,
            "vmm": launch.vmm_log,
            "lock": launch.run_lock,
            **{f"kept{n}": fd for n, fd in enumerate(launch.keep_open)},
        }
        mode = {True: os.O_RDONLY, False: os.O_RDWR}
        disks = [(str(disk.path), mode[disk.read_only]) for disk in machine.disks]
        config: dict[str, object] = {
            "uid": machine.uid,
            "names": list(named),
            "image": str(machine.memory_image or _EMPTY_IMAGE),
            "memory": machine.hardware.memory,
            "disks": json.dumps(disks),
            "nonce": _nonce(machine),
            "incoming": machine.incoming,
            "faults": self._orders(machine.uid),
        }
        return config, list(named.values())

    def _orders(self, uid: str) -> str:
        if self._faults is None:
            return os.devnull
        own = self._faults / uid
        return str(own if own.exists() else self._faults / "all")

    async def _ask(self, handle: Handle, words: str) -> str:
        vmm = await self._ready(handle)
        return await vmm.link.ask(words)

    async def _ready(self, handle: Handle) -> _Vmm:
        vmm = await self._vmms.find(handle)
        if not vmm.link.connected:
            await self._connect(vmm, CONNECT_SECONDS)
        return vmm

    async def _connect(self, vmm: _Vmm, seconds: float) -> None:
        await vmm.link.connect(seconds)
        uid = await vmm.link.ask("uid")
        if uid != vmm.handle.uid:
            await self.release(vmm.handle.uid)
            raise Bug(f"{vmm.handle.run_dir} has the VMM of {uid}, not of {vmm.handle.uid}")

    def _tell(self, uid: str, kind: EventKind) -> None:
        self.on_event(uid, kind)

    def _make_link(self, handle: Handle) -> _Link:
        return _Link(
            handle,
            lambda kind: self._tell(handle.uid, kind),
            lambda: self._lost(handle),
        )

    def _lost(self, handle: Handle) -> None:
        """A lost connection says nothing here: the process tells its death itself."""


def system_python() -> str:
    """A Python that any uid may run: the system's, before one in somebody's home."""
    found = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    if not found:
        raise Blocked("no python3 for hollow VMMs: install python3", reason="VmmMissing")
    return found


def _nonce(machine: Machine) -> str:
    """The boot's nonce, from the config disk as the real init reads it; "" without that disk."""
    path = next((disk.path for disk in machine.disks if disk.serial == "config"), None)
    if path is None:
        return ""
    data = path.read_bytes()
    end = _CONFIG_HEAD.size + _CONFIG_HEAD.unpack_from(data)[2]
    at = _CONFIG_HEAD.size
    while at + _FIELD.size <= end:
        key, size = _FIELD.unpack_from(data, at)
        at += _FIELD.size
        if key == _NONCE:
            return data[at : at + size].decode()
        at += size
    return ""
