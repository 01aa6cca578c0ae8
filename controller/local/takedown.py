"""Taking a cluster down, from any process: guests first if asked, then processes, then traces.

Works on what ``install.json`` and ``state.json`` say, so it does not matter whether the supervisor
still lives. What does not live here: how an agent stops its guests; it is asked over its socket.
"""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from controller.errors import Blocked, Timeout
from controller.host import cgroup
from controller.host.process import Gone, identity, kill
from controller.local import state
from controller.local.cluster import state_path
from controller.local.install import UID_BLOCK, UIDS_PER_NODE, Install
from controller.local.process import terminate

DRAIN_SECONDS = 300.0
SUPERVISOR_SECONDS = 90.0
AGENT_SECONDS = 15.0
Progress = Callable[[str], None]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("agent", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DRAIN_SECONDS)
        self.sock.connect(str(self._path))


def drain(install: Install, progress: Progress) -> None:
    """Let every agent stop its guests gracefully; returns when they are stopped.

    Raises Blocked when guests live on a node whose agent does not answer or could not stop them.
    """
    progress("stopping the guests")
    running = state.read(state_path(install.directory))
    # an agent that crashed just now is back in a moment, if there is somebody to restart it
    patience = AGENT_SECONDS if running is not None and running.supervised else 0.0
    with ThreadPoolExecutor(install.options.nodes) as pool:
        list(
            pool.map(
                lambda number: _drain_node(install, number, patience), range(install.options.nodes)
            )
        )


def end_processes(directory: Path, progress: Progress) -> None:
    """End the supervisor and with it its processes, or the processes themselves if it is dead."""
    running = state.read(state_path(directory))
    if running is not None and running.supervisor is not None and running.supervised:
        progress("stopping the cluster")
        # its own end takes as long as its slowest child's; a SIGKILL would leave those behind
        terminate(running.supervisor, SUPERVISOR_SECONDS)
    left = state.read(state_path(directory))
    if left is not None:
        left.end()
        state_path(directory).unlink(missing_ok=True)


def end_guests(install: Install) -> None:
    """End by force what lives of the guests, log keepers follow. Only where their disks go next.

    Raises Blocked when one does not die.
    """
    deadline = time.monotonic() + AGENT_SECONDS
    while left := guests(install):
        for pid in left:
            with suppress(Gone):
                who = identity(pid)
                if pid in guests(install):  # still that process, and still one of ours
                    kill(who, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Blocked(f"guests do not die (pids {left}); see the kernel log, then purge again")
        time.sleep(0.05)


def remove_run_dir(install: Install) -> None:
    """Unmount and remove the agents' run directories, and their empty cgroups.

    Only when no guest lives: a live one's sockets are in there.
    """
    if left := guests(install):
        raise Blocked(f"guests still run (pids {left}); torpor up, then torpor down --guests stop")
    for mount in mounts_below(install.run_dir):
        _unmount(mount)
    for number in range(install.options.nodes):
        cgroup.remove_prefix(install.node_settings(number).cgroup_prefix)
    shutil.rmtree(install.run_dir, ignore_errors=True)
    with suppress(OSError):  # another install's is in use
        install.run_dir.parent.rmdir()


def purge(install: Install) -> None:
    """Remove the directory and everything in it."""
    for mount in mounts_below(install.directory):
        _unmount(mount)
    shutil.rmtree(install.directory)


def guests(install: Install, number: int | None = None) -> list[int]:
    """Pids with a uid of this install, or of its node ``number`` alone: VMMs, nothing else is."""
    first = install.uid_base(number or 0)
    count = UID_BLOCK if number is None else UIDS_PER_NODE
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and first <= _uid(entry) < first + count:
            found.append(int(entry.name))
    return sorted(found)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or under a directory, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return [point for point in reversed(points) if point.is_relative_to(directory)]


def _uid(process: Path) -> int:
    """The real uid; -1 for a process that has ended. (The owner of /proc/PID may be root.)"""
    try:
        for line in (process / "status").read_text().splitlines():
            if line.startswith("State:") and line.split()[1] in ("Z", "X"):
                return -1  # dead; whoever has to reap it, maybe PID 1, takes its time
            if line.startswith("Uid:"):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return -1


def _drain_node(install: Install, number: int, patience: float) -> None:
    settings = install.node_settings(number)
    path = settings.run_dir / "agent.sock"
    deadline = time.monotonic() + patience
    while (answer := _ask_drain(path)) is None:
        if not guests(install, number):
            return  # no agent, and nothing for it to stop
        if time.monotonic() > deadline:
            raise Blocked(
                f"{settings.node_name}: guests run but the agent does not answer on {path}; "
                "torpor up again, or torpor down --guests leave, or --purge to lose them"
            )
        time.sleep(0.2)
    status, text = answer
    if status != 200:
        raise Blocked(f"{settings.node_name}: the agent could not stop its guests: {text[:300]}")


def _ask_drain(path: Path) -> tuple[int, str] | None:
    """Status and text of the answer; None when nobody listens. Raises Timeout."""
    connection = _UnixConnection(path, DRAIN_SECONDS)
    try:
        body = json.dumps({"guests": "stop"})
        connection.request("POST", "/drain", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(4096).decode(errors="replace")
    except TimeoutError as err:
        raise Timeout(f"guests do not stop within {DRAIN_SECONDS:g} s ({path})") from err
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _unmount(point: Path) -> None:
    done = subprocess.run(
        ["umount", str(point)], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise Blocked(f"cannot unmount {point}: {done.stderr.strip()}; see who uses it: fuser -m")
