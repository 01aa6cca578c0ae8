"""Shows commands as they are typed and what they answer: the voice of ``torpor demo``.

Colours and a spinner on a terminal, plain lines elsewhere. What does not live here: which commands.
"""

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from controller.errors import Timeout, TorporError
from controller.host.logread import sanitise

COMMAND_SECONDS = 900.0  # the longest: the first build of the control plane


@dataclass
class Narrator:
    """Runs commands in ``environment`` on top of our own, in ``directory``."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    def say(self, text: str) -> None:
        """A sentence between commands."""
        self.console.print()
        self.console.print(text, style="bold", markup=False)

    def note(self, text: str) -> None:
        """What came of a command."""
        self.console.print(f"  → {text}", style="green", markup=False)

    def run(self, *argv: str, meanwhile: str = "") -> str:
        """Show a command, run it, show its output as it comes; returns it. Raises TorporError."""
        self.console.print(f"$ {shlex.join(argv)}", style="cyan", markup=False)
        if meanwhile and self.console.is_terminal:
            with self.console.status(meanwhile):
                code, lines = self._shown(argv)
        else:
            code, lines = self._shown(argv)
        if code != 0:
            last = lines[-1].strip()[:300] if lines else "it said nothing"
            raise TorporError(f"{shlex.join(argv)}: exit code {code}: {last}")
        return "\n".join(lines)

    def ask(self, *argv: str) -> str:
        """Stdout of a command that is not shown, whether it fails or not. Raises TorporError."""
        with self.start(argv, stderr=subprocess.DEVNULL) as process, _bounded(process, argv):
            return process.communicate()[0]

    def _shown(self, argv: Sequence[str]) -> tuple[int, list[str]]:
        """Exit code and lines, harmless ones."""
        lines: list[str] = []
        with self.start(argv, stderr=subprocess.STDOUT) as process, _bounded(process, argv):
            assert process.stdout is not None
            for raw in process.stdout:
                line = sanitise(raw.rstrip("\r\n"))
                lines.append(line)
                self.console.print(f"  {line}", markup=False)
        return process.returncode, lines

    def start(self, argv: Sequence[str], stderr: int) -> "subprocess.Popen[str]":
        """A process that is not shown; whoever starts it ends it. Raises TorporError."""
        # in a session of its own: Ctrl-C is for us, and the clean-up must not be hit by it
        try:
            return subprocess.Popen(
                argv, cwd=self.directory, env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            raise TorporError(f"{argv[0]}: {err.strerror}; torpor setup installs it") from err


@contextmanager
def _bounded(process: "subprocess.Popen[str]", argv: Sequence[str]) -> Iterator[None]:
    """Kill what takes too long, and what we leave before its end. Raises Timeout."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(COMMAND_SECONDS, end)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise Timeout(f"{shlex.join(argv)} took over {COMMAND_SECONDS:g} s")


@dataclass
class Stopwatch:
    """Seconds since it was made."""

    began: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{time.monotonic() - self.began:.1f} s"
