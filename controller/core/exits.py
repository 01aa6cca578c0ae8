"""How a run ended, and whether restartPolicy starts it again.

The first witness is the guest's own report, then the VMM's last words, then the console. A stop
that we ordered is no exit; a reboot of guest or host is none either: both boot again, a guest that
reboots again and again with a back-off.
"""

from controller.core.backoff import Backoff
from controller.core.desired import RestartPolicy
from controller.core.observed import Ending, Exit, Guest, Observed, Recorded, Vmm
from controller.core.steps import NoteExit


def ending_of(seen: Observed, record: Recorded) -> Exit:
    """The exit of the open run, whose VMM has shut down or is gone, from every witness there is."""
    guest = seen.guest if isinstance(seen.guest, Guest) else Guest()
    if guest.exit is not None:
        return guest.exit
    if guest.panic is not None:
        return Exit(None, f"kernel panic: {guest.panic}")
    if record.rebooted:
        return Exit(None, "the host was rebooted", reboot=True)
    ended = _from_vmm(seen.vmm.ending if isinstance(seen.vmm, Vmm) else Ending.DIED)
    if ended == _DIED and record.woken:
        return Exit(None, _CONSUMED, reason="MemoryConsumed")
    return ended


_DIED = Exit(None, "the VMM died")
_CONSUMED = "the VMM died after it was woken; the memory it woke with is used up, a boot is cold"


def _from_vmm(ending: Ending | None) -> Exit:
    match ending:
        case Ending.POWERED_OFF:
            return Exit(0, "the guest powered itself off")
        case Ending.RESET:
            return Exit(None, "the guest rebooted", reboot=True)
        case Ending.PANICKED:
            return Exit(None, "kernel panic")
        case Ending.HOST:
            return Exit(None, "the VMM was told to quit by somebody on the host")
        case _:
            return _DIED


def restarts(policy: RestartPolicy, ended: Exit) -> bool:
    """Whether ``policy`` starts an Instance again after it ended like this."""
    if ended.reboot or policy is RestartPolicy.ALWAYS:
        return True
    return policy is RestartPolicy.ON_FAILURE and ended.failed


def note(
    policy: RestartPolicy, seen: Observed, record: Recorded, now: float, backoff: Backoff
) -> NoteExit:
    """The step that writes the end of the open run down, with what policy makes of it."""
    ended = ending_of(seen, record)
    if record.rebooted and ended.reboot:
        return NoteExit(ended, exited=False, restarts=record.restarts, delay=0.0)
    lasted = None if record.run_began_at is None else now - record.run_began_at
    count = backoff.count(record.restarts, lasted)
    if ended.reboot:  # at once; but one reboot after the other waits, or it would spin for ever
        return NoteExit(ended, exited=False, restarts=count, delay=backoff.delay(count - 1))
    again = restarts(policy, ended)
    return NoteExit(ended, not again, count, backoff.delay(count) if again else 0.0)
