"""One cgroup for each VMM, in the unified hierarchy, where the host lets us make one.

It is there so that a VMM never lives in the cgroup of whoever started us, and so that everything
in it can be killed at once. Where no cgroup2 is writable there is none, and all else still works:
``path`` is None. What does not live here: who joins (``spawn`` does, before it executes anything).
"""

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from controller.errors import Retry
from controller.host.files import failed

_LIMITS = frozenset({"cpu", "memory", "pids"})
_REMOVE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup; ``path`` is its directory, None where there are none to be had."""

    path: Path | None

    @classmethod
    def at(cls, prefix: str, name: str) -> "Cgroup":
        """Return the cgroup ``prefix``/``name``, made or not."""
        top = root()
        return cls(None if top is None else top / prefix / name)

    @classmethod
    def create(cls, prefix: str, name: str) -> "Cgroup":
        """Return it, made if it was not there; without a path where the host refuses."""
        made = cls.at(prefix, name)
        if made.path is None:
            return made
        try:
            made.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return cls(None)
            raise failed("make cgroup", made.path, error) from error
        return made

    def pids(self) -> list[int]:
        """Return who is in it (not in what is below)."""
        if self.path is None:
            return []
        with contextlib.suppress(FileNotFoundError):
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        return []

    def kill(self) -> None:
        """Kill everything in it and below, at once and for certain. Raises Retry.

        Death follows in milliseconds; wait for it elsewhere. Nothing there is success.
        """
        if self.path is None:
            return
        try:
            (self.path / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            if self.path.exists():
                text = f"cannot kill cgroup {self.path}: the kernel is older than 5.14"
                raise Retry(text, reason="NoCgroupKill") from None
        except OSError as error:
            raise failed("kill cgroup", self.path, error) from error

    def remove(self) -> None:
        """Remove it; nothing there is success. Raises Retry (reason Busy) while anything lives."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self.path is not None:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                # The kernel lets go a moment after the last process died.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise Retry(
                        f"cannot remove cgroup {self.path}: {error.strerror};"
                        f" in it: {self.pids() or 'nobody'}",
                        reason="Busy",
                    ) from error
                time.sleep(0.005)
            else:
                return


def remove_prefix(prefix: str) -> None:
    """Remove the cgroup that held the others, and what it holds. Raises Retry while one lives."""
    top = Cgroup.at(prefix, ".")
    if top.path is not None and top.path.is_dir():
        for below in top.path.iterdir():
            if below.is_dir():  # of a VMM that died while no agent was there to clear up
                Cgroup(below).remove()
    top.remove()


@lru_cache(maxsize=1)
def root() -> Path | None:
    """Return where the unified hierarchy is mounted; None when it is not, or not for us."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            mounted = Path(fields.split()[4])
            return mounted if os.access(mounted, os.W_OK) else None
    return None


def limits() -> str:
    """Return which limits cgroups can set here: "full" (cpu, memory, pids), "partial" or "none"."""
    top = root()
    if top is None:
        return "none"
    have = _LIMITS & set((top / "cgroup.controllers").read_text().split())
    return "full" if have == _LIMITS else "partial" if have else "none"
