"""From an exception to one line on stderr and an exit code: the edge of every command.

Codes are stable, for scripts: 0 done, 1 failed, 2 the request was wrong (click's own too), 3 the
cluster does not answer, 130 interrupted. What does not live here: the error classes themselves
(``controller.errors``) and the wording of any particular error.
"""

import os
import sys
import traceback
from collections.abc import Callable

import click

from controller.errors import Rejected, TorporError, Unreachable

OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

DEBUG_VARIABLE = "TORPOR_DEBUG"


def exit_code(error: BaseException) -> int:
    """The exit code that ``error`` ends the process with."""
    match error:
        case Unreachable():
            return UNREACHABLE
        case Rejected():
            return USAGE
        case click.ClickException():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case _:
            return FAILED


def one_line(error: BaseException) -> str:
    """What to tell a person: cause and remedy, printable, on one line, never empty."""
    if isinstance(error, TorporError):
        text = str(error) or error.reason
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"unexpected {type(error).__name__}: {error}; {DEBUG_VARIABLE}=1 shows where"
    # names and messages come from files, guests and servers: nothing may drive the terminal
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def run_at_edge(command: Callable[[], object]) -> int:
    """Run ``command``; print an error as one line; return the exit code, whatever happens.

    A command may return its exit code; anything that is not an int means done.
    """
    try:
        result = command()
        sys.stdout.flush()  # a reader that is gone must be noticed here, not at interpreter exit
    except BrokenPipeError:
        _silence_stdout()
        return FAILED
    except (KeyboardInterrupt, click.Abort) as err:
        return exit_code(err)
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else OK if err.code is None else FAILED
    except Exception as err:  # the edge itself: past this line there is only a traceback
        _tell(err)
        return exit_code(err)
    return result if isinstance(result, int) else OK


def _tell(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if isinstance(error, click.ClickException) and not isinstance(error, click.FileError):
        error.show()  # usage errors show how the command is used
        return
    print(f"torpor: {one_line(error)}", file=sys.stderr)


def _silence_stdout() -> None:
    """Point stdout at /dev/null, else the interpreter complains once more while it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    finally:
        os.close(null)
