"""Runs one outside command, passing its output on as progress and keeping its last words.

What does not live here: which commands are run.
"""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from controller.errors import Blocked
from controller.local.setup.steps import Say

KEPT_LINES = 5
LONGEST_LINE = 300  # characters; a progress bar drawn with \r is one endless line


def run(argv: Sequence[str], say: Say, env: Mapping[str, str] | None = None) -> None:
    """Run ``argv`` without input; each line it prints goes to ``say``.

    ``env`` is added to our own. Raises Blocked with the command's last lines when it fails, or when
    there is no such command. An interrupt ends the command's whole process group first.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except OSError as err:
        raise Blocked(f"cannot run {argv[0]}: {err.strerror}; install it") from err
    last: deque[str] = deque(maxlen=KEPT_LINES)
    assert process.stdout is not None  # asked for above
    try:
        with process.stdout:
            for line in process.stdout:
                if text := line.strip()[:LONGEST_LINE]:
                    last.append(text)
                    say(text)
        code = process.wait()
    except BaseException:
        _end_group(process)
        raise
    if code != 0:
        raise Blocked(f"`{' '.join(argv)}` failed with {code}: {' | '.join(last) or 'no output'}")


def _end_group(process: "subprocess.Popen[str]") -> None:
    """apt and dpkg clean up after SIGTERM; whoever does not go within seconds is killed."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)
    except ProcessLookupError:
        process.wait()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
