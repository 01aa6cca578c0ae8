"""What this host is: asked of the kernel, each time anew.

What does not live here: whether KVM works, which takes a boot to know (``kvm``); room on disks
(``diskspace``); what an agent makes of it.
"""

import errno
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from controller.host import cgroup
from controller.host.process import boot_id

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Sizes in bytes. ``seccomp``: filters can be set; ``tun``: TAP devices can be opened;
    ``cgroup_limits``: full, partial or none; ``cgroup_writable``: cgroups can be made."""

    architecture: str
    kernel: str
    boot_id: str
    cpus: int
    threads_per_core: int
    memory: int
    swap: int
    seccomp: bool
    tun: bool
    cgroup_writable: bool
    cgroup_limits: str


def read() -> HostFacts:
    """Look at the host; a millisecond."""
    memory = _meminfo()
    return HostFacts(
        architecture=platform.machine(),
        kernel=platform.release(),
        boot_id=boot_id(),
        cpus=len(os.sched_getaffinity(0)),
        threads_per_core=_threads_per_core(),
        memory=memory["MemTotal"],
        swap=memory["SwapTotal"],
        seccomp=_seccomp(),
        tun=_tun(),
        cgroup_writable=cgroup.root() is not None,
        cgroup_limits=cgroup.limits(),
    )


def _meminfo() -> dict[str, int]:
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def _threads_per_core() -> int:
    """Hardware threads of one core; 1 where the host does not say."""
    try:
        siblings = (_CPUS / "cpu0/topology/thread_siblings_list").read_text()
    except OSError:
        return 1
    count = 0
    for part in siblings.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return max(count, 1)


def _seccomp() -> bool:
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        return False
    return "kill_process" in actions


def _tun() -> bool:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # Busy is the only refusal that still proves a driver behind the node.
        return error.errno == errno.EBUSY
    return True
