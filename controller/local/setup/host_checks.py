"""What doctor says of the kernel, memory and disk of this host: from facts to findings.

What does not live here: how a fact is found out (``host.facts``, ``host.diskspace``), so that
doctor and a node agent never disagree; programs, KVM and built parts (``part_checks``).
"""

import os
import sys
from pathlib import Path

from controller.host import diskspace, facts
from controller.host.facts import HostFacts
from controller.local.setup.findings import Check, Finding, error, ok, warning
from controller.local.setup.needs import parse_version
from controller.settings import GIB

OLDEST_PYTHON = (3, 11)
OLDEST_KERNEL = (5, 6)  # pidfds and openat2: how processes and paths are held safely
NEW_KERNEL = (5, 14)  # cgroup.kill: all of a VMM's processes at once
LITTLE_DISK = 10 * GIB
LEAST_DISK = 2 * GIB
LITTLE_MEMORY = 2 * GIB


def checks(state_dir: Path) -> list[Check]:
    """The looks at a host whose Instances would live below ``state_dir``."""
    place = existing(state_dir)
    return [
        Check("python", lambda: python(sys.version_info[:3])),
        Check("privileges", lambda: privileges(os.geteuid())),
        Check("kernel", lambda: kernel(facts.read())),
        Check("memory", lambda: memory(facts.read())),
        Check("seccomp", lambda: seccomp(facts.read())),
        Check("cgroup", lambda: cgroup(facts.read())),
        Check("tun", lambda: tun(facts.read())),
        Check("disk", lambda: disk(place, diskspace.free_bytes(place))),
        Check("reflink", lambda: reflink(place, diskspace.shares_blocks(place))),
    ]


def python(version: tuple[int, ...]) -> Finding:
    """The interpreter that runs us."""
    text = ".".join(map(str, version))
    return ok(text) if version >= OLDEST_PYTHON else error(text, "install Python 3.11 or newer")


def privileges(euid: int) -> Finding:
    """An agent starts each VMM as another user."""
    if euid == 0:
        return ok("root")
    return error("not root", "run as root: a node agent gives each VMM a uid of its own")


def kernel(host: HostFacts) -> Finding:
    """Linux's version against the floors."""
    version = parse_version(host.kernel) or (0, 0)
    if version < OLDEST_KERNEL:
        return error(f"Linux {host.kernel}", "run Linux 5.14 or newer")
    if version < NEW_KERNEL:
        return warning(f"Linux {host.kernel} has no cgroup.kill", "run Linux 5.14 or newer")
    return ok(f"Linux {host.kernel}")


def memory(host: HostFacts) -> Finding:
    """Guest memory is ordinary memory, so swap is where it could leak to."""
    text = f"{host.memory / GIB:.1f} GiB"
    if host.memory < LITTLE_MEMORY:
        return warning(text, "give Instances a small memory.size")
    if host.swap:
        return warning(f"{text}, and swap is on", "swapoff -a: guest memory must not reach a disk")
    return ok(f"{text}, no swap")


def seccomp(host: HostFacts) -> Finding:
    """No VMM is started without its filter."""
    if host.seccomp:
        return ok("the kernel filters system calls")
    return error("the kernel has no seccomp filters", "run a kernel with CONFIG_SECCOMP_FILTER")


def cgroup(host: HostFacts) -> Finding:
    """Limits, and killing all of a VMM's processes at once."""
    remedy = "mount a writable cgroup v2 with cpu, memory and pids (systemd does)"
    if not host.cgroup_writable:
        return warning("no writable cgroup v2: VMMs run without limits", remedy)
    if host.cgroup_limits != "full":
        return warning("v2 without all of cpu, memory and pids", remedy)
    return ok("v2 with cpu, memory and pids")


def tun(host: HostFacts) -> Finding:
    """A guest's network card is a TAP device."""
    if host.tun:
        return ok("/dev/net/tun opens")
    return warning(
        "/dev/net/tun does not open: guests have no network",
        "modprobe tun, or give this container the device",
    )


def disk(place: Path, free: int) -> Finding:
    """Room for disks and logs; ``free`` in bytes."""
    text = f"{free / GIB:.1f} GiB free in {place}"
    if free >= LITTLE_DISK:
        return ok(text)
    remedy = "make room, or choose another state directory"
    return warning(text, remedy) if free >= LEAST_DISK else error(text, remedy)


def reflink(place: Path, shares: bool) -> Finding:
    """Whether a copy of a disk costs nothing."""
    if shares:
        return ok(f"{place} shares blocks between files")
    remedy = "use XFS or btrfs; until then copies of disks take time and room"
    return warning(f"{place} cannot share blocks between files", remedy)


def existing(directory: Path) -> Path:
    """``directory`` or the nearest one above it that is there already."""
    path = directory.absolute()
    while not path.is_dir():
        path = path.parent
    return path
