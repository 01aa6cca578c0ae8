"""The spawn of a QEMU process: sockets and files first, then its arguments.

What does not live here: the arguments themselves (``argv``), and what follows the spawn.
"""

import dataclasses
import os
from pathlib import Path

from controller.errors import Retry
from controller.host.process import Process, Sandbox, spawn
from controller.vmm.birth import sockets
from controller.vmm.machine import CHANNEL_SOCKET, Launch, Machine
from controller.vmm.qemu.argv import Descriptors, argv, ending_file

MONITOR_SOCKET = "qmp.sock"
PEOPLE_SOCKET = "people.sock"


async def spawn_vmm(
    binary: str, machine: Machine, launch: Launch, newest: str, tb_size: int
) -> Process:
    """Start QEMU for ``machine``, of machine type ``newest`` if it names none.

    Raises Blocked, Retry as ``host.process.spawn``; Blocked for a run_dir too long for sockets.
    """
    machine = dataclasses.replace(machine, machine_type=machine.machine_type or newest)
    try:
        _prepare_ending(machine.run_dir, launch)
    except OSError as error:
        text = f"cannot prepare {machine.run_dir}: {error.strerror}"
        raise Retry(text, reason="CannotStart") from error
    with sockets(machine.run_dir, (MONITOR_SOCKET, PEOPLE_SOCKET, CHANNEL_SOCKET)) as listeners:
        monitor, people, channel = listeners
        fds = Descriptors(
            monitor, people, channel, launch.workload_log, launch.console_log, launch.report
        )
        # A VMM that waits for its log would be a frozen guest.
        os.set_blocking(launch.vmm_log, False)
        return await spawn(
            argv(binary, machine, fds, tb_size=tb_size),
            sandbox=Sandbox(launch.uid, launch.gid, launch.groups, cgroup=launch.cgroup),
            pass_fds=(*dataclasses.astuple(fds), launch.run_lock, *launch.keep_open),
            stdout=launch.vmm_log,
            stderr=launch.vmm_log,
            env=dict(launch.environment) or None,
        )


def _prepare_ending(run_dir: Path, launch: Launch) -> None:
    """An empty file that only this VMM may write: it notes there that its guest powered off."""
    path = ending_file(run_dir)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, launch.uid, launch.gid)
    finally:
        os.close(fd)
