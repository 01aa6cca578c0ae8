"""The contract of a driver: at most twelve methods, what each promises, what each may raise.

All methods take what identifies the VMM and hold no truth of their own: a restarted agent builds a
new driver and adopts. Each has a deadline; ``Timeout`` means the effect is unknown, so look
(``state``) before acting again. All are idempotent: pausing a paused guest succeeds. None of them
decides anything, and none touches the record, the API or an Instance's disks.

A driver is used by one event loop. Different VMMs may be driven at once; calls for one VMM come one
at a time (events excepted). A call that the VMM's present state does not allow raises NotAllowed
and changes nothing: the guest may have moved since the caller's look. ``capabilities``
is data, so callers never ask a driver for its name.
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


@dataclass(frozen=True)
class Capabilities:
    """What this kind of VMM can do, as data."""

    edges: frozenset[Edge]  # hops of the state graph it offers
    guest: bool  # False: VMMs without a guest (scale and fault tests only)
    snapshot: bool
    disk_bandwidth: bool
    max_volumes: int
    memory_overhead: int  # bytes beyond guest RAM, measured; part of the reservation


@dataclass(frozen=True)
class Version:
    """What a probe of the binary found."""

    version: str  # "10.0.2"
    machine_type: str  # newest versioned machine type, "pc-q35-10.0"


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


class Driver(Protocol):
    """One kind of VMM."""

    name: str
    capabilities: Capabilities

    async def probe(self) -> Version:
        """Check the binary. Raises Blocked (missing, too old) with the remedy."""
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
        """Paused: write the device state (no RAM) to ``fd``, opened write-only."""
        ...

    async def load(self, handle: Handle, fd: int) -> None:
        """A VMM started to receive: read the device state from ``fd``; ends Paused."""
        ...

    def subscribe(self, on_event: OnEvent) -> None:
        """Name the one listener for events of every VMM of this driver."""
        ...

    async def release(self, uid: str) -> None:
        """Drop our connection to the VMM of ``uid`` (not the VMM). No error when there is none."""
        ...
