"""Where things lie on this host. Paths are made of UIDs and numbers, never of a user's text.

State directory (survives a reboot), one folder for each Instance::

    <uid>/record.json      root 0600
    <uid>/run.lock         root 0600; held = a VMM lives
    <uid>/config.img       root:vmm 0440; read by the VMM, written before each boot
    <uid>/snap.N/          root 0700; the manifest of the snapshot of disk generation N
    <uid>/disk/overlay.raw vmm 0600 in a directory 0700 of the VMM's uid
    <uid>/log/             root 0750; written by the log keeper only: workload.log, vmm.log,
                           run-<epoch>-<run>/{console,report}.log

Run directory (tmpfs): one folder for each VMM, ``<8 of the uid>.<epoch>.<run>/``, owned by the
VMM's uid; sockets only. Nothing the agent reads back as truth lies where a VMM can write.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from controller.core.names import checked_uid, is_uid, run_name
from controller.node.record import Record


@dataclass(frozen=True)
class Places:
    """Every path of one node agent."""

    state: Path
    run: Path

    @property
    def instances(self) -> Path:
        """The folders of all Instances."""
        return self.state / "instances"

    @property
    def images(self) -> Path:
        """The image store."""
        return self.state / "images"

    @property
    def kernels(self) -> Path:
        """The guest kernels."""
        return self.state / "kernels"

    @property
    def memory(self) -> Path:
        """The memory store."""
        return self.state / "memory"

    @property
    def socket(self) -> Path:
        """The agent's own socket, for the command line."""
        return self.run / "agent.sock"

    def uids(self) -> set[str]:
        """The UIDs that have a folder here, with a record or without."""
        return {path.name for path in self.instances.iterdir() if is_uid(path.name)}

    def instance(self, uid: str) -> Path:
        """Everything durable of one Instance."""
        return self.instances / checked_uid(uid)

    def lock(self, uid: str) -> Path:
        """Its run lock."""
        return self.instance(uid) / "run.lock"

    def config(self, uid: str) -> Path:
        """Its config disk."""
        return self.instance(uid) / "config.img"

    def disks(self, uid: str) -> Path:
        """The directory of its writable disks."""
        return self.instance(uid) / "disk"

    def overlay(self, uid: str) -> Path:
        """Its writable disk."""
        return self.disks(uid) / "overlay.raw"

    def logs(self, uid: str) -> Path:
        """The directory of its log streams."""
        return self.instance(uid) / "log"

    def run_logs(self, record: Record) -> Path:
        """Console and report of its current run; those of the run before are kept beside."""
        return self.logs(record.uid) / f"run-{record.epoch}-{record.run}"

    def run_of(self, record: Record) -> Path:
        """The run directory of its current VMM."""
        return self.run / run_name(record.uid, record.epoch, record.run)


def make_owned(path: Path, uid: int, mode: int) -> None:
    """Make a directory (or take an existing one) with that owner and mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(path, uid, uid)
    path.chmod(mode)
