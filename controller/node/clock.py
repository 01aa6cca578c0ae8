"""The agent's two clocks: boot time for every deadline, wall time for people to read.

The wall clock may jump; nothing is ever decided by it. Boot time counts through suspend and is
comparable only within one boot of the host, so it is stored together with the boot's id.
"""

import time
from datetime import UTC, datetime

from controller.host.process import boot_id
from controller.node.record import Moment


def now() -> float:
    """Seconds since the host booted, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> str:
    """The time of day, RFC 3339, UTC, whole seconds, as metav1.Time has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(after: float = 0.0) -> Moment:
    """Now, or ``after`` seconds from now, to be stored."""
    return Moment(boot_id=boot_id(), seconds=now() + after, wall=wall())
