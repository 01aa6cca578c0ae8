"""Who this node agent is, and the refusal to be somebody else on the same state directory.

The state directory remembers node name, install id and cluster (the UID of kube-system). An agent
that is started with another of these on it would read every Instance there as an orphan, so it does
not start and touches nothing. A lock keeps a second agent off the same directory.
"""

import fcntl
import json
import os
from pathlib import Path

from controller.errors import Blocked, Rejected
from controller.host import files
from controller.kube.client import Client
from controller.kube.resources import NAMESPACES
from controller.settings import NodeSettings

NAME = "identity.json"


def lock(state: Path) -> int:
    """Take the agent's lock on the state directory. Raises Blocked when another agent has it."""
    fd = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)
        raise Blocked(
            f"another node agent works on {state}; end it first, or name another state_dir",
            reason="AlreadyRunning",
        ) from err
    return fd


async def cluster_uid(client: Client) -> str:
    """The UID of the kube-system namespace: the customary identity of a cluster."""
    found = await client.get(NAMESPACES, "kube-system")
    if found is None:
        raise Blocked("the cluster has no kube-system namespace; is this a Kubernetes API server?")
    return str(found["metadata"]["uid"])


def check(state: Path, settings: NodeSettings, cluster: str | None) -> None:
    """Compare with what the directory remembers; with a ``cluster`` it learns what it lacks.

    ``cluster`` None: the API server was not asked yet. Raises Blocked; nothing was touched then.
    """
    path = state / NAME
    mine = {"node_name": settings.node_name, "install_id": settings.install_id}
    if cluster is not None:
        mine["cluster"] = cluster
    before = _remembered(path)
    for key, value in mine.items():
        if before.get(key, value) != value:
            raise Blocked(
                f"{path} belongs to {key} {before[key]!r}, this agent is {value!r}: start it "
                "with its own state_dir; nothing was touched",
                reason="IdentityMismatch",
            )
    if before != {**before, **mine}:
        files.write_atomic(path, json.dumps(mine, indent=1).encode())


def _remembered(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        if any((path.parent / "instances").glob("*/record.json")):
            raise Blocked(
                f"{path} is missing, yet Instances lie beside it: put it back before anything else",
                reason="IdentityLost",
            ) from None
        return {}
    except ValueError as err:
        raise Blocked(f"{path} cannot be read ({err}): restore it", reason="IdentityLost") from err
    return dict(found)


def check_reachable(state: Path) -> None:
    """Every directory above ``state`` must let an unprivileged VMM through. Raises Rejected."""
    for parent in (state, *state.parents):
        if not parent.stat().st_mode & 0o001:
            raise Rejected(
                f"state_dir {state}: {parent} is closed to other users, so no VMM could open its "
                f"disks; choose a place such as /var/lib/torpor, or chmod o+x {parent}"
            )
