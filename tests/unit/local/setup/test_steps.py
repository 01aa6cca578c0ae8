"""The loop over steps: looks first, stops at a failure, says what became of everything."""

import itertools

import pytest

from controller.errors import Blocked
from controller.local.setup.steps import Step, Verdict, run_steps


class World:
    """Which steps are true; a step's run makes it true unless told otherwise."""

    def __init__(self, *true: str) -> None:
        self.true = set(true)
        self.ran: list[str] = []

    def step(self, name: str, error: Exception | None = None, lies: bool = False) -> Step:
        def run(say) -> None:
            self.ran.append(name)
            say(f"working on {name}")
            if error is not None:
                raise error
            if not lies:
                self.true.add(name)

        return Step(name, "this test", lambda: name in self.true, run)


def verdicts(outcomes):
    return [(outcome.step.name, outcome.verdict) for outcome in outcomes]


def test_what_is_there_is_left_alone_and_the_rest_is_made():
    world = World("a")
    steps = [world.step("a"), world.step("b")]
    assert verdicts(run_steps(steps)) == [("a", Verdict.THERE), ("b", Verdict.MADE)]
    assert world.ran == ["b"]


def test_a_second_run_does_no_work_twice():
    world = World()
    steps = [world.step("a"), world.step("b")]
    list(run_steps(steps))
    assert [verdict for _, verdict in verdicts(run_steps(steps))] == [Verdict.THERE] * 2
    assert world.ran == ["a", "b"]


def test_after_a_failure_the_rest_is_named_and_not_tried():
    world = World()
    steps = [world.step("a"), world.step("b", error=Blocked("no room")), world.step("c")]
    outcomes = list(run_steps(steps))
    assert [o.verdict for o in outcomes] == [Verdict.MADE, Verdict.FAILED, Verdict.SKIPPED]
    assert str(outcomes[1].error) == "no room"
    assert world.ran == ["a", "b"]


def test_a_step_that_ran_and_is_still_not_done_is_a_failure():
    outcome = next(run_steps([World().step("a", lies=True)]))
    assert outcome.verdict is Verdict.FAILED
    assert "every command succeeded" in str(outcome.error)


def test_an_error_that_is_not_ours_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(run_steps([World().step("a", error=ZeroDivisionError())]))


def test_progress_goes_to_whoever_asked_and_only_work_begins():
    world, said, begun = World("a"), [], []
    steps = [world.step("a"), world.step("b")]
    list(run_steps(steps, said.append, lambda step: begun.append(step.name)))
    assert (said, begun) == (["working on b"], ["b"])


def test_an_outcome_says_how_long_it_took():
    ticks = itertools.count(0.0, 2.5)
    outcome = next(run_steps([World().step("a")], clock=lambda: next(ticks)))
    assert outcome.seconds == 2.5
