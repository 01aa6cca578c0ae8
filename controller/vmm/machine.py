"""What one VMM process is made of: frozen values from which a driver makes its arguments.

Everything comes from the record and the store, nothing from spec. Paths are made of UIDs and
digests, never of a user's text.
"""

from dataclasses import dataclass, field
from pathlib import Path

from controller.core.desired import Hardware
from controller.errors import Blocked

# What RAM is mapped from where there is no image: holes that no page cache keeps a second time.
EMPTY_IMAGE = Path("/dev/zero")
CHANNEL_SOCKET = "agent.sock"  # in run_dir: where the guest's channel is reached from the host
_SUN_PATH = 107  # bytes of a unix socket's path, without its closing zero


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
    machine_type: str  # versioned; "" = the newest, as ``probe`` says
    accelerator: str  # "kvm" or "tcg"
    kernel: Path
    initrd: Path
    command_line: str
    memory_image: Path | None  # None = start empty (an image of holes)
    disks: tuple[Disk, ...]
    run_dir: Path  # of this (epoch, run): sockets; owned by the VMM's uid, on a tmpfs
    incoming: bool = False  # started to receive device state (``load``), not to boot


@dataclass(frozen=True)
class Launch:
    """What the spawned process inherits, and under which identity it runs."""

    uid: int
    gid: int
    run_lock: int  # a locked descriptor; the driver passes it on and never closes the caller's
    workload_log: int  # write ends of pipes, drained by the log keeper
    console_log: int
    vmm_log: int  # stdout and stderr of the VMM; made non-blocking by the driver
    report: int  # the guest's lifecycle reports
    keep_open: tuple[int, ...] = ()  # the pipes' read ends, so that a dead keeper breaks nothing
    groups: tuple[int, ...] = ()  # those that may read what its disks and image are made of
    # where what arrives on vmm_log is kept: read when a start fails, for the last line
    vmm_log_file: Path | None = None
    cgroup: Path | None = None
    environment: tuple[tuple[str, str], ...] = field(default=())


def socket_path(run_dir: Path, name: str) -> Path:
    """The path of a unix socket in ``run_dir``. Raises Blocked when the kernel cannot take it."""
    path = run_dir / name
    length = len(bytes(path))
    if length > _SUN_PATH:
        raise Blocked(
            f"socket path {path} has {length} bytes, unix sockets take {_SUN_PATH}:"
            " choose a shorter run_dir",
            reason="RunDirTooLong",
        )
    return path
