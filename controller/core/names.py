"""Names on the host, made of the Instance's UID and of numbers, never of a user's text.

Pure rules; what is found under a name lives in ``host`` and ``node``. A Unix socket's path must
stay within 107 bytes, so run directories are short: 8 hex digits of the UID, epoch and run.
"""

from uuid import UUID

from controller.errors import Rejected

FINALIZER = "torpor.dev/instance"
NODE_LABEL = "torpor.dev/node"
UID_LABEL = "torpor.dev/instance-uid"
SOURCE_LABEL = "torpor.dev/source-uid"  # of a fork's reservation: where it was made to be forked
SOCKET_PATH_MAX = 107  # sun_path, less its terminating zero


def checked_uid(uid: str) -> str:
    """``uid`` when it is a canonical UUID, which is safe as a file name. Raises Rejected."""
    if is_uid(uid):
        return uid
    raise Rejected(f"{uid[:64]!r} is not a canonical UUID; nothing is named after it")


def is_uid(name: str) -> bool:
    """Whether ``name`` is a canonical UUID, as a folder of an Instance is called."""
    try:
        return str(UUID(name)) == name
    except (ValueError, AttributeError):
        return False


def short_uid(uid: str) -> str:
    """The first 8 hex digits of a UID; enough to tell Instances of one node apart in a path."""
    return checked_uid(uid)[:8]


def run_name(uid: str, epoch: int, run: int) -> str:
    """The name of the run directory of one VMM: no two runs ever share one."""
    return f"{short_uid(uid)}.{epoch}.{run}"


def reservation_name(name: str, uid: str) -> str:
    """The reservation Pod of an Instance: ``<name>-<8 of the UID>``, at most 253 characters."""
    return f"{name[:244]}-{short_uid(uid)}"


def machine_id(uid: str) -> str:
    """The guest's /etc/machine-id: the UID as 32 hex digits (machine-id(5))."""
    return checked_uid(uid).replace("-", "")


def node_lease(node: str) -> str:
    """The Lease by which the operator knows that the agent of that node is alive."""
    return f"node-{node}"
