"""The contract of a driver: at most twelve methods, what each promises, what each may raise.

All methods take what identifies the VMM and hold no truth of their own: a restarted agent builds a
new driver and adopts. Each has a deadline; ``Timeout`` means the effect is unknown, so look
(``state``) before acting again. All are idempotent: pausing a paused guest succeeds. None of them
decides anything, and none touches the record, the API or an Instance's disks.

A driver is used by one event loop. Different VMMs may be driven at once; calls for one VMM come one
at a time (events excepted). A call that the VMM's present state does not allow raises NotAllowed
and changes nothing: the guest may have moved since the caller's look. ``capabilities``
is data, so callers never ask a driver for its name.

Sleeping and waking: ``save`` writes the device state of a paused VMM, which holds nothing of its
RAM. A VMM that was started with ``Machine.incoming`` is Created until ``load`` has read such a
state, Paused after it. Between the two the caller puts the pages back that changed. ``load`` either
ends Paused, or changes nothing (NotAllowed), or ends the VMM, which has run nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from controller.core.observed import Ending
from controller.core.state import Edge, State
from controller.errors import Retry
from controller.host.process import Identity
from controller.vmm.machine import Launch, Machine

# Every driver offers these: a boot, a pause, an end. Shutdown -> Running is offered by none, since
# every boot is a new process.
BOOT_EDGES: frozenset[Edge] = frozenset(
    {
        (State.STOPPED, State.CREATED),
        (State.CREATED, State.RUNNING),
        (State.CREATED, State.SHUTDOWN),
        (State.RUNNING, State.PAUSED),
        (State.RUNNING, State.SHUTDOWN),
        (State.PAUSED, State.RUNNING),
        (State.PAUSED, State.SHUTDOWN),
        (State.SHUTDOWN, State.STOPPED),
    }
)

# To sleep, to wake, to give sleep up. Offered by every driver that has ``capabilities.snapshot``.
SNAPSHOT_EDGES: frozenset[Edge] = frozenset(
    {
        (State.PAUSED, State.STANDBY),
        (State.STANDBY, State.PAUSED),
        (State.STANDBY, State.STOPPED),
    }
)


@dataclass(frozen=True)
class Capabilities:
    """What this kind of VMM can do, as data."""

    edges: frozenset[Edge]  # hops of the state graph it offers
    guest: bool  # False: VMMs without a guest (scale and fault tests only)
    snapshot: bool  # device state can be saved and loaded
    disk_bandwidth: bool
    max_volumes: int
    memory_overhead: int  # bytes beyond guest RAM, measured; part of the reservation


@dataclass(frozen=True)
class Version:
    """What a probe of the binary found."""

    version: str  # "10.0.2"
    machine_type: str  # newest versioned machine type, "pc-q35-10.0"


@dataclass(frozen=True)
class DeviceModel:
    """What must be the same for device state to load and the guest to go on.

    Two Machines that differ in nothing but who they are (uid, name, paths, descriptors, whether
    they boot or receive) have equal ones.
    """

    version: str  # "10.0.2"
    build: str  # which binary of that version; another one is worth a word, no more
    machine_type: str  # versioned, never ""
    cpu_model: str
    cpu_features: tuple[str, ...]  # sorted; () where the VMM makes them up itself
    devices: str  # sha256, hex, of everything else: vCPUs, memory, devices, disks by serial


@dataclass(frozen=True)
class VmmState:
    """A VMM's answer. ``ending`` says why, in Shutdown."""

    state: State  # Created, Running, Paused or Shutdown
    ending: Ending | None = None
    storage_full: bool = False


@dataclass(frozen=True)
class Handle:
    """A VMM process we may drive: who it is and where it listens."""

    uid: str  # the Instance's
    identity: Identity
    run_dir: Path


class NotAllowed(Retry):
    """The VMM's present state does not allow the call, and nothing was done: look again."""

    default_reason = "NotAllowed"


class EventKind(Enum):
    """What a VMM may tell by itself. Each only says "look again"."""

    CHANGED = "Changed"  # stopped, resumed, shut down, reset, panicked
    STORAGE = "Storage"  # a write failed
    DIED = "Died"  # the process is gone
    SPOKE = "Spoke"  # the guest's channel opened or closed


OnEvent = Callable[[str, EventKind], None]
"""Called with the Instance's UID, in the event loop; must not block or raise."""


def unheard(_uid: str, _kind: EventKind) -> None:
    """The listener of a driver to which nobody listens yet."""


class Driver(Protocol):
    """One kind of VMM. ``on_event``: the one listener for events of all its VMMs; set it."""

    name: str
    capabilities: Capabilities
    on_event: OnEvent

    async def probe(self) -> Version:
        """Check the binary. Raises Blocked (missing, too old) with the remedy."""
        ...

    async def describe(self, machine: Machine) -> DeviceModel:
        """What a VMM of ``machine`` would be on this host now. Raises Blocked as ``probe``."""
        ...

    async def start(self, machine: Machine, launch: Launch) -> Handle:
        """Spawn a VMM, stopped before its first instruction (Created), and connect to it.

        The process is detached: own session, own uid, no capabilities, no_new_privs, seccomp. It
        inherits ``launch.run_lock``. On any failure the process is proven dead before this raises:
        Retry (resources), Blocked (the VMM refused its arguments; message has its last line).
        """
        ...

    async def adopt(self, handle: Handle) -> None:
        """Connect to a VMM that an earlier agent started; check that it is this Instance's.

        Raises Timeout when it does not answer (it may be well), Bug when it answers with another
        Instance's UID. Changes nothing in the VMM.
        """
        ...

    async def state(self, handle: Handle) -> VmmState:
        """Ask the VMM. Raises Timeout or Retry when it cannot be asked; never guesses."""
        ...

    async def resume(self, handle: Handle) -> None:
        """Created -> Running (boot), Paused -> Running."""
        ...

    async def pause(self, handle: Handle) -> None:
        """Running -> Paused. The guest's devices are drained when this returns."""
        ...

    async def power_down(self, handle: Handle) -> None:
        """Press the power button. Works on a paused guest, which sees it when it continues."""
        ...

    async def kill(self, handle: Handle) -> None:
        """End the process through its pidfd; return when it is dead. Never raises for a dead one.

        Raises Retry when the process cannot be killed now (it is in the kernel, on a dead disk).
        """
        ...

    async def save(self, handle: Handle, fd: int) -> None:
        """Paused: write the device state (no RAM) to ``fd``, opened write-only; stays Paused.

        Raises Blocked (UnknownMemory) when the VMM has memory besides guest RAM that nobody would
        save; Retry when it could not write.
        """
        ...

    async def load(self, handle: Handle, fd: int) -> None:
        """A VMM started to receive: read the device state from ``fd``; ends Paused.

        Raises NotAllowed, nothing done, unless it is Created and waits for a state, and as
        ``state`` when it cannot be asked; else Blocked (DeviceStateRefused) or Retry
        (DeviceStateUnloaded), and the VMM is proven dead.
        """
        ...

    async def release(self, uid: str) -> None:
        """Drop our connection to the VMM of ``uid`` (not the VMM). No error when there is none."""
        ...
