"""A cluster for one show: made in a directory of its own, taken down whatever happens, and proven
gone.

What does not live here: the show (``demo``), and how a cluster starts and ends (``torpor up`` and
``torpor down``, which are called as a person calls them).
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from controller.cli.narrator import Narrator
from controller.errors import Blocked, TorporError
from controller.host import process
from controller.host.process import Identity
from controller.local import install as installs
from controller.local import probe, state, takedown
from controller.local.cluster import state_path
from controller.local.install import Install

PREFIX = "torpor-demo-"
OWNER = "owner.json"  # who made the directory: when that process is gone, it is waste
BESIDE_TMP = (Path("/var/tmp"), Path("/var/lib"))
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Stage:
    """One directory under which everything is: ``cluster`` is what ``torpor up --dir`` gets."""

    base: Path

    @property
    def cluster(self) -> Path:
        return self.base / "cluster"

    @property
    def environment(self) -> dict[str, str]:
        """What a person exports after ``torpor up``; ``torpor`` itself is this very one."""
        places = [str(self.cluster / "bin"), str(Path(sys.executable).parent)]
        return {
            "KUBECONFIG": str(self.cluster / "kubeconfig"),
            "TORPOR_DIR": str(self.cluster),
            "PATH": os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]),
        }

    @property
    def install(self) -> Install | None:
        return installs.load(self.cluster)


@dataclass(frozen=True)
class Traces:
    """What a cluster has on this host, noted while it is up, to be looked for afterwards."""

    processes: tuple[tuple[str, Identity], ...]
    install: Install | None
    base: Path

    def left(self) -> list[str]:
        """What of it is still there, a line for each."""
        found = [f"{name} (pid {who.pid})" for name, who in self.processes
                 if process.is_alive(who)]  # fmt: skip
        if self.install is not None:
            found += [f"a guest's process (pid {pid})" for pid in takedown.guests(self.install)]
            for place in (self.install.directory, self.install.run_dir):
                found += [f"mount {point}" for point in takedown.mounts_below(place)]
            if self.install.run_dir.exists():
                found.append(str(self.install.run_dir))
            found += [str(path) for path in CGROUPS.glob(f"**/torpor-{self.install.id}-*")]
        if self.base.exists():
            found.append(str(self.base))
        return found


@contextmanager
def stage(narrator: Narrator) -> Iterator[tuple[Stage, Narrator]]:
    """A directory for a cluster, and a narrator whose commands mean that one.

    At the end: down, purged, removed, checked. When something goes wrong inside, logs are kept and
    the message says where. Raises Blocked when something could not be removed.
    """
    base = Path(tempfile.mkdtemp(prefix=PREFIX, dir=reachable_place()))
    base.chmod(0o711)
    made = Stage(base)
    (base / OWNER).write_text(json.dumps(asdict(process.identity(os.getpid()))))
    try:
        yield made, replace(narrator, environment=made.environment)
    except BaseException as err:
        kept = keep_logs(made) if isinstance(err, Exception) else None
        ending = _strike_too(made, narrator)
        if isinstance(err, Exception):
            said = [str(err), f"logs: {kept}" if kept else "", ending]
            raise TorporError("; ".join(filter(None, said))) from err
        if ending:
            raise TorporError(f"interrupted; {ending}") from err
        raise
    strike(made, narrator)


def strike(made: Stage, narrator: Narrator) -> None:
    """Take everything down. Raises Blocked naming what is left."""
    traces = traces_of(made)
    if traces.install is not None:
        owner = replace(narrator, environment=made.environment)
        owner.run("torpor", "down", "--purge", meanwhile="taking it down")
    shutil.rmtree(made.base, ignore_errors=True)
    if left := traces.left():
        raise Blocked(f"left behind: {', '.join(left)}; torpor down --purge --dir {made.cluster}")


def _strike_too(made: Stage, narrator: Narrator) -> str:
    """``strike`` after a failure that matters more; what it says when it fails too."""
    try:
        strike(made, narrator)
    except TorporError as err:
        return str(err)
    return ""


def traces_of(made: Stage) -> Traces:
    """What to look for once it is down."""
    running = state.read(state_path(made.cluster))
    entries = [(e.name, e.who) for e in running.processes if e.who] if running else []
    if running is not None and running.supervisor is not None:
        entries.append(("supervisor", running.supervisor))
    return Traces(tuple(entries), made.install, made.base)


def abandoned() -> list[Stage]:
    """Stages whose process was killed before it could take them down."""
    found = []
    for place in (Path(tempfile.gettempdir()), *BESIDE_TMP):
        for base in place.glob(f"{PREFIX}*"):
            try:
                owner = Identity(**json.loads((base / OWNER).read_text()))
            except (OSError, ValueError, TypeError):
                continue  # not ours, or being made right now
            if not process.is_alive(owner):
                found.append(Stage(base))
    return found


def reachable_place() -> Path:
    """Where temporary things go that VMMs can reach, under any uid. Raises Blocked."""
    candidates = (Path(tempfile.gettempdir()), *BESIDE_TMP)
    for place in candidates:
        if all(map(is_open, (place, *place.parents))):
            return place
    raise Blocked(f"none of {', '.join(map(str, candidates))} is open to other users; chmod o+x")


def is_open(directory: Path) -> bool:
    """Whether every uid can pass through."""
    return bool(directory.stat().st_mode & 0o001)


def registry_port() -> int:
    """The usual one, which the examples name, or any when somebody has it."""
    usual = installs.REGISTRY_PORT
    return usual if probe.is_free(usual) else 0


def keep_logs(made: Stage) -> Path | None:
    """Copy what explains a failure to where it outlives the stage; None when there is nothing."""
    if not (made.cluster / "log").exists():
        return None
    kept = Path(tempfile.mkdtemp(prefix=f"{PREFIX}log-"))
    shutil.copytree(made.cluster / "log", kept, dirs_exist_ok=True)
    for log in made.cluster.glob("nodes/*/state/instances/*/log"):
        shutil.copytree(log, kept / "instances" / log.parent.name, dirs_exist_ok=True)
    return kept
