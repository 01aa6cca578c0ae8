"""How a QEMU process comes up: sockets made first, the spawn, the first greeting or the last words.

What does not live here: what follows once it has greeted (``driver``).
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import re
import struct
import termios
import time
from collections.abc import Coroutine
from pathlib import Path

from controller.errors import Blocked, Retry
from controller.host.process import Process, Sandbox, spawn
from controller.vmm.machine import CHANNEL_SOCKET, Launch, Machine, socket_path
from controller.vmm.qemu.argv import Descriptors, argv, ending_file
from controller.vmm.qemu.monitor import listen

MONITOR_SOCKET = "qmp.sock"
PEOPLE_SOCKET = "people.sock"
GREETING_SECONDS = 30.0  # 0.05 on an idle host; a crowded one pages in the binary

_LAST_WORDS_SECONDS = 1.0  # for the log's keeper to write what it has read
_LAST_WORDS_BYTES = 4096
_LINE_LENGTH = 300
# The world may change by itself: not the arguments' fault.
_PASSING = re.compile(
    r"Cannot allocate memory|lock|temporarily unavailable|No space left|Too many open files"
    r"|Interrupted system call",
    re.IGNORECASE,
)
_TIMESTAMP = re.compile(r"^\S+Z ")


async def spawn_vmm(
    binary: str, machine: Machine, launch: Launch, newest: str, tb_size: int
) -> Process:
    """Start QEMU for ``machine``, of machine type ``newest`` if it names none.

    Raises Blocked, Retry as ``host.process.spawn``; Blocked for a run_dir too long for sockets.
    """
    machine = dataclasses.replace(machine, machine_type=machine.machine_type or newest)
    with contextlib.ExitStack() as stack:
        sockets = []
        try:
            for name in (MONITOR_SOCKET, PEOPLE_SOCKET, CHANNEL_SOCKET):
                listener = stack.enter_context(listen(socket_path(machine.run_dir, name)))
                sockets.append(listener.fileno())
            _prepare_ending(machine.run_dir, launch)
        except OSError as error:
            raise Retry(
                f"cannot prepare {machine.run_dir}: {error.strerror}", reason="CannotStart"
            ) from error
        monitor, people, channel = sockets
        fds = Descriptors(
            monitor, people, channel, launch.workload_log, launch.console_log, launch.report
        )
        # A VMM that waits for its log would be a frozen guest.
        os.set_blocking(launch.vmm_log, False)
        words = argv(binary, machine, fds, tb_size=tb_size)
        return await spawn(
            words,
            sandbox=Sandbox(launch.uid, launch.gid, launch.groups, cgroup=launch.cgroup),
            pass_fds=(
                *dataclasses.astuple(fds),
                launch.vmm_log,
                launch.run_lock,
                *launch.keep_open,
            ),
            stdout=launch.vmm_log,
            stderr=launch.vmm_log,
            env=dict(launch.environment) or None,
        )


async def greeted(process: Process, greeting: Coroutine[None, None, None], launch: Launch) -> None:
    """Return when ``greeting`` is done. Raises as it does, or for a process that died first:
    Blocked (the VMM refused its arguments) or Retry, with its last line."""
    before = _size(launch.vmm_log_file)
    hello = asyncio.ensure_future(greeting)
    death = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({hello, death}, return_when=asyncio.FIRST_COMPLETED)
        if not death.done() and hello.exception() is not None:
            # Most often its sockets go a moment before the process itself.
            await asyncio.wait({death}, timeout=1.0)
        if death.done():
            raise await _stillborn(death.result(), launch, before)
        await hello
    finally:
        for task in (hello, death):
            task.cancel()
        await asyncio.gather(hello, death, return_exceptions=True)


async def _stillborn(code: int | None, launch: Launch, before: int) -> Blocked | Retry:
    line = await asyncio.to_thread(_last_words, launch, before)
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    text = f"the VMM ended at its start ({how}): {line or 'it said nothing; see the VMM log'}"
    if code is not None and code > 0 and not _PASSING.search(line):
        return Blocked(text, reason="VmmRefused")
    return Retry(text, reason="VmmDiedAtStart")


def _last_words(launch: Launch, before: int) -> str:
    """The last line the VMM wrote, once the keeper of its log has written it. Blocking, bounded."""
    if launch.vmm_log_file is None:
        return ""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
        if _unread(launch.vmm_log) == 0 and _size(launch.vmm_log_file) != before:
            break
        time.sleep(0.01)
    try:
        with launch.vmm_log_file.open("rb") as file:
            file.seek(max(0, _size(launch.vmm_log_file) - _LAST_WORDS_BYTES))
            tail = file.read(_LAST_WORDS_BYTES)
    except OSError:
        return ""
    lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
    words = _TIMESTAMP.sub("", lines[-1]) if lines else ""
    return "".join(c for c in words if c.isprintable())[:_LINE_LENGTH]


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


def _unread(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0
