"""What the kernel and the disk of this host offer: looks, each with its places as parameters.

What does not live here: programs and built parts (``part_checks``).
"""

import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

from controller.local.setup.findings import Check, Finding, error, ok, warning
from controller.settings import GIB

OLDEST_PYTHON = (3, 11)
FICLONE = 0x40049409  # linux/fs.h: share the extents of another file
WANTED_CONTROLLERS = ("cpu", "memory", "pids")
LITTLE_DISK = 10 * GIB
LEAST_DISK = 2 * GIB
LITTLE_MEMORY = 2 * GIB


def checks(state_dir: Path) -> list[Check]:
    """The looks at a host whose Instances would live below ``state_dir``."""
    return [
        Check("python", python),
        Check("kernel", kernel),
        Check("privileges", privileges),
        Check("memory", memory),
        Check("seccomp", seccomp),
        Check("cgroup", cgroup),
        Check("tun", tun),
        Check("disk", lambda: disk(state_dir)),
        Check("reflink", lambda: reflink(state_dir)),
    ]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    text = ".".join(map(str, version))
    if version >= OLDEST_PYTHON:
        return ok(text)
    return error(text, "install Python 3.11 or newer")


def kernel() -> Finding:
    """A process is watched and signalled by a pidfd, nothing else is safe against reuse of pids."""
    release = os.uname().release
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return error(f"{release}, without pidfd_open", "run Linux 5.6 or newer")
    return ok(release)


def privileges(euid: int | None = None) -> Finding:
    if (os.geteuid() if euid is None else euid) == 0:
        return ok("root")
    return error("not root", "run as root: a node agent gives each VMM a uid of its own")


def memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    text = f"{available / GIB:.1f} GiB available"
    if available >= LITTLE_MEMORY:
        return ok(text)
    return warning(text, "stop something, or give Instances a small memory.size")


def seccomp(actions: Path = Path("/proc/sys/kernel/seccomp/actions_avail")) -> Finding:
    if actions.exists():
        return ok("the kernel filters system calls")
    return error("the kernel has no seccomp filters", "run a kernel with CONFIG_SECCOMP_FILTER")


def cgroup(root: Path = Path("/sys/fs/cgroup")) -> Finding:
    remedy = "boot with systemd.unified_cgroup_hierarchy=1; until then VMMs have no limits"
    try:
        controllers = (root / "cgroup.controllers").read_text().split()
    except FileNotFoundError:
        return warning(f"no cgroup v2 on {root}", remedy)
    if not os.access(root, os.W_OK):
        return warning(f"{root} is read-only", "give the agent a writable cgroup v2")
    if missing := [name for name in WANTED_CONTROLLERS if name not in controllers]:
        return warning(f"v2 without {', '.join(missing)}", remedy)
    return ok(f"v2 with {', '.join(controllers)}")


def tun(device: Path = Path("/dev/net/tun")) -> Finding:
    remedy = "modprobe tun, or pass /dev/net/tun into this container; guests have no network"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return warning(f"{device}: {err.strerror}", remedy)
    return ok(f"{device} opens")


def disk(state_dir: Path) -> Finding:
    place = existing(state_dir)
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free in {place}"
    if free >= LITTLE_DISK:
        return ok(text)
    remedy = "make room, or choose another state directory"
    return warning(text, remedy) if free >= LEAST_DISK else error(text, remedy)


def reflink(state_dir: Path) -> Finding:
    """Whether a file's copy can share its blocks: tried, because no file system's name tells."""
    place = existing(state_dir)
    with (
        tempfile.TemporaryFile(dir=place) as source,
        tempfile.TemporaryFile(dir=place) as target,
    ):
        source.write(b"x" * 4096)
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError as err:
            said = f"{place} cannot share blocks between files ({err.strerror})"
            return warning(said, "use XFS or btrfs; until then copies of disks take time and room")
    return ok(f"{place} shares blocks between files")


def existing(directory: Path) -> Path:
    """``directory`` or the nearest one above it that is there already."""
    path = directory.absolute()
    while not path.is_dir():
        path = path.parent
    return path
