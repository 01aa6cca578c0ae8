"""``state.json``: which processes run for a directory, readable by any process.

Written at every start and exit of a child, by one rename. What does not live here: what should run
(that is ``install.json``, cluster.py) and whether a process is ready, which is asked when somebody
wants to know.
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controller.errors import Rejected
from controller.host.files import write_atomic
from controller.host.process import Identity, is_alive
from controller.local import probe
from controller.local.process import Supervised, terminate

VERSION = 1
LAST = ("kube-apiserver", "etcd")  # to end, in this order


@dataclass(frozen=True)
class Entry:
    """One supervised process. ``who`` is None between its exit and its restart."""

    name: str
    who: Identity | None
    probe: str = ""
    restarts: int = 0
    stop_seconds: float = 10.0

    @property
    def running(self) -> bool:
        """Whether that very process lives."""
        return self.who is not None and is_alive(self.who)

    @property
    def ready(self) -> bool:
        """Whether it lives and answers its probe now."""
        return self.running and probe.ready(self.probe)


@dataclass(frozen=True)
class State:
    """A supervisor and its processes, in the order of their start."""

    supervisor: Identity | None
    processes: tuple[Entry, ...]

    @property
    def supervised(self) -> bool:
        """Whether somebody restarts what dies."""
        return self.supervisor is not None and is_alive(self.supervisor)

    def end(self) -> None:
        """End every process that still lives; those that all others use come last."""
        users = [entry for entry in self.processes if entry.name not in LAST]
        with ThreadPoolExecutor(len(users) or 1) as pool:
            list(pool.map(_end, users))
        for name in LAST:
            for entry in self.processes:
                if entry.name == name:
                    _end(entry)


class StateFile:
    """Writes the state of ``processes()`` on behalf of the supervisor ``me``; from any thread."""

    def __init__(self, path: Path, me: Identity, processes: Callable[[], Sequence[Supervised]]):
        self._path = path
        self._me = me
        self._processes = processes
        self._lock = threading.Lock()

    def save(self) -> None:
        """Write what is true now. Raises Retry when the disk refuses."""
        with self._lock:  # the order of the files is the order of the facts
            state = State(self._me, tuple(_entry(each) for each in self._processes()))
            write(self._path, state)


def write(path: Path, state: State) -> None:
    """Replace the file. Raises Retry."""
    document = {"version": VERSION, **asdict(state)}
    write_atomic(path, json.dumps(document, indent=1).encode())


def read(path: Path) -> State | None:
    """Read it back, None where there is none. Raises Rejected when it is not ours."""
    try:
        document = json.loads(path.read_text())
        if document.pop("version") != VERSION:
            raise Rejected(f"{path} is of another release of Torpor; use that one's torpor down")
        entries = (Entry(**{**e, "who": _who(e["who"])}) for e in document["processes"])
        return State(_who(document["supervisor"]), tuple(entries))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as err:
        raise Rejected(f"{path} is damaged ({err}); end the processes by hand, remove it") from err


def _end(entry: Entry) -> None:
    if entry.who is not None:
        terminate(entry.who, entry.stop_seconds)


def _entry(each: Supervised) -> Entry:
    program = each.program
    return Entry(program.name, each.identity, program.probe, each.restarts, program.stop_seconds)


def _who(data: dict[str, Any] | None) -> Identity | None:
    return None if data is None else Identity(**data)
