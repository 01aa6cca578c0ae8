"""What should be, settled: one frozen value made from an Instance object.

Deletion is a mode here (``GONE``), not a separate path. Eviction and the operator's reservation are
part of the wish too: they say what this node may do, now. What does not live here: what is
(``observed``), and any decision what to do about it (``plan``).
"""

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """``spec.operatingMode``, and GONE for an object that is being deleted."""

    RUNNING = "Running"
    PAUSED = "Paused"
    STANDBY = "Standby"
    STOPPED = "Stopped"
    GONE = "Gone"


class RestartPolicy(Enum):
    """``spec.restartPolicy``: what follows when a workload or its VMM ended by itself."""

    NEVER = "Never"
    ON_FAILURE = "OnFailure"
    ALWAYS = "Always"


class Permit(Enum):
    """What the operator's Scheduled condition lets this node do."""

    GRANTED = "Granted"  # Scheduled=True with a reservation: may start a VMM
    WITHHELD = "Withheld"  # anything else: a living guest is left alone, none is started
    EVICTING = "Evicting"  # bring the guest down gracefully, then report Released


@dataclass(frozen=True)
class Hardware:
    """What a guest is born with; argv is made of this and nothing else. Sizes in bytes."""

    hypervisor: str
    vcpus: int
    memory: int
    overlay: int
    disk_bandwidth: int = 0  # bytes/s, 0 = no limit (auto is settled by the operator)


@dataclass(frozen=True)
class Workload:
    """What the user says about the program; acts at the next boot. None = what the image says."""

    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Desired:
    """One Instance as its object asks for it, as far as this node is concerned."""

    uid: str
    namespace: str
    name: str
    generation: int
    mode: Mode
    epoch: int
    image: str  # the OCI reference as the user wrote it
    hardware: Hardware | None  # from status.resources; None before the operator settled it
    workload: Workload = Workload()
    pinned: str | None = None  # image digest already in status
    stop_timeout: int = 5  # seconds
    restart: RestartPolicy = RestartPolicy.NEVER
    permit: Permit = Permit.WITHHELD
    reservation: str | None = None  # UID of the Pod that holds its memory
    id: str = ""  # status.id
    ran_before: bool = False  # status says it has run on this node: it has a disk to lose
    draining: bool = False  # the whole node goes down for now; what is asked for stays asked for
