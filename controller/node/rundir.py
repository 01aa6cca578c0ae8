"""The run directory: sockets of this boot, on a tmpfs, so that nothing in it outlives the kernel.

Where the given place is not on a tmpfs one is mounted on it; ``torpor down`` unmounts it again.
"""

import ctypes
import os
from pathlib import Path

from controller.core.names import SOCKET_PATH_MAX
from controller.errors import Blocked, Rejected

_TMPFS_MAGIC = 0x01021994
# "/" + 8 of the UID + epoch and run of up to ten digits each + "/people.sock"
_LONGEST_SOCKET = 1 + 8 + 11 + 11 + 12
_SIZE = b"size=64m,mode=0711,nr_inodes=65536"


def prepare(path: Path) -> None:
    """Make ``path`` a directory on a tmpfs, mode 0711. Raises Rejected or Blocked."""
    if not path.is_absolute() or len(str(path)) + _LONGEST_SOCKET > SOCKET_PATH_MAX:
        raise Rejected(
            f"run_dir {path}: sockets in it would exceed {SOCKET_PATH_MAX} bytes; use a short "
            "absolute path such as /run/torpor"
        )
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    if not is_tmpfs(path):
        _mount(path)
    path.chmod(0o711)


def is_tmpfs(path: Path) -> bool:
    """Whether ``path`` lies on a tmpfs."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()  # struct statfs is 15 longs; f_type comes first
    if libc.statfs(os.fsencode(path), buffer) != 0:
        raise Blocked(f"run_dir {path}: {os.strerror(ctypes.get_errno())}")
    return buffer[0] == _TMPFS_MAGIC


def _mount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    nosuid_nodev_noexec = 2 | 4 | 8
    if libc.mount(b"torpor", os.fsencode(path), b"tmpfs", nosuid_nodev_noexec, _SIZE) != 0:
        why = os.strerror(ctypes.get_errno())
        raise Blocked(f"run_dir {path} is not on a tmpfs and none can be mounted there: {why}")
