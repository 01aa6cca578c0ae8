"""The driver for QEMU: the contract of ``vmm.driver``, by QMP and a pidfd for each VMM.

Per VMM it holds a monitor, a process and the reason of the last SHUTDOWN event; all of it can be
lost and found again (``adopt``, or the first call with its handle). The identity of who answers is
checked on each new connection. What does not live here: arguments (``argv``), the meaning of run
states (``state``), what the binary can do (``binary``), how a start is watched (``birth``).
"""

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.core.state import State
from controller.errors import Blocked, Bug, Retry, Timeout
from controller.host.process import Gone, Process, wait_dead
from controller.vmm.driver import (
    BOOT_EDGES,
    Capabilities,
    EventKind,
    Handle,
    OnEvent,
    Version,
    VmmState,
)
from controller.vmm.machine import Launch, Machine, socket_path
from controller.vmm.qemu import birth
from controller.vmm.qemu.argv import MAX_VOLUMES, ending_file
from controller.vmm.qemu.binary import Binary
from controller.vmm.qemu.monitor import Monitor, Refused
from controller.vmm.qemu.state import vmm_state

MIB = 1024 * 1024
KILL_SECONDS = 10.0
STATE_SECONDS = 60.0  # saving and loading device state: milliseconds, unless the disk is slow

# Measured as tests/node/test_qemu_memory.py does it; see there.
MEMORY_OVERHEAD = 110 * MIB

_CHANGES = frozenset({"SHUTDOWN", "RESET", "STOP", "RESUME", "GUEST_PANICKED"})
_CHANNEL_PORT_ID = "port1"


class _Vmm:
    """What we hold of one VMM."""

    def __init__(self, handle: Handle, process: Process, monitor: Monitor) -> None:
        self.handle = handle
        self.process = process
        self.monitor = monitor
        self.reason: str | None = None  # of the last SHUTDOWN event
        self.loaded: asyncio.Future[str] | None = None  # a migration status, while loading
        self.watch: asyncio.Task[None] | None = None


class QemuDriver:
    """QEMU as a driver. ``binary`` is a path or a name on PATH, ``tb_size`` MiB (TCG only)."""

    name = "qemu"
    capabilities = Capabilities(
        edges=BOOT_EDGES,
        guest=True,
        snapshot=False,
        disk_bandwidth=True,
        max_volumes=MAX_VOLUMES,
        memory_overhead=MEMORY_OVERHEAD,
    )

    def __init__(self, binary: str = "qemu-system-x86_64", *, tb_size: int = 32) -> None:
        self._binary = Binary(binary)
        self._tb_size = tb_size
        self._vmms: dict[str, _Vmm] = {}
        self._on_event: OnEvent = lambda _uid, _kind: None

    def subscribe(self, on_event: OnEvent) -> None:
        """As the contract says."""
        self._on_event = on_event

    async def probe(self) -> Version:
        """As the contract says."""
        return await self._binary.version()

    async def start(self, machine: Machine, launch: Launch) -> Handle:
        """As the contract says."""
        version = await self.probe()
        held = self._vmms.get(machine.uid)
        if held is not None and not held.process.dead:
            raise Bug(f"VMM of {machine.uid} is asked to start, but process"
                      f" {held.handle.identity.pid} lives")  # fmt: skip
        await self.release(machine.uid)
        process = await birth.spawn_vmm(
            self._binary.path(), machine, launch, version.machine_type, self._tb_size
        )
        vmm = self._hold(Handle(machine.uid, process.identity, machine.run_dir), process)
        try:
            await birth.greeted(process, self._connect(vmm, birth.GREETING_SECONDS), launch)
        except BaseException:
            await asyncio.shield(self._abandon(vmm))
            raise
        self._watch(vmm)
        return vmm.handle

    async def adopt(self, handle: Handle) -> None:
        """As the contract says. The death of a VMM that does not answer is told all the same."""
        await self._ready(handle)

    async def state(self, handle: Handle) -> VmmState:
        """As the contract says."""
        vmm = await self._ready(handle)
        return await self._state(vmm)

    async def resume(self, handle: Handle) -> None:
        """As the contract says."""
        await self._command(handle, "cont", {State.CREATED, State.PAUSED}, done=State.RUNNING)

    async def pause(self, handle: Handle) -> None:
        """As the contract says."""
        await self._command(handle, "stop", {State.RUNNING}, done=State.PAUSED)

    async def power_down(self, handle: Handle) -> None:
        """As the contract says."""
        vmm = await self._ready(handle)
        await vmm.monitor.execute("system_powerdown")

    async def kill(self, handle: Handle) -> None:
        """As the contract says."""
        try:
            process = Process.adopt(handle.identity)
        except Gone:
            return
        try:
            with contextlib.suppress(Gone):
                process.signal(signal.SIGKILL)
            await asyncio.wait_for(process.wait(), KILL_SECONDS)
        except TimeoutError:
            raise Retry(
                f"process {handle.identity.pid} did not die within {KILL_SECONDS:g} s of SIGKILL:"
                " it waits in the kernel, probably for a disk",
                reason="VmmUnkillable",
            ) from None
        finally:
            process.close()

    async def save(self, handle: Handle, fd: int) -> None:
        """As the contract says. Takes milliseconds; the guest stays paused whatever happens."""
        vmm = await self._require(handle, {State.PAUSED}, "save")
        added = await vmm.monitor.execute_with_fd("add-fd", {}, fd)
        fdset = added["fdset-id"]
        try:
            # Nothing of Xen in it: the state of all devices, without RAM. live=true would take the
            # disks away from a guest that may go on.
            await vmm.monitor.execute(
                "xen-save-devices-state",
                {"filename": f"/dev/fdset/{fdset}", "live": False},
                STATE_SECONDS,
            )
        finally:
            with contextlib.suppress(Retry):
                await vmm.monitor.execute("remove-fd", {"fdset-id": fdset})

    async def load(self, handle: Handle, fd: int) -> None:
        """As the contract says. Raises Blocked when the VMM refused the state; then it is dead."""
        vmm = await self._require(handle, {State.CREATED}, "load")
        vmm.loaded = asyncio.get_running_loop().create_future()
        try:
            events = [{"capability": "events", "state": True}]
            await vmm.monitor.execute("migrate-set-capabilities", {"capabilities": events})
            await vmm.monitor.execute_with_fd("getfd", {"fdname": "state"}, fd)
            await vmm.monitor.execute("migrate-incoming", {"uri": "fd:state"})
            await self._loaded(vmm, vmm.loaded)
        finally:
            vmm.loaded = None

    async def release(self, uid: str) -> None:
        """As the contract says."""
        vmm = self._vmms.pop(uid, None)
        if vmm is None:
            return
        if vmm.watch is not None:
            vmm.watch.cancel()
        await vmm.monitor.close()
        vmm.process.close()

    async def _state(self, vmm: _Vmm) -> VmmState:
        answer = await vmm.monitor.execute("query-status")
        noted = _has_content(ending_file(vmm.handle.run_dir))
        return vmm_state(str(answer["status"]), reason=vmm.reason, noted=noted)

    async def _require(self, handle: Handle, origin: set[State], what: str) -> _Vmm:
        vmm = await self._ready(handle)
        now = (await self._state(vmm)).state
        if now not in origin:
            allowed = " or ".join(sorted(state.value for state in origin))
            raise Refused(f"{what} needs a VMM that is {allowed}, that of {handle.uid} is"
                          f" {now.value}: look again")  # fmt: skip
        return vmm

    async def _command(self, handle: Handle, command: str, origin: set[State], done: State) -> None:
        vmm = await self._require(handle, {*origin, done}, command)
        await vmm.monitor.execute(command)

    async def _loaded(self, vmm: _Vmm, status: asyncio.Future[str]) -> None:
        death = asyncio.ensure_future(wait_dead(vmm.process.pidfd))
        either: set[asyncio.Future[Any]] = {status, death}
        try:
            await asyncio.wait(either, timeout=STATE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if status.done() and status.result() == "completed":
                return
            if status.done() or death.done():
                raise Blocked(
                    f"the VMM of {vmm.handle.uid} refused the device state; its log says why",
                    reason="DeviceStateRefused",
                )
            raise Timeout(f"the VMM of {vmm.handle.uid} did not load its device state in time")
        finally:
            death.cancel()

    async def _ready(self, handle: Handle) -> _Vmm:
        """The VMM of ``handle``: found again if need be, connected, known to be the right one."""
        vmm = self._vmms.get(handle.uid)
        if vmm is not None and vmm.handle != handle:
            await self.release(handle.uid)
            vmm = None
        if vmm is None:
            vmm = self._hold(handle, Process.adopt(handle.identity))
            self._watch(vmm)
        elif vmm.process.dead:
            raise Gone(f"the VMM of {handle.uid}, process {handle.identity.pid}, is dead")
        if not vmm.monitor.connected:
            await self._connect(vmm)
        return vmm

    async def _connect(self, vmm: _Vmm, seconds: float | None = None) -> None:
        await (vmm.monitor.connect() if seconds is None else vmm.monitor.connect(seconds))
        uuid = str((await vmm.monitor.execute("query-uuid"))["UUID"])
        if uuid.lower() != vmm.handle.uid.lower():
            await self.release(vmm.handle.uid)
            raise Bug(f"{vmm.monitor.path} is the VMM of {uuid}, not of {vmm.handle.uid}: it is"
                      " left alone")  # fmt: skip

    def _hold(self, handle: Handle, process: Process) -> _Vmm:
        path = socket_path(handle.run_dir, birth.MONITOR_SOCKET)
        monitor = Monitor(path, lambda name, data: self._heard(handle.uid, name, data))
        vmm = self._vmms[handle.uid] = _Vmm(handle, process, monitor)
        return vmm

    def _watch(self, vmm: _Vmm) -> None:
        vmm.watch = asyncio.create_task(self._tell_death(vmm))

    async def _tell_death(self, vmm: _Vmm) -> None:
        await vmm.process.wait()
        if self._vmms.get(vmm.handle.uid) is vmm:
            del self._vmms[vmm.handle.uid]
        self._on_event(vmm.handle.uid, EventKind.DIED)
        await vmm.monitor.close()
        vmm.process.close()

    async def _abandon(self, vmm: _Vmm) -> None:
        """End what did not come up: on return the process is proven dead."""
        await self.kill(vmm.handle)
        await self.release(vmm.handle.uid)

    def _heard(self, uid: str, name: str, data: Mapping[str, Any]) -> None:
        vmm = self._vmms.get(uid)
        if vmm is None:
            return
        if name == "SHUTDOWN":
            vmm.reason = str(data.get("reason"))
        if name in _CHANGES:
            self._on_event(uid, EventKind.CHANGED)
        elif name == "BLOCK_IO_ERROR":
            self._on_event(uid, EventKind.STORAGE)
        elif name == "VSERPORT_CHANGE" and data.get("id") == _CHANNEL_PORT_ID:
            self._on_event(uid, EventKind.SPOKE)
        elif name == "MIGRATION" and vmm.loaded is not None:
            status = str(data.get("status"))
            if status in ("completed", "failed") and not vmm.loaded.done():
                vmm.loaded.set_result(status)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
