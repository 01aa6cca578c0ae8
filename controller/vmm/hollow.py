"""Hollow VMMs: real processes that hold locks and sockets and run nothing. For tests only.

One small process each (``hollow_herd`` has them all in one). For scale, and for faults: a file of
orders makes them hang, lie, refuse or die. Everything around them is real:
they inherit the run lock, map their memory image privately, speak the guest's frames, and outlive
the agent. What does not live here: the process itself (``hollow_program``), and any guest.
"""

import asyncio
import hashlib
import json
import os
import struct
from pathlib import Path

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Blocked, Bug, Retry
from controller.host.process import Process, Sandbox, spawn
from controller.vmm import hollow_program
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
from controller.vmm.hollow_link import MONITOR_SOCKET, Link
from controller.vmm.machine import CHANNEL_SOCKET, EMPTY_IMAGE, Launch, Machine

PEOPLE_SOCKET = "people.sock"
VERSION = Version("1", "hollow-1")

CONNECT_SECONDS = 2.0
_STATE_BYTES = 4096
_CONFIG_HEAD = struct.Struct("<8sIII")  # of the config disk: magic, version, length, checksum
_FIELD = struct.Struct("<BI")
_NAMES = {6: "nonce", 32: "hostname", 33: "machine_id"}
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

_Vmm = Held[Link]


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
        self._vmms: HeldVmms[Link] = HeldVmms(self._make_link, self._tell)
        self.on_event: OnEvent = unheard

    async def probe(self) -> Version:
        """As the contract says."""
        hollow_program.python()
        return VERSION

    async def describe(self, machine: Machine) -> DeviceModel:
        """As the contract says."""
        return DeviceModel(
            version=VERSION.version,
            build=hollow_program.digest(),
            machine_type=machine.machine_type or VERSION.machine_type,
            cpu_model="none",
            cpu_features=(),
            devices=_devices(machine),
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
        state = bytes.fromhex(await self._ask(handle, "save"))
        try:
            os.write(fd, state)
        except OSError as error:
            text = f"cannot write the device state of {handle.uid}: {error.strerror}"
            raise Retry(text, reason="DeviceStateUnsaved") from error

    async def load(self, handle: Handle, fd: int) -> None:
        """As the contract says."""
        vmm = await self._ready(handle)
        try:
            await vmm.link.ask(f"load {os.read(fd, _STATE_BYTES).hex()}")
        except NotAllowed:
            raise
        except Blocked:
            await self.kill(handle)
            raise
        except (Retry, OSError) as error:
            await self.kill(handle)
            text = f"the VMM of {handle.uid} loaded no device state and was ended: {error}"
            raise Retry(text, reason="DeviceStateUnloaded") from error

    async def release(self, uid: str) -> None:
        """As the contract says."""
        await self._vmms.release(uid)

    async def _spawn(self, machine: Machine, launch: Launch, listeners: list[int]) -> Process:
        config, fds = self._config(machine, launch, listeners)
        config["fds"] = fds
        program = hollow_program.opened()
        try:
            return await spawn(
                [hollow_program.python(), "-I", "-S", "-", json.dumps(config)],
                sandbox=Sandbox(launch.uid, launch.gid, launch.groups, cgroup=launch.cgroup),
                pass_fds=tuple(fds),
                stdin=program,
                stdout=launch.vmm_log,
                stderr=launch.vmm_log,
                env=dict(launch.environment) or None,
            )
        finally:
            os.close(program)

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
            "image": str(machine.memory_image or EMPTY_IMAGE),
            "memory": machine.hardware.memory,
            "disks": json.dumps(disks),
            "devices": _devices(machine),
            "told": _told(machine),
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

    def _make_link(self, handle: Handle) -> Link:
        return Link(
            handle,
            lambda kind: self._tell(handle.uid, kind),
            lambda: self._lost(handle),
        )

    def _lost(self, handle: Handle) -> None:
        """A lost connection says nothing here: the process tells its death itself."""


def _devices(machine: Machine) -> str:
    seen = [machine.hardware.vcpus, machine.hardware.memory]
    disks = [(disk.serial, disk.read_only, disk.limited) for disk in machine.disks]
    return hashlib.sha256(json.dumps([seen, disks]).encode()).hexdigest()


def _told(machine: Machine) -> dict[str, str]:
    """Who the guest is, from the config disk as the real init reads it; {} without that disk."""
    path = next((disk.path for disk in machine.disks if disk.serial == "config"), None)
    if path is None:
        return {}
    data = path.read_bytes()
    end = _CONFIG_HEAD.size + _CONFIG_HEAD.unpack_from(data)[2]
    at = _CONFIG_HEAD.size
    found = {}
    while at + _FIELD.size <= end:
        key, size = _FIELD.unpack_from(data, at)
        at += _FIELD.size
        if key in _NAMES:
            found[_NAMES[key]] = data[at : at + size].decode()
        at += size
    return found
