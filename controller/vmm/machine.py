"""What one VMM process is made of: frozen values from which a driver makes its arguments.

Everything comes from the record and the store, nothing from spec. Paths are made of UIDs and
digests, never of a user's text.
"""

from dataclasses import dataclass, field
from pathlib import Path

from controller.core.desired import Hardware


@dataclass(frozen=True)
class Disk:
    """A raw disk. ``serial`` is how the guest finds it (at most 20 bytes)."""

    serial: str
    path: Path
    read_only: bool
    limited: bool = False  # counts against the Instance's disk bandwidth


@dataclass(frozen=True)
class Machine:
    """One run of one Instance, complete: the same value gives the same argv."""

    uid: str  # the Instance's UID, a UUID
    name: str  # for people, in the process list: namespace/name, cut
    hardware: Hardware
    threads_per_core: int  # of the host; mirrored when vcpus > 2 and divisible
    machine_type: str  # versioned; "" = the driver's newest (then read it from StartedVmm)
    accelerator: str  # "kvm" or "tcg"
    kernel: Path
    initrd: Path
    command_line: str
    memory_image: Path | None  # None = start empty: the driver makes an all-holes file in run_dir
    disks: tuple[Disk, ...]
    run_dir: Path  # of this (epoch, run): sockets; owned by the VMM's uid, on a tmpfs


@dataclass(frozen=True)
class Launch:
    """What the spawned process inherits, and under which identity it runs."""

    uid: int
    gid: int
    run_lock: int  # a locked descriptor; the driver passes it on and never closes the caller's
    workload_log: int  # write ends of pipes, drained by the log keeper
    console_log: int
    vmm_log: int  # stdout and stderr of the VMM
    report: int  # the guest's lifecycle reports
    keep_open: tuple[int, ...] = ()  # the pipes' read ends, so that a dead keeper breaks nothing
    cgroup: Path | None = None
    environment: tuple[tuple[str, str], ...] = field(default=())
