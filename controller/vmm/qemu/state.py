"""What QEMU's run states mean in the state graph. Pure.

A VMM that came to an end stays alive (``-no-shutdown``) in run state ``shutdown``, for a power-off
and for a reset alike (``-no-reboot``). The reason is only in the SHUTDOWN event, which an agent
that started later has missed. So QEMU notes a power-off in a file of its own (a trace event: one
line; a reset passes that point of the code by), and both witnesses come in here:

- ``reason``: of the SHUTDOWN event, when we saw it;
- ``noted``: whether the file has the line.

A kernel panic is told by the pvpanic device and is a run state of its own. ``quit``, SIGTERM and
SIGKILL end the process: then there is nobody to ask, and the pidfd tells.
"""

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Retry
from controller.vmm.driver import VmmState

_STATES = {
    "prelaunch": State.CREATED,
    "inmigrate": State.CREATED,
    "running": State.RUNNING,
    "paused": State.PAUSED,
    "postmigrate": State.PAUSED,
    "finish-migrate": State.PAUSED,
    "save-vm": State.PAUSED,
    "restore-vm": State.PAUSED,
    "debug": State.PAUSED,
    "suspended": State.PAUSED,
    "colo": State.PAUSED,
    "watchdog": State.PAUSED,
    "io-error": State.PAUSED,
    "shutdown": State.SHUTDOWN,
    "guest-panicked": State.SHUTDOWN,
    "internal-error": State.SHUTDOWN,
}

_REASONS = {
    "guest-shutdown": Ending.POWERED_OFF,
    "guest-reset": Ending.RESET,
    "guest-panic": Ending.PANICKED,
    "host-qmp-quit": Ending.HOST,
    "host-signal": Ending.HOST,
    "host-ui": Ending.HOST,
    "host-qmp-system-reset": Ending.HOST,
    "host-error": Ending.DIED,
}


def vmm_state(status: str, *, reason: str | None, noted: bool) -> VmmState:
    """The answer of ``query-status`` in our words. Raises Retry for a status we do not know."""
    try:
        state = _STATES[status]
    except KeyError:
        raise Retry(
            f"the VMM is in run state {status!r}, which this version does not know: look again, or"
            " upgrade",
            reason="VmmStateUnknown",
        ) from None
    # Only a full disk stops the guest (werror=enospc); other write errors go to the guest.
    full = status == "io-error"
    return VmmState(state, _ending(status, reason, noted), storage_full=full)


def _ending(status: str, reason: str | None, noted: bool) -> Ending | None:
    if status == "guest-panicked":
        return Ending.PANICKED
    if status == "internal-error":
        return Ending.DIED  # the emulator itself gave up; the VMM log says why
    if status != "shutdown":
        return None
    if reason in _REASONS:
        return _REASONS[reason]
    return Ending.POWERED_OFF if noted else Ending.RESET
