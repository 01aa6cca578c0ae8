"""The driver for QEMU: the contract of ``vmm.driver``, by QMP and a pidfd for each VMM.

Per VMM it holds a monitor, a process and the reason of the last SHUTDOWN event; all of it can be
lost and found again (``adopt``, or the first call with its handle). The identity of who answers is
checked on each new connection. What does not live here: arguments (``argv``), the meaning of run
states (``state``), what the binary can do (``binary``), how a start is watched (``birth``).
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controller.core.capacity import VMM_OVERHEAD
from controller.core.state import State
from controller.errors import Blocked, Bug, Retry
from controller.vmm.birth import GREETING_SECONDS, greeted
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
from controller.vmm.machine import Launch, Machine, socket_path
from controller.vmm.qemu import birth, ramblocks
from controller.vmm.qemu.argv import MAX_VOLUMES, ending_file
from controller.vmm.qemu.binary import Binary
from controller.vmm.qemu.loading import Loading
from controller.vmm.qemu.model import cpu_of, device_model
from controller.vmm.qemu.monitor import CONNECT_SECONDS, Monitor
from controller.vmm.qemu.state import vmm_state

STATE_SECONDS = 60.0  # saving and loading device state: milliseconds, unless the disk is slow

_CHANGES = frozenset({"SHUTDOWN", "RESET", "STOP", "RESUME", "GUEST_PANICKED"})
_CHANNEL_PORT_ID = "port1"


class _Link(Monitor):
    """A monitor, and what its events told that a command cannot ask."""

    def __init__(self, handle: Handle, tell: Callable[[EventKind], None]) -> None:
        super().__init__(socket_path(handle.run_dir, birth.MONITOR_SOCKET), self._heard)
        self._tell = tell
        self.reason: str | None = None  # of the last SHUTDOWN event
        self.loaded: asyncio.Future[str] | None = None  # how loading ended, while it goes on

    def _heard(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "SHUTDOWN":
            self.reason = str(data.get("reason"))
        if name in _CHANGES:
            self._tell(EventKind.CHANGED)
        elif name == "BLOCK_IO_ERROR":
            self._tell(EventKind.STORAGE)
        elif name == "VSERPORT_CHANGE" and data.get("id") == _CHANNEL_PORT_ID:
            self._tell(EventKind.SPOKE)
        elif name == "MIGRATION" and self.loaded is not None:
            status = str(data.get("status"))
            if status in ("completed", "failed") and not self.loaded.done():
                self.loaded.set_result(status)


_Vmm = Held[_Link]


class QemuDriver:
    """QEMU as a driver. ``binary`` is a path or a name on PATH, ``tb_size`` MiB (TCG only)."""

    name = "qemu"
    capabilities = Capabilities(
        edges=BOOT_EDGES | SNAPSHOT_EDGES,
        guest=True,
        snapshot=True,
        disk_bandwidth=True,
        max_volumes=MAX_VOLUMES,
        memory_overhead=VMM_OVERHEAD["qemu"],
    )

    def __init__(self, binary: str = "qemu-system-x86_64", *, tb_size: int = 32) -> None:
        self._binary = Binary(binary)
        self._tb_size = tb_size
        self._vmms: HeldVmms[_Link] = HeldVmms(self._make_link, self._tell)
        self.on_event: OnEvent = unheard

    async def probe(self) -> Version:
        """As the contract says."""
        return await self._binary.version()

    async def describe(self, machine: Machine) -> DeviceModel:
        """As the contract says."""
        version, build = await self._binary.version(), await self._binary.build()
        cpu = await asyncio.to_thread(cpu_of, machine.accelerator)
        return device_model(machine, version, build, cpu)

    async def start(self, machine: Machine, launch: Launch) -> Handle:
        """As the contract says."""
        version = await self.probe()
        held = self._vmms.get(machine.uid)
        if held is not None and not held.process.dead:
            pid = held.handle.identity.pid
            raise Bug(f"VMM of {machine.uid} is asked to start, but process {pid} lives")
        await self.release(machine.uid)
        path, size = self._binary.path(), self._tb_size
        process = await birth.spawn_vmm(path, machine, launch, version.machine_type, size)
        handle = Handle(machine.uid, process.identity, machine.run_dir)
        vmm = self._vmms.hold(handle, process)
        try:
            await greeted(process, self._connect(vmm, GREETING_SECONDS), launch)
        except BaseException:
            await asyncio.shield(self._abandon(handle))
            raise
        self._vmms.watch(vmm)
        return handle

    async def adopt(self, handle: Handle) -> None:
        """As the contract says. The death of a VMM that does not answer is told all the same."""
        await self._ready(handle)

    async def state(self, handle: Handle) -> VmmState:
        """As the contract says."""
        return await self._state(await self._ready(handle))

    async def resume(self, handle: Handle) -> None:
        """As the contract says."""
        await self._command(handle, "cont", {State.CREATED, State.PAUSED}, State.RUNNING)

    async def pause(self, handle: Handle) -> None:
        """As the contract says."""
        await self._command(handle, "stop", {State.RUNNING}, State.PAUSED)

    async def power_down(self, handle: Handle) -> None:
        """As the contract says."""
        vmm = await self._ready(handle)
        await vmm.link.execute("system_powerdown")

    async def kill(self, handle: Handle) -> None:
        """As the contract says."""
        await kill(handle)
        await self._vmms.bury(handle.uid)

    async def save(self, handle: Handle, fd: int) -> None:
        """As the contract says. Takes milliseconds; the guest stays paused whatever happens."""
        vmm = await self._require(handle, {State.PAUSED}, "save")
        # Asked anew each time (half a millisecond): people with a monitor can add memory.
        answer = await vmm.link.execute("x-query-ramblock")
        ramblocks.check(str(answer["human-readable-text"]))
        added = await vmm.link.execute_with_fd("add-fd", {}, fd)
        fdset = added["fdset-id"]
        try:
            # Nothing of Xen in it: the state of all devices, without RAM. live=true would take the
            # disks away from a guest that may go on.
            await vmm.link.execute(
                "xen-save-devices-state",
                {"filename": f"/dev/fdset/{fdset}", "live": False},
                STATE_SECONDS,
            )
        except NotAllowed as error:
            raise Retry(str(error), reason="DeviceStateUnsaved") from error
        finally:
            with contextlib.suppress(Retry):
                await vmm.link.execute("remove-fd", {"fdset-id": fdset})

    async def load(self, handle: Handle, fd: int) -> None:
        """As the contract says."""
        vmm = await self._require(handle, {State.CREATED}, "load")
        loading = Loading(vmm.process)
        vmm.link.loaded = loading.told
        try:
            await self._begin_load(vmm, fd, loading)
            await loading.completed(STATE_SECONDS)
            await self._check_paused(vmm)
        except NotAllowed:
            raise
        except BaseException as error:
            # It has run nothing, and nobody knows what it may still do.
            await asyncio.shield(self.kill(handle))
            if isinstance(error, Retry):
                text = f"the VMM of {handle.uid} loaded no device state and was ended: {error}"
                raise Retry(text, reason="DeviceStateUnloaded") from error
            raise
        finally:
            vmm.link.loaded = None
            loading.forget()

    async def _begin_load(self, vmm: _Vmm, fd: int, loading: Loading) -> None:
        """Send the command. Raises NotAllowed, nothing done, and Retry where it cannot be sent."""
        events = [{"capability": "events", "state": True}]
        await vmm.link.execute("migrate-set-capabilities", {"capabilities": events})
        await vmm.link.execute_with_fd("getfd", {"fdname": "state"}, fd)
        try:
            await vmm.link.execute("migrate-incoming", {"uri": "fd:state"})
        except NotAllowed:  # it was started to boot
            await vmm.link.execute("closefd", {"fdname": "state"})
            raise
        except Retry:
            await loading.dies()  # of what it read: how it died will tell

    async def _check_paused(self, vmm: _Vmm) -> None:
        """Whatever a state says, nothing runs yet."""
        now = (await self._state(vmm)).state
        if now is not State.PAUSED:
            raise Blocked(
                f"the VMM of {vmm.handle.uid} is {now.value} after loading its device state",
                reason="DeviceStateRefused",
            )

    async def release(self, uid: str) -> None:
        """As the contract says."""
        await self._vmms.release(uid)

    async def _state(self, vmm: _Vmm) -> VmmState:
        answer = await vmm.link.execute("query-status")
        noted = _has_content(ending_file(vmm.handle.run_dir))
        return vmm_state(str(answer["status"]), reason=vmm.link.reason, noted=noted)

    async def _require(self, handle: Handle, origin: set[State], what: str) -> _Vmm:
        vmm = await self._ready(handle)
        now = (await self._state(vmm)).state
        if now not in origin:
            allowed = " or ".join(sorted(state.value for state in origin))
            raise NotAllowed(
                f"{what}: the VMM of {handle.uid} is {now.value}, not {allowed}: look again"
            )
        return vmm

    async def _command(self, handle: Handle, command: str, origin: set[State], done: State) -> None:
        vmm = await self._require(handle, {*origin, done}, command)
        await vmm.link.execute(command)

    async def _ready(self, handle: Handle) -> _Vmm:
        """The VMM of ``handle``: found again if need be, connected, known to be the right one."""
        vmm = await self._vmms.find(handle)
        if not vmm.link.connected:
            await self._connect(vmm, CONNECT_SECONDS)
        return vmm

    async def _connect(self, vmm: _Vmm, seconds: float) -> None:
        await vmm.link.connect(seconds)
        uuid = str((await vmm.link.execute("query-uuid"))["UUID"])
        if uuid.lower() != vmm.handle.uid.lower():
            await self.release(vmm.handle.uid)
            raise Bug(f"{vmm.link.path} is the VMM of {uuid}, not of {vmm.handle.uid}: left alone")

    def _make_link(self, handle: Handle) -> _Link:
        return _Link(handle, lambda kind: self._tell(handle.uid, kind))

    def _tell(self, uid: str, kind: EventKind) -> None:
        self.on_event(uid, kind)

    async def _abandon(self, handle: Handle) -> None:
        """End what did not come up: on return the process is proven dead."""
        await kill(handle)
        await self.release(handle.uid)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
