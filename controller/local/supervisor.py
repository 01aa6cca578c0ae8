"""The process that keeps a cluster running: in the foreground, or detached in its own session.

``python -m controller.local.supervisor DIR CHOSEN FD`` is the detached form: it reports progress as
lines on descriptor FD, the last one ``ready`` or ``error …``. SIGTERM ends the processes and leaves
the guests alone; who wants them stopped asks the agents first (takedown.py).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from controller.errors import Blocked, TorporError
from controller.local import binaries, takedown
from controller.local.cluster import SOURCE, Cluster, end_leftovers, sole_supervisor
from controller.local.install import Install, check_reachable, settle
from controller.local.process import put_aside

Progress = Callable[[str], None]
Chosen = Mapping[str, int | None]
READY = "ready"
ERROR = "error "


def supervise(
    directory: Path,
    chosen: Chosen,
    progress: Progress,
    ready: Callable[[Install], None],
    ending: Callable[[Install], None],
) -> None:
    """Run the cluster of ``directory`` until SIGINT or SIGTERM.

    ``ready`` is called once it is up, ``ending`` after the signal, while everything still runs.
    Raises what keeps the cluster from starting.
    """
    programs = binaries.ensure(progress)
    with sole_supervisor(directory):
        end_leftovers(directory)  # they hold the ports
        install = settle(directory, **chosen)
        cluster = Cluster(install, programs, progress)
        try:
            with _exit_on_sigterm():
                cluster.start()
        except BaseException:
            with suppress(TorporError):  # guests of an earlier up may live; they are not ours here
                takedown.remove_run_dir(install)
            raise
        try:
            with _signals() as stop:
                ready(install)
                stop.wait()
            ending(install)
        finally:
            cluster.stop()


def detach(directory: Path, chosen: Chosen, progress: Progress) -> None:
    """Start a supervisor of its own session; return once its cluster is ready.

    Raises Blocked with its last words when it is not. Interrupted, it takes the supervisor along.
    """
    log = directory / "log" / "supervisor.log"
    check_reachable(directory)
    log.parent.mkdir(exist_ok=True, mode=0o700)
    put_aside(log)
    reading, writing = os.pipe()
    arguments = [str(directory), json.dumps(dict(chosen)), str(writing)]
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            cwd=SOURCE,
            start_new_session=True,
        )
    os.close(writing)
    try:
        last = _follow(reading, progress)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if last != READY:
        child.wait()
        said = last.removeprefix(ERROR) or "it ended without a word"
        raise Blocked(said if last.startswith(ERROR) else f"the supervisor failed; see {log}")


def _follow(reading: int, progress: Progress) -> str:
    """Pass on its lines until it is ready or gone; returns the last line."""
    last = ""
    with os.fdopen(reading) as lines:
        for line in lines:
            last = line.strip()
            if last == READY or last.startswith(ERROR):
                break
            progress(last)
    return last


def main(argv: list[str]) -> int:
    """The detached supervisor."""
    directory, chosen, notify = Path(argv[0]), json.loads(argv[1]), os.fdopen(int(argv[2]), "w")

    def progress(line: str) -> None:
        print(line, flush=True)
        with suppress(ValueError, OSError):  # nobody waits for us any more
            print(line, file=notify, flush=True)

    def ready(install: Install) -> None:
        del install
        progress(READY)
        notify.close()

    try:
        supervise(directory, chosen, progress, ready, lambda install: None)
    except TorporError as err:
        progress(f"{ERROR}{err}")
        return 1
    except Exception as err:  # the edge of a process: whoever waits must hear of it
        traceback.print_exc()
        progress(f"{ERROR}unexpected {type(err).__name__}: {err}")
        return 1
    return 0


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, in place of what they did before."""
    event = threading.Event()

    def told(number: int, frame: FrameType | None) -> None:
        del number, frame
        event.set()

    before = [(number, signal.signal(number, told)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield event
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """While starting: a SIGTERM unwinds, so that what was started is ended."""

    def told(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
