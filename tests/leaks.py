"""The leak oracle: what a test left on the host, by comparing before and after.

Looks only at what is ours by a mark, because others use the host too: descendants of this process;
processes with a path of ours in their command line, environment, working directory or open files;
mounts, loop devices and unix sockets below a path of ours; cgroups, network namespaces and network
devices with a name of ours; files below directories that must end as they began.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from controller.host import cgroup, process
from controller.host.process import Gone, Identity


@dataclass(frozen=True)
class Scope:
    """What is ours. ``names``: prefixes of names; ``files``: directories whose content counts."""

    paths: tuple[Path, ...]
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def has_path(self, text: str) -> bool:
        """Whether a path of ours is in ``text``."""
        return any(str(path) in text for path in self.paths)

    def has_name(self, name: str) -> bool:
        """Whether ``name`` is one of ours."""
        return name.startswith(self.names) if self.names else False


@dataclass(frozen=True)
class Snapshot:
    """What there is of ours at one moment; each a set of texts for people."""

    processes: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    sockets: frozenset[str]
    cgroups: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    files: frozenset[str]


def snapshot(scope: Scope) -> Snapshot:
    """Look, in some milliseconds."""
    return Snapshot(
        processes=frozenset(f"{pid} {what}" for pid, what in processes(scope).items()),
        mounts=frozenset(filter(scope.has_path, _mounts())),
        loops=frozenset(filter(scope.has_path, _loops())),
        sockets=frozenset(filter(scope.has_path, _sockets())),
        cgroups=frozenset(_cgroups(scope)),
        namespaces=frozenset(filter(scope.has_name, _names(Path("/run/netns")))),
        links=frozenset(filter(scope.has_name, _names(Path("/sys/class/net")))),
        files=frozenset(str(path) for top in scope.files for path in top.rglob("*")),
    )


def diff(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what is there now and was not before, one line each."""
    return [
        f"{field.name}: {what}"
        for field in fields(Snapshot)
        for what in sorted(getattr(after, field.name) - getattr(before, field.name))
    ]


def settle(before: Snapshot, scope: Scope, seconds: float = 5.0) -> list[str]:
    """Return what is still left over after at most ``seconds``: the dying get time to die."""
    deadline = time.monotonic() + seconds
    while (left := diff(before, snapshot(scope))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def kill_left_over(before: Snapshot, scope: Scope) -> None:
    """Kill the processes that a test left, so that they disturb no later one."""
    for pid, what in processes(scope).items():
        if f"{pid} {what}" not in before.processes:
            with contextlib.suppress(Gone):
                process.kill(process.identity(pid), signal.SIGKILL)


def processes(scope: Scope) -> dict[int, str]:
    """Return our processes that run (no zombies), and what they are.

    What started before us is not ours, and most of a host did: that keeps a look cheap.
    """
    born = process.identity(os.getpid()).start_time
    parents: dict[int, int] = {}
    older: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if stat[0] not in "ZX":
                    parents[int(entry.name)] = int(stat[1])
                if int(stat[19]) < born:
                    older.add(int(entry.name))
    found: dict[int, str] = {}
    for pid in parents.keys() - older - {os.getpid()}:
        descends = os.getpid() in _upwards(pid, parents)
        with contextlib.suppress(OSError, Gone):
            if descends or scope.has_path("\n".join(_marks(Path(f"/proc/{pid}")))):
                found[pid] = _describe(process.identity(pid))
    return found


def _upwards(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        yield pid
        pid = parents[pid]


def _marks(proc: Path) -> Iterator[str]:
    yield (proc / "cmdline").read_bytes().decode(errors="replace")
    yield (proc / "environ").read_bytes().decode(errors="replace")
    # Not by Path objects: there are thousands of descriptors, and this runs around every test.
    yield os.readlink(f"{proc}/cwd")  # noqa: PTH115
    fds = f"{proc}/fd"
    for fd in os.listdir(fds):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"{fds}/{fd}")  # noqa: PTH115


def _describe(who: Identity) -> str:
    words = Path(f"/proc/{who.pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return f"(started at {who.start_time}) {words.decode(errors='replace')[:200]}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split()[4]


def _loops() -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield f"{backing.parts[3]} {backing.read_text().strip()}"


def _sockets() -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        columns = line.split(maxsplit=7)
        if len(columns) == 8:
            yield columns[7]


def _cgroups(scope: Scope) -> Iterator[str]:
    top = cgroup.root()
    for made in top.iterdir() if top else ():
        if scope.has_name(made.name) and made.is_dir():
            yield from (str(path) for path in [made, *made.rglob("*/")])


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.name for entry in directory.iterdir()]
    return []
