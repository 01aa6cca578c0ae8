"""Hollow VMMs by the thousand: one process that holds all their locks. For tests only.

What does not live here: what one hollow VMM is (``hollow``).
"""

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
from pathlib import Path

from controller.errors import Blocked, Retry
from controller.host.process import Identity, Process, Sandbox, identity, spawn
from controller.vmm import hollow_program
from controller.vmm.birth import sockets
from controller.vmm.driver import EventKind, Handle
from controller.vmm.hollow import HollowDriver
from controller.vmm.hollow_link import LINE_BYTES, SECONDS
from controller.vmm.machine import Launch, Machine, socket_path

SOCKET = "herd.sock"


class HollowHerd(HollowDriver):
    """All VMMs in one process, which holds their locks: for thousands. ``home``: its socket's.

    Their identity is the herd's, so ``kill`` is a command here, and the end of one VMM shows as the
    end of its monitor. All run under the uid and the groups of the first. Of those that map one
    image none can sleep: nobody could tell whose memory is whose (``save`` raises Blocked).
    """

    name = "hollow-herd"

    def __init__(self, home: Path, faults: Path | None = None) -> None:
        super().__init__(faults)
        self._home = home

    async def kill(self, handle: Handle) -> None:
        """As the contract says, but by command."""
        with contextlib.suppress(Retry):
            await self._ask(handle, "kill")
        await self.release(handle.uid)

    def _lost(self, handle: Handle) -> None:
        self._tell(handle.uid, EventKind.DIED)

    async def _spawn(self, machine: Machine, launch: Launch, listeners: list[int]) -> Process:
        who = await self._herd(launch)
        config, fds = self._config(machine, launch, listeners)
        answer = await asyncio.to_thread(self._hand_over, json.dumps(config).encode(), fds)
        if answer != "ok":
            raise Blocked(f"the herd refused a VMM: {answer}", reason="VmmRefused")
        return Process.adopt(who)

    def _hand_over(self, config: bytes, fds: list[int]) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(SECONDS)
            sock.connect(str(self._home / SOCKET))
            socket.send_fds(sock, [config], fds)
            return sock.recv(LINE_BYTES).decode().strip()

    async def _herd(self, launch: Launch) -> Identity:
        """The herd's process, started if none answers."""
        path = socket_path(self._home, SOCKET)
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(str(path))
            who: bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return identity(int(struct.unpack("iII", who)[0]))
        with sockets(self._home, (SOCKET,)) as (listener,):
            program = hollow_program.opened()
            try:
                process = await spawn(
                    [hollow_program.python(), "-I", "-S", "-", "--herd", str(listener)],
                    sandbox=Sandbox(launch.uid, launch.gid, launch.groups, rlimits=_limits()),
                    pass_fds=(listener,),
                    stdin=program,
                )
            finally:
                os.close(program)
        who_started = process.identity
        process.leave()
        return who_started


def _limits() -> dict[int, int]:
    """As many descriptors as this host lets us give: a VMM holds some twenty of them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: most}
