"""``torpor setup``: what it says, with and without a terminal, and how it exits."""

import pytest
from click.testing import CliRunner
from rich.console import Console

from controller.cli import setup as command
from controller.errors import Blocked
from controller.local.setup.steps import Step


def step(name, *, there=False, error=None):
    state = {"there": there}

    def run(say):
        say(f"[bold]output of {name}")
        if error is not None:
            raise error
        state["there"] = True

    return Step(name, f"the {name} test", lambda: state["there"], run)


def run(monkeypatch, *steps, terminal=False):
    monkeypatch.setattr(command, "steps", lambda: list(steps))
    monkeypatch.setattr(command, "HEARTBEAT_SECONDS", 0.0)
    if terminal:
        monkeypatch.setattr(
            command, "Console", lambda **kw: Console(force_terminal=True, width=120, **kw)
        )
    return CliRunner().invoke(command.setup, [], standalone_mode=False)


@pytest.mark.parametrize("terminal", [False, True])
def test_every_step_is_accounted_for_at_the_end(monkeypatch, terminal):
    answer = run(monkeypatch, step("one", there=True), step("two"), terminal=terminal)
    assert answer.return_value == 0
    last = answer.output.splitlines()[-2:]
    assert "one" in last[0]
    assert "already there" in last[0]
    assert "two" in last[1]
    assert "done" in last[1]


def test_without_a_terminal_progress_is_plain_lines(monkeypatch):
    answer = run(monkeypatch, step("one"))
    assert answer.output.splitlines()[:3] == [
        "one: not here yet, needed for the one test",
        "    … [bold]output of one",
        "one: done in 0.0 s",
    ]
    assert "\x1b" not in answer.output


def test_a_failure_says_cause_and_what_it_was_for_and_what_was_not_tried(monkeypatch):
    answer = run(monkeypatch, step("one", error=Blocked("no [room]; make some")), step("two"))
    assert answer.return_value == 1
    assert "torpor: one, needed for the one test: no [room]; make some" in answer.output
    assert "not tried" in answer.output


def test_an_interrupt_says_what_is_done_before_it_goes_on_up(monkeypatch):
    answer = run(monkeypatch, step("one"), step("two", error=KeyboardInterrupt()))
    assert "one  done" in answer.output
    assert "torpor setup goes on from here" in answer.output
    assert answer.exit_code != 0
