"""How an exception leaves the process: one line, a stable code, never a traceback."""

import click
import pytest

from controller import errors
from controller.cli.errors import exit_code, one_line, run_at_edge


def _raise(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TorporError("x"), 1),
        (errors.Retry("x"), 1),
        (errors.Timeout("x"), 1),
        (errors.Blocked("x"), 1),
        (errors.Bug("x"), 1),
        (errors.Rejected("x"), 2),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (click.ClickException("x"), 1),
        (errors.Unreachable("x"), 3),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (KeyError("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_has_a_stable_exit_code(error, code):
    assert exit_code(error) == code
    assert run_at_edge(_raise(error)) == code


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_a_command_may_return_its_exit_code(result, code):
    assert run_at_edge(lambda: result) == code


@pytest.mark.parametrize(("raised", "code"), [(None, 0), (0, 0), (2, 2), ("text", 1)])
def test_sys_exit_inside_a_command_keeps_its_code(raised, code):
    assert run_at_edge(_raise(SystemExit(raised))) == code


def test_an_error_is_one_line_on_stderr(capsys):
    run_at_edge(_raise(errors.Blocked("no room\nin /x;  delete something")))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "torpor: no room in /x; delete something\n")


def test_an_unexpected_error_is_one_line_too_and_says_how_to_see_more(capsys, monkeypatch):
    monkeypatch.delenv("TORPOR_DEBUG", raising=False)
    run_at_edge(_raise(ZeroDivisionError("division by zero")))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    assert "TORPOR_DEBUG=1" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_and_keeps_the_code(capsys, monkeypatch):
    monkeypatch.setenv("TORPOR_DEBUG", "1")
    assert run_at_edge(_raise(errors.Unreachable("nobody there"))) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("torpor: nobody there\n")


def test_control_characters_in_a_message_cannot_drive_the_terminal():
    assert "\x1b" not in one_line(errors.Blocked("name \x1b[2Jis bad"))


def test_an_os_error_names_the_file():
    assert one_line(FileNotFoundError(2, "No such file", "/x/y")) == "/x/y: No such file"


def test_an_error_without_text_says_its_reason():
    assert one_line(errors.Blocked("")) == "Blocked"
