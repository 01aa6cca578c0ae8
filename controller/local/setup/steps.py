"""A step of the set-up as a value, and the one loop that runs a list of them.

What does not live here: any particular step (``machine``) and how progress looks (the CLI).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from controller.errors import Blocked, TorporError

Say = Callable[[str], None]  # one line of progress, for a person


@dataclass(frozen=True)
class Step:
    """One thing that must be true of this machine.

    ``done`` looks and changes nothing; ``run`` makes it true and may take minutes. ``needed_for``
    completes the sentence "it is needed for …".
    """

    name: str
    needed_for: str
    done: Callable[[], bool]
    run: Callable[[Say], None]


class Verdict(Enum):
    """How a step ended."""

    THERE = "already there"
    MADE = "done"
    FAILED = "failed"
    SKIPPED = "not tried"


@dataclass(frozen=True)
class Outcome:
    """What became of one step, in how many seconds; ``error`` only with FAILED."""

    step: Step
    verdict: Verdict
    seconds: float = 0.0
    error: TorporError | None = None


def run_steps(
    steps: Iterable[Step],
    say: Say = lambda line: None,
    begin: Callable[[Step], None] = lambda step: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Run ``steps`` in order, yielding one outcome each; after a failure the rest is SKIPPED.

    ``begin`` is called before a step does work (not for one that is there already). A later step
    builds on an earlier one, so going on after a failure would only bury its message.
    """
    failed = False
    for step in steps:
        if failed:
            yield Outcome(step, Verdict.SKIPPED)
            continue
        outcome = _run_one(step, say, begin, clock)
        failed = outcome.verdict is Verdict.FAILED
        yield outcome


def _run_one(
    step: Step, say: Say, begin: Callable[[Step], None], clock: Callable[[], float]
) -> Outcome:
    started = clock()
    try:
        if step.done():
            return Outcome(step, Verdict.THERE, clock() - started)
        begin(step)
        step.run(say)
        if not step.done():
            raise Blocked(f"{step.name}: every command succeeded and yet it is not there")
    except TorporError as err:
        return Outcome(step, Verdict.FAILED, clock() - started, err)
    return Outcome(step, Verdict.MADE, clock() - started)
