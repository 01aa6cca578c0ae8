"""What a driver's tests need around it: run directories, pipes, locks, and the end of it all."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from controller.core.desired import Hardware
from controller.host import runlock
from controller.host.process import Identity
from controller.vmm.driver import Driver, EventKind, Handle
from controller.vmm.held import kill
from controller.vmm.hollow import HollowDriver
from controller.vmm.machine import CHANNEL_SOCKET, Launch, Machine
from controller.vmm.qemu.driver import QemuDriver
from tests.node import testguest
from tests.waiting import unmount

MIB = 1024 * 1024
VMM_UID = 231_999


@dataclass
class Run:
    """One run directory with everything a start needs, and what was started there."""

    machine: Machine
    launch: Launch
    lock_path: Path
    outputs: dict[str, int]  # read ends
    handle: Handle | None = None

    def read(self, name: str) -> bytes:
        """What arrived on a pipe since the last look."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.outputs[name], 65536):
                data += more
        return data

    @property
    def channel(self) -> Path:
        """The guest's channel."""
        return self.machine.run_dir / CHANNEL_SOCKET

    @property
    def locked(self) -> bool:
        """Whether a VMM of this run lives."""
        return runlock.probe(self.lock_path) is runlock.LockState.HELD


class Rig:
    """Makes runs for one kind of driver, and ends whatever was started in them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.home = Path(tempfile.mkdtemp(prefix="trp-", dir="/tmp"))  # short: unix sockets
        self.home.chmod(0o755)
        self.faults = self.home / "faults"
        self.faults.mkdir()
        self.small = self.home / "small"  # a file system that is soon full
        self.small.mkdir()
        _run("mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "none", str(self.small))
        self.runs: list[Run] = []
        self._fds: list[int] = []
        if kind == "qemu":
            self.kernel, self.initrd = testguest.install(self.home)
        else:
            self.kernel = self.initrd = self.home / "none"

    def driver(self) -> Driver:
        """A new driver, as a new agent makes it."""
        return QemuDriver() if self.kind == "qemu" else HollowDriver(self.faults)

    def run(self, **changes: object) -> Run:
        """A fresh run of a fresh Instance; ``changes`` go into its Machine."""
        uid = str(uuid.uuid4())
        run_dir = self.home / uid[:8]
        run_dir.mkdir()
        os.chown(run_dir, VMM_UID, VMM_UID)
        machine = Machine(
            uid=uid,
            name=f"test/{uid[:8]}",
            hardware=Hardware(self.kind, 1, 128 * MIB, 0),
            threads_per_core=1,
            machine_type="",
            accelerator="tcg",
            kernel=self.kernel,
            initrd=self.initrd,
            command_line=testguest.COMMAND_LINE,
            memory_image=None,
            disks=(),
            run_dir=run_dir,
        )
        machine = dataclasses.replace(machine, **changes)  # type: ignore[arg-type]
        lock_path = self.home / f"{uid[:8]}.lock"
        run = self._with_pipes(machine, lock_path)
        self.runs.append(run)
        return run

    def forget_ours(self, run: Run) -> None:
        """Close what the agent closes after a start: then only the VMM holds its lock."""
        os.close(run.launch.run_lock)
        self._fds.remove(run.launch.run_lock)

    async def start(self, driver: Driver, run: Run) -> Handle:
        """Start and let go of the lock, as the agent does."""
        try:
            run.handle = await driver.start(run.machine, run.launch)
        finally:
            self.forget_ours(run)
        return run.handle

    async def end(self) -> None:
        """Kill every VMM of this rig; nothing of it is left."""
        for run in self.runs:
            if run.handle is not None:
                await kill(run.handle)
            elif holder := runlock.holder(run.lock_path):
                await kill(Handle(run.machine.uid, holder, run.machine.run_dir))

    def make_space(self) -> None:
        """The full file system is full no more."""
        _run("mount", "-o", "remount,size=16m", str(self.small))

    def close(self) -> None:
        """Give back descriptors and files."""
        for fd in self._fds:
            os.close(fd)
        unmount(str(self.small))
        shutil.rmtree(self.home)

    def _with_pipes(self, machine: Machine, lock_path: Path) -> Run:
        lock = runlock.acquire(lock_path)
        assert lock is not None
        ends = {name: os.pipe2(os.O_CLOEXEC) for name in ("workload", "console", "vmm", "report")}
        for read, write in ends.values():
            os.set_blocking(read, False)
            self._fds += [read, write]
        self._fds.append(lock)
        launch = Launch(
            uid=VMM_UID,
            gid=VMM_UID,
            run_lock=lock,
            workload_log=ends["workload"][1],
            console_log=ends["console"][1],
            vmm_log=ends["vmm"][1],
            report=ends["report"][1],
            keep_open=tuple(read for read, _ in ends.values()),
        )
        return Run(machine, launch, lock_path, {name: read for name, (read, _) in ends.items()})


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=20)


@dataclass
class Heard:
    """A listener that remembers."""

    events: list[tuple[str, EventKind]] = field(default_factory=list)

    def __call__(self, uid: str, kind: EventKind) -> None:
        self.events.append((uid, kind))

    def has(self, run: Run, kind: EventKind) -> bool:
        """Whether this was told of that run."""
        return (run.machine.uid, kind) in self.events


@contextlib.contextmanager
def keeper_of(run: Run, path: Path) -> Iterator[Path]:
    """A stand-in for the log keeper: writes what the VMM says to ``path`` while this lasts."""
    stop = threading.Event()

    def keep() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(run.read("vmm"))
                stop.wait(0.01)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield path
    finally:
        stop.set()
        thread.join()


def sparse(path: Path, size: int) -> Path:
    """A disk of holes that the VMM may write."""
    with path.open("wb") as file:
        file.truncate(size)
    os.chown(path, VMM_UID, VMM_UID)
    return path


def status_of(who: Identity) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    lines = Path(f"/proc/{who.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
