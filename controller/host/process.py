"""Processes that outlive us: who they are, signals that cannot hit a stranger, their death.

A process is known by (pid, start time, boot id); a pid alone may be somebody else's tomorrow. A
signal goes only through a pidfd that was opened first and compared afterwards: as long as the
start time is the recorded one, the descriptor names that process and can never name another.

What does not live here: starting one (``spawn``), the run lock (``runlock``).
"""

import asyncio
import contextlib
import os
import select
import signal
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from controller.errors import Retry
from controller.host.spawn import Sandbox, launch

__all__ = [
    "Gone",
    "Identity",
    "Process",
    "Sandbox",
    "boot_id",
    "identity",
    "is_alive",
    "kill",
    "open_pidfd",
    "spawn",
    "state_letter",
    "wait_dead",
]


class Gone(Retry):
    """That process does not exist any more, or its pid belongs to another one now."""

    default_reason = "ProcessGone"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever. ``start_time`` is field 22 of /proc/PID/stat, in ticks since boot."""

    pid: int
    start_time: int
    boot_id: str


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> Identity:
    """Return who has ``pid`` now, a zombie included. Raises Gone."""
    return Identity(pid, int(_stat(pid)[19]), boot_id())


def open_pidfd(who: Identity) -> int:
    """Return a pidfd (close-on-exec) that names exactly ``who``, alive or zombie. Raises Gone."""
    if who.boot_id != boot_id():
        raise Gone(f"process {who.pid} belonged to an earlier boot of this host")
    try:
        pidfd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        raise Gone(f"process {who.pid} does not exist") from None
    try:
        now = identity(who.pid)
        if now != who:
            raise Gone(f"pid {who.pid} belongs to another process now (start {now.start_time})")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def is_alive(who: Identity) -> bool:
    """Whether ``who`` still runs. A zombie is dead: it holds no memory, no lock, no descriptor."""
    try:
        pidfd = open_pidfd(who)
    except Gone:
        return False
    try:
        return not _has_exited(pidfd)
    finally:
        os.close(pidfd)


def state_letter(who: Identity) -> str:
    """What /proc says of ``who``: R, S, D, T (stopped), t (traced), Z, …; "" when it is gone.

    The cheapest look there is, some microseconds, for who looks at many often. It proves no death:
    Z is said as soon as the main thread has ended.
    """
    try:
        fields = _stat(who.pid)
    except Gone:
        return ""
    same = int(fields[19]) == who.start_time and who.boot_id == boot_id()
    return fields[0].decode() if same else ""


def kill(who: Identity, sig: signal.Signals) -> None:
    """Send ``sig`` to ``who`` and to nobody else. Raises Gone when it is dead."""
    pidfd = open_pidfd(who)
    try:
        if _has_exited(pidfd):
            raise Gone(f"process {who.pid} has exited")
        signal.pidfd_send_signal(pidfd, sig)
    except ProcessLookupError:
        raise Gone(f"process {who.pid} has exited") from None
    finally:
        os.close(pidfd)


async def wait_dead(pidfd: int) -> None:
    """Return once every thread of the process behind ``pidfd`` has ended. Cancel freely.

    Any number of callers may wait on one pidfd. The caller keeps the descriptor and closes it.
    """
    loop = asyncio.get_running_loop()
    own = os.dup(pidfd)  # the loop keeps one reader per descriptor: ours must be our own
    dead = asyncio.Event()
    loop.add_reader(own, dead.set)
    try:
        await dead.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on. Raises Gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(f"process {pid} does not exist") from None
    # The name in the second field may hold spaces and parentheses: count from its last one.
    return stat[stat.rindex(b")") + 2 :].split()


def _has_exited(pidfd: int) -> bool:
    # A pidfd turns readable when the last thread is gone. The state letter in /proc would say Z as
    # soon as the main thread ended, with the others still at work.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Process:
    """One process we started or found: its identity and a pidfd that this object owns."""

    def __init__(self, who: Identity, pidfd: int) -> None:
        self.identity = who
        self.pidfd = pidfd
        self._exit: int | None = None

    @classmethod
    def adopt(cls, who: Identity) -> "Process":
        """Return the process of that identity, started by whomever. Raises Gone."""
        return cls(who, open_pidfd(who))

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return _has_exited(self.pidfd)

    def signal(self, sig: signal.Signals) -> None:
        """Send ``sig``. Raises Gone when it is dead."""
        if self.dead:
            raise Gone(f"process {self.identity.pid} has exited")
        with contextlib.suppress(ProcessLookupError):  # died just now: the waiter will tell
            signal.pidfd_send_signal(self.pidfd, sig)

    async def wait(self) -> int | None:
        """Return once it is dead, with its exit status as subprocess has it (-N: by signal N).

        None when it is not our child (started by an earlier agent): then only its death is known.
        """
        await wait_dead(self.pidfd)
        if self._exit is None:
            self._exit = self._reap()
        return self._exit

    def leave(self) -> None:
        """Close it and let the running loop reap it when it dies: for a child nobody waits for."""
        pidfd, self.pidfd = self.pidfd, -1
        loop = asyncio.get_running_loop()

        def buried() -> None:
            loop.remove_reader(pidfd)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            os.close(pidfd)

        loop.add_reader(pidfd, buried)

    def close(self) -> None:
        """Let go of it; it lives on. A dead child is reaped."""
        if self.pidfd < 0:
            return
        if self._exit is None and self.dead:
            self._reap()
        os.close(self.pidfd)
        self.pidfd = -1

    def _reap(self) -> int | None:
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


async def spawn(
    argv: list[str],
    *,
    sandbox: Sandbox,
    pass_fds: tuple[int, ...] = (),
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    env: dict[str, str] | None = None,
    cwd: Path = Path("/"),
) -> Process:
    """Start ``argv`` detached, as ``sandbox`` says; it outlives us and a kill -9 of us.

    The child has descriptors 0, 1, 2 (None: /dev/null) and ``pass_fds`` under their own numbers,
    nothing else; ``env`` exactly (default: PATH and a C locale); its own session, no terminal,
    umask 077. The caller's descriptors stay open and close-on-exec. Returns once the launcher
    runs: a program that cannot start shows as an early death with the cause on ``stderr``.
    Cancelled, the child is killed. Raises Blocked (argv[0] is no executable file; uid not ours to
    give), Retry (no process slot).
    """
    work = asyncio.to_thread(launch, argv, sandbox, pass_fds, (stdin, stdout, stderr), env, cwd)
    launching = asyncio.ensure_future(work)
    try:
        pid = await asyncio.shield(launching)
    except asyncio.CancelledError:
        await _undo(launching)
        raise
    # Not reaped yet, by anybody: the pid is still its own, even if it is dead already.
    return Process(identity(pid), os.pidfd_open(pid))


async def _undo(launching: asyncio.Future[int]) -> None:
    """Kill what a cancelled ``spawn`` starts: nobody would ever know of it.

    The thread cannot be stopped, and until it is done it uses descriptors that the caller closes
    next, so that their numbers may mean something else.
    """
    while not launching.done():
        with contextlib.suppress(asyncio.CancelledError):  # again: it takes milliseconds
            await asyncio.wait({launching})
    if launching.exception() is None:
        pid = launching.result()
        child = Process(identity(pid), os.pidfd_open(pid))
        with contextlib.suppress(Gone):
            child.signal(signal.SIGKILL)
        child.leave()
