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
    ENDING = "Ending"  # the same, but its namespace goes: the guest is stopped, nothing saved


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

    def over(self, below: "Workload | None") -> "Workload":
        """This one where it says something, else ``below``: what a fork has from its source."""
        if below is None:
            return self
        if self.command is not None:
            return Workload(self.command, self.args, _merged(below.env, self.env))
        args = below.args if self.args is None else self.args
        return Workload(below.command, args, _merged(below.env, self.env))


def _merged(
    below: tuple[tuple[str, str], ...], above: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    return tuple((dict(below) | dict(above)).items()) if above else below


@dataclass(frozen=True)
class Fork:
    """``spec.forkFrom`` of an Instance that was placed: whose life it is to go on with."""

    parent: str  # UID of the source
    root: str  # UID of the first of the family
    depth: int  # 1 for a fork of one that is none
    from_running: bool = False  # the source may be paused for it


@dataclass(frozen=True)
class Desired:
    """One Instance as its object asks for it, as far as this node is concerned."""

    uid: str
    namespace: str
    name: str
    generation: int
    mode: Mode
    epoch: int
    image: str  # the OCI reference as the user wrote it; "" for a fork
    hardware: Hardware | None  # from status.resources; None before the operator settled it
    workload: Workload = Workload()
    pinned: str | None = None  # image digest already in status
    stop_timeout: int = 5  # seconds
    restart: RestartPolicy = RestartPolicy.NEVER
    permit: Permit = Permit.WITHHELD
    reservation: str | None = None  # UID of the Pod that holds its memory
    id: str = ""  # status.id
    ran_before: bool = False  # status says it has run on this node: it has a disk to lose
    fork: Fork | None = None
    draining: bool = False  # the whole node goes down for now; what is asked for stays asked for
