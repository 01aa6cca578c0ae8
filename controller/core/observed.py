"""What is, as one look found it: frozen values, each fact present, absent or unknown.

A fact is its value, ``ABSENT`` (looked, not there) or ``Unknown`` (could not look; says why).
Failure to look is never read as absence. What does not live here: how the looking is done
(``node.observe``) and what follows from it (``plan``).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from controller.core.desired import Hardware, Mode, Workload
from controller.core.state import State


@dataclass(frozen=True)
class Absent:
    """Looked, and it is not there."""


@dataclass(frozen=True)
class Unknown:
    """Could not look. ``why`` is one line for a person; ``stalled``: looking again cannot help."""

    why: str
    reason: str = "Unknown"
    stalled: bool = False


ABSENT: Final = Absent()


class Lock(Enum):
    """The run lock: held = a VMM of this Instance lives."""

    FREE = "Free"
    HELD = "Held"
    UNKNOWN = "Unknown"


class Ending(Enum):
    """Why a VMM came to its end, as it or the kernel said."""

    POWERED_OFF = "PoweredOff"  # the guest powered off
    RESET = "Reset"  # the guest rebooted: boot again, no exit
    PANICKED = "Panicked"  # the guest's kernel panicked
    HOST = "Host"  # we, or somebody on the host, told the VMM to quit
    DIED = "Died"  # the process is gone without a word


@dataclass(frozen=True)
class Exit:
    """How a run ended by itself. ``code`` None = no code is known (VMM died, kernel panic)."""

    code: int | None
    message: str
    reboot: bool = False  # a reboot of guest or host is no exit: boot again
    reason: str = ""  # where Completed and Failed do not say it: MemoryConsumed

    @property
    def failed(self) -> bool:
        """Everything but an exit code of 0, as restartPolicy counts it."""
        return self.code != 0 and not self.reboot


@dataclass(frozen=True)
class Vmm:
    """A living VMM and what it answered. ``state``: Created, Running, Paused or Shutdown."""

    state: State
    pid: int
    version: str
    accelerator: str
    ending: Ending | None = None  # set in Shutdown
    storage_full: bool = False  # paused itself on a write error, continues when space is there


@dataclass(frozen=True)
class Guest:
    """What the guest itself told of the current run."""

    started: bool = False  # its workload runs
    exit: Exit | None = None  # its workload has ended (the VMM may live a moment longer)
    panic: str | None = None  # the kernel's last words, found on the console
    unheard: bool = False  # it ended a moment ago; its last words may still be on their way


@dataclass(frozen=True)
class ImageReady:
    """The image's rootfs is in the store."""

    digest: str


@dataclass(frozen=True)
class ImagePulling:
    """On its way; ``progress`` is for people ("40 % of 12 MiB")."""

    progress: str


@dataclass(frozen=True)
class ImageFailed:
    """The last pull failed. ``stalled``: no retry helps. ``retry_at``: boot time, seconds."""

    reason: str
    message: str
    stalled: bool
    retry_at: float


ImageFact = ImageReady | ImagePulling | ImageFailed | Absent


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot of the current disk generation. Sizes in bytes, as they lie on disk."""

    taken_at: str  # RFC 3339
    base_bytes: int
    delta_bytes: int
    state_bytes: int
    hypervisor: str  # word and version
    reason: str = ""  # why it cannot be used, SnapshotCorrupt or SnapshotIncompatible; "": nothing
    problem: str = ""  # the same for people, with the remedy


@dataclass(frozen=True)
class Source:
    """The Instance that a fork is to be made from, on this node, as it is now."""

    name: str
    state: State
    started: bool  # its workload runs, or ran when it was put to sleep
    ending: bool = False  # it was told to stop, has ended, or is being deleted
    memory: bool = False  # it has a committed snapshot
    asked: Mode | None = None  # what its object asks for; None: not known here
    exited: bool = False  # it ended, and policy leaves it so


@dataclass(frozen=True)
class Recorded:
    """What the record says, with times turned into this boot's clock (None = another boot)."""

    epoch: int
    run: int
    provisioned: bool  # disk and image were there once: no provision step is left
    hardware: Hardware
    image_digest: str | None
    kernel_version: str | None
    kernel_digest: str | None
    workload: Workload | None  # what the current or last run was booted with
    run_open: bool  # a run was begun and is not yet closed
    run_prepared: bool  # all is made for it, and no VMM was started yet
    boot_ordered: bool  # in the open run the virtual CPUs were let go
    run_began_at: float | None  # boot time when they were; None: not, or before a host reboot
    rebooted: bool  # the open run is of an earlier boot of the host: its VMM is gone for sure
    released: str | None  # UID of the last reservation given back
    exit: Exit | None  # how the last run ended by itself, None after an ordered stop
    exit_noted: bool  # the end of the open run is already in ``exit``
    exited: bool  # policy will not restart it until Stopped was observed
    restarts: int  # runs in a row that ended by themselves
    retry_at: float | None  # boot time before which no restart is made
    stop_ordered: bool  # the end of the open run is our order
    stop_ordered_at: float | None  # boot time of that order; None: none, or another boot
    started_at: str | None  # RFC 3339
    stopped_at: str | None
    tombstone: bool
    vmm_noted: bool = True  # False: a VMM of the open run lives whose start was cut off
    waking: bool = False  # the open run is made from the snapshot, and has not run yet
    woken: bool = False  # the open run was made from a snapshot, which is consumed since
    repaired: bool = False  # the woken guest has acknowledged time, entropy and identity
    saving: bool = False  # a save was begun in the open run
    forked_at: str | None = None  # RFC 3339; None: it is no fork, or not made yet
    inherited: Workload | None = None  # what a fork has from its source where its spec is silent

    @property
    def owes_exit(self) -> bool:
        """The open run was let go, and its end, if it comes, is neither our order nor noted yet."""
        return self.boot_ordered and not self.exit_noted and not self.stop_ordered


@dataclass(frozen=True)
class Observed:
    """Everything one look found about one Instance on this host."""

    record: Recorded | Absent | Unknown
    lock: Lock
    vmm: Vmm | Absent | Unknown
    guest: Guest | Absent | Unknown
    image: ImageFact | Unknown
    kernel: str | Absent | Unknown  # version of the guest kernel a boot would take now
    overlay: bool | Unknown  # the writable disk exists and belongs to its VMM's uid
    snapshot: Snapshot | Absent | Unknown = ABSENT
    source: Source | Absent | Unknown = ABSENT  # looked for while a fork is not made yet
    stopping: bool = False  # this agent has told the guest of the open run to shut down

    @property
    def state(self) -> State:
        """The state that the facts amount to. Never stored, never guessed."""
        if self.lock is Lock.HELD:
            return self._of_vmm()
        if self.lock is Lock.UNKNOWN or isinstance(self.record, Unknown):
            return State.UNKNOWN
        if isinstance(self.record, Absent) or not self.record.provisioned:
            return State.ABSENT
        if isinstance(self.snapshot, Unknown):
            return State.UNKNOWN
        return State.STANDBY if isinstance(self.snapshot, Snapshot) else State.STOPPED

    def _of_vmm(self) -> State:
        if not isinstance(self.vmm, Vmm):
            return State.UNKNOWN
        waking = isinstance(self.record, Recorded) and self.record.waking
        if waking and self.vmm.state is State.CREATED:
            return State.STANDBY  # it waits for the memory that still lies on disk
        return self.vmm.state
