"""How a plan says that nothing can be done now: what it waits for, and when to look again."""

from dataclasses import replace

from controller.core.observed import Lock, Observed, Unknown
from controller.core.steps import Plan, Waiting

# Nothing tells us when these change, so they are looked at again.
LOOK_AGAIN_SECONDS = 2.0


def wait(draft: Plan, now: float, reason: str, message: str, *, stalled: bool = False) -> Plan:
    """``draft`` with nothing to do but to look again soon; stalled: when something changes."""
    waiting = Waiting(reason, message, stalled)
    return replace(draft, waiting=waiting, wake_at=None if stalled else now + LOOK_AGAIN_SECONDS)


def why_unknown(seen: Observed) -> str:
    """Why nobody can tell its state, in words."""
    if seen.lock is Lock.UNKNOWN:
        return "cannot tell whether its VMM lives: the run lock cannot be read"
    for fact in (seen.vmm, seen.record, seen.snapshot):
        if isinstance(fact, Unknown):
            return fact.why
    return "its VMM lives but was not found"
