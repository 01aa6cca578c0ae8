"""One supervised child: started in its own session, restarted with back-off, ended for sure.

What does not live here: which programs there are and in what order (controlplane, cluster), and
guests: a VMM is never a child of the supervisor.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from controller.errors import Blocked, Timeout, TorporError
from controller.host.process import Gone, Identity, identity, is_alive, open_pidfd
from controller.local import probe

LOG_BYTES = 4 * 1024 * 1024  # a longer log moves to NAME.log.1 when its program starts
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
STEADY_SECONDS = 30.0  # a run that lasted this long clears the back-off
HOPELESS = 3  # exits before the first readiness that end the wait for it


@dataclass(frozen=True)
class Program:
    """What to run. ``probe`` is the URL that answers 200 when the program is ready, if it has one.

    ``stop_seconds`` is the time between SIGTERM and SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    probe: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 10.0


def terminate(who: Identity, seconds: float) -> None:
    """End it: SIGTERM, and SIGKILL after ``seconds``. Silent when it is gone already.

    Raises Timeout when the kernel does not end it even then.
    """
    try:
        fd = open_pidfd(who)
    except Gone:
        return
    try:
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
            if _ended(fd, patience):
                return
    finally:
        os.close(fd)
    raise Timeout(f"process {who.pid} does not end after SIGKILL; see its kernel stack")


def _ended(pidfd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


class Supervised:
    """A program that is kept running until ``stop``. ``changed`` is called at start and exit."""

    def __init__(self, program: Program, changed: Callable[[], None] = lambda: None) -> None:
        self.program = program
        self.restarts = 0
        self.last_exit: int | None = None
        self._changed = changed
        self._untold = False  # the last change could not be told: the disk is full, say
        self._child: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=program.name, daemon=True)

    @property
    def identity(self) -> Identity | None:
        """The running process, None between an exit and the restart."""
        return self._identity

    @property
    def running(self) -> bool:
        """Whether the process lives right now."""
        return (who := self._identity) is not None and is_alive(who)

    def start(self) -> None:
        """Start it and its supervision. Raises Blocked when it cannot be executed."""
        self._spawn()
        self._changed()
        self._thread.start()

    def wait_ready(self, seconds: float) -> None:
        """Return when its probe answers. Raises Blocked (it keeps exiting) or Timeout."""
        name, deadline = self.program.name, time.monotonic() + seconds
        while not (self.running and probe.ready(self.program.probe)):
            if self.restarts >= HOPELESS:
                code = self.last_exit
                raise Blocked(f"{name} exits as soon as it starts ({code}): {self._last_line()}")
            if time.monotonic() > deadline:
                raise Timeout(f"{name} is not ready after {seconds:g} s: {self._last_line()}")
            time.sleep(0.05)  # the probes are HTTP: there is nothing to wait on

    def stop(self) -> None:
        """End it for good and wait until it is gone. May be called twice."""
        with self._lock:
            self._stopping.set()
            who = self._identity
        if who is not None:
            terminate(who, self.program.stop_seconds)
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        pause = FIRST_PAUSE
        while (child := self._child) is not None:
            started = time.monotonic()
            self.last_exit = self._wait(child)
            self._identity = None
            if self._stopping.is_set():
                break
            self._tell()
            steady = time.monotonic() - started >= STEADY_SECONDS
            pause = FIRST_PAUSE if steady else min(pause * 2, LONGEST_PAUSE)
            self.restarts += 1
            if self._stopping.wait(pause):
                break
            with self._lock:
                if self._stopping.is_set():
                    break
                try:
                    self._spawn()
                except TorporError as err:  # tried again: the old child's end is seen at once
                    _say(err)
            self._tell()

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        """How it ended; what could not be told of its start is told meanwhile."""
        while self._untold:
            try:
                return child.wait(LONGEST_PAUSE)
            except subprocess.TimeoutExpired:
                self._tell()
        return child.wait()

    def _tell(self) -> None:
        """Supervision goes on whatever happens to those who are told."""
        try:
            self._changed()
        except TorporError as err:
            self._untold = True
            _say(err)
        else:
            self._untold = False

    def _spawn(self) -> None:
        program = self.program
        try:
            put_aside(program.log)
            with program.log.open("ab") as log:
                self._child = subprocess.Popen(
                    program.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={**os.environ, **program.env},
                    start_new_session=True,  # a Ctrl-C in our terminal is for us alone
                )
        except OSError as err:
            raise Blocked(
                f"cannot start {program.name}: {program.argv[0]}: {err.strerror}"
            ) from err
        self._identity = identity(self._child.pid)  # a zombie at worst: nobody reaped it yet

    def _last_line(self) -> str:
        """The end of the log, for an error message of one line."""
        lines = tail(self.program.log, 4096).strip().splitlines()
        return f"{lines[-1][:300] if lines else 'no output'} (see {self.program.log})"


def _say(err: TorporError) -> None:
    with suppress(OSError):  # our own log is on the same full disk
        print(err, file=sys.stderr, flush=True)


def tail(path: Path, size: int) -> str:
    """The last ``size`` bytes of a text file, empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode(errors="replace")
    except FileNotFoundError:
        return ""


def put_aside(log: Path) -> None:
    """Make room for a log: a long one becomes NAME.log.1, the one before that is gone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
