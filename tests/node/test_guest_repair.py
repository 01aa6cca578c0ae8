"""What a woken or forked guest is told, on a real guest: the time, randomness, who it is now."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Retry
from controller.guest import configdisk
from controller.guest.artifacts import COMMAND_LINE
from controller.guest.channel import Channel
from controller.guest.console import witnessed_exit
from controller.guest.report import GuestExit, Reports, read_reports
from controller.guest.wire import Decoder, Frame, FrameType, Key, encode, pack
from controller.memory.manifest import Manifest
from controller.vmm.machine import Disk
from tests.node import bareguest
from tests.node.lab import Lab, handle
from tests.node.rigs import MIB, VMM_UID, Rig, Run
from tests.waiting import until

pytestmark = pytest.mark.node

GAP = 3.0  # seconds that the guest sleeps at least
ID = "0123456789abcdef" * 2
OTHER_ID = "fedcba9876543210" * 2
SEED = bytes(range(64))

# Says over and over what it sees, one process at a time: what two guests with the same state draw
# is the same only if they draw it in the same order. Called "full" it fills its disk, called
# "readonly" it lets nobody write there; asked to stop it ends once it is not called "web".
WORKLOAD = r"""
trap 'echo "<term>"; end=1' TERM
n=0
while :; do
  n=$((n+1)); clock=$EPOCHREALTIME
  head -c 1024 /dev/urandom > /dev/shm/drawn
  drawn=$(sha256sum < /dev/shm/drawn)
  read id < /etc/machine-id; read file < /etc/hostname; read name < /proc/sys/kernel/hostname
  hosts=$(tail -n 1 /etc/hosts)
  echo "<$n $clock ${drawn%% *} $id $file $name ${hosts#127.0.1.1?}>"
  case $name$done in
    full) cat /dev/zero > /big; done=yes; echo "<full>";;
    readonly) mount -o remount,ro /; done=yes; echo "<readonly>";;
  esac
  [ $end$name = 1web ] || [ -z "$end" ] || exit 3
done 2>/dev/null
"""
LINE = re.compile(rb"<(\d+) (\d+\.\d+) ([0-9a-f]{64}) (\S+) (\S+) (\S+) (\S+)>\n")


@dataclass(frozen=True)
class Said:
    """One line of the workload, and when it was heard."""

    number: int
    clock: float
    drawn: str
    names: tuple[str, ...]  # machine id, /etc/hostname, the kernel's host name, /etc/hosts
    heard: float


class Listener:
    """Everything that a guest says, as it comes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.log = self.console = self.report = b""
        self.said: list[Said] = []
        self._parsed = 0

    def listen(self) -> None:
        """Take what the pipes hold."""
        self.log += self.run.read("workload")
        self.console += self.run.read("console")
        self.report += self.run.read("report")
        for found in LINE.finditer(self.log, self._parsed):
            self._parsed = found.end()
            number, clock, drawn, *names = (part.decode() for part in found.groups())
            self.said.append(Said(int(number), float(clock), drawn, tuple(names), time.time()))

    async def keep(self) -> None:
        """Listen for ever, so that what is heard was said just now."""
        while True:
            self.listen()
            await asyncio.sleep(0.002)

    async def line(self, number: int) -> Said:
        """The first line from this number on."""
        await until(lambda: self.said and self.said[-1].number >= number)
        return next(said for said in self.said if said.number >= number)

    async def fresh(self) -> Said:
        """A line that was begun after this call, by a guest that has the right time."""
        now = time.time()
        await until(lambda: self.said and self.said[-1].clock >= now)
        return self.said[-1]

    def drawn(self, number: int) -> set[str]:
        """What was drawn from this line on."""
        return {said.drawn for said in self.said if said.number >= number}

    def reports(self, tmp_path: Path) -> Reports:
        """What the report port said in this run."""
        path = tmp_path / f"report-{self.run.machine.uid}"
        path.write_bytes(self.report)
        return read_reports(path)

    def witness(self, nonce: str, tmp_path: Path) -> GuestExit | None:
        """The end of the run with this nonce, as the console tells it."""
        path = tmp_path / f"console-{self.run.machine.uid}"
        path.write_bytes(self.console)
        return witnessed_exit(path, nonce)


class Home:
    """Disks and kernel of guests of one kind, below the rig's directory."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.boot = bareguest.artifacts()
        self.kernel = _readable(self.boot.vmlinuz, rig.home / "real-vmlinuz")
        self.initrd = _readable(self.boot.initrd, rig.home / "real-initrd")
        self.rootfs = bareguest.rootfs(rig.home / "rootfs")
        self.config = rig.home / "config"
        config = configdisk.GuestConfig(
            hostname="web", machine_id=ID, nonce="first", argv=("sh", "-c", WORKLOAD)
        )
        configdisk.write(self.config, config)
        os.chown(self.config, VMM_UID, VMM_UID)
        self.first = rig.home / "overlay"
        with self.first.open("wb") as file:
            file.truncate(16 * MIB)
        subprocess.run(["mke2fs", "-qF", "-text4", "-m0", "-Jsize=1", self.first], check=True)
        os.chown(self.first, VMM_UID, VMM_UID)
        self._copies = 0

    def machine(self, overlay: Path) -> dict[str, Any]:
        """What a Machine of this kind has that a rig's others have not."""
        disks = (
            Disk("rootfs", self.rootfs, read_only=True),
            Disk("overlay", overlay, read_only=False),
            Disk("config", self.config, read_only=True),
        )
        return {
            "kernel": self.kernel,
            "initrd": self.initrd,
            "command_line": COMMAND_LINE,
            "disks": disks,
        }

    def copy(self) -> Path:
        """A disk like that of the guest that is asleep."""
        self._copies += 1
        path = self.rig.home / f"overlay-{self._copies}"
        subprocess.run(["cp", "--sparse=always", self.first, path], check=True)
        os.chown(path, VMM_UID, VMM_UID)
        return path


def _readable(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    target.chmod(0o644)
    return target


@dataclass(frozen=True)
class Slept:
    """One guest that was put to sleep; every test wakes a copy of it."""

    home: Home
    manifest: Manifest
    last: int  # the line that it was saying
    at: float


class Ward:
    """Woken guests, each with somebody who listens."""

    def __init__(self, lab: Lab, slept: Slept) -> None:
        self.lab, self._slept = lab, slept
        self._tasks: list[asyncio.Task[None]] = []

    async def wake(self) -> Listener:
        """A copy of the guest that is asleep."""
        return await self.wake_with(self._slept.manifest, self._slept.home.copy())

    async def wake_with(self, manifest: Manifest, overlay: Path) -> Listener:
        """The guest of another snapshot, with its own disk."""
        machine = self._slept.home.machine(overlay)
        guest = Listener(await self.lab.wake(manifest, **machine))
        self._tasks.append(asyncio.create_task(guest.keep()))
        return guest

    async def close(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lab.rig.end()
        for run in self.lab.rig.runs:
            await self.lab.driver.release(run.machine.uid)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU here")
    made = Rig("qemu")
    try:
        yield made
    finally:
        asyncio.run(made.end())
        made.close()


@pytest.fixture(scope="module")
def slept(rig: Rig) -> Slept:
    async def once() -> Slept:
        lab, home = Lab(rig), Home(rig)
        run = rig.run(**home.machine(home.first))
        await rig.start(lab.driver, run)
        early = _early_request(run)
        await lab.driver.resume(handle(run))
        listener = Listener(run)
        listening = asyncio.create_task(listener.keep())
        await listener.line(3)
        _answered(early)
        # Its generator starts anew now, so that it does not do so by itself right after the wake.
        channel = await Channel.connect(run.channel, deadline=20)
        await channel.reseed(SEED, 10)
        await channel.close()
        manifest = await lab.sleep(run)
        listening.cancel()
        listener.listen()
        await lab.driver.release(run.machine.uid)
        return Slept(home, manifest, listener.said[-1].number, time.time())

    return asyncio.run(once())


def _early_request(run: Run) -> socket.socket:
    """A request that waits for the guest from before its first instruction."""
    early = socket.socket(socket.AF_UNIX)
    early.connect(str(run.channel))
    fields = pack([(Key.TOKEN, b"t" * 16), (Key.WALL, time.time_ns())])
    early.sendall(encode(Frame(FrameType.TIME, 5, fields)))
    return early


def _answered(early: socket.socket) -> None:
    early.settimeout(20)
    decoder = Decoder()
    heard: list[Frame] = []
    while not any(frame.type == FrameType.TIME_REPLY for frame in heard):
        data = early.recv(4096)
        assert data
        heard += decoder.feed(data)
    assert heard[-1] == Frame(FrameType.TIME_REPLY, 5, pack([(Key.TOKEN, b"t" * 16)]))
    early.close()


@pytest.fixture
async def ward(rig: Rig, slept: Slept) -> AsyncIterator[Ward]:
    made = Ward(Lab(rig), slept)
    try:
        yield made
    finally:
        await made.close()


async def _connect(run: Run) -> Channel:
    return await Channel.connect(run.channel, deadline=30)


async def test_wakes_of_one_snapshot_are_the_same_guest_until_they_are_repaired(
    ward: Ward, slept: Slept, tmp_path: Path
) -> None:
    await until(lambda: time.time() > slept.at + GAP)
    pair = [await ward.wake() for _ in range(2)]
    before = [await guest.line(slept.last + 2) for guest in pair]
    assert before[0].number == before[1].number
    assert before[0].drawn == before[1].drawn, "1 KiB of /dev/urandom"
    for said in before:
        assert said.clock < said.heard - GAP / 2
        assert said.names == (ID, "web", "web", "web")

    for number, guest in enumerate(pair):
        channel = await _connect(guest.run)
        assert channel.nonce == "first"
        await channel.step_clock(time.time_ns(), 10)
        await channel.reseed(os.urandom(64), 10)
        await channel.identify(f"fork-{number}", f"{number:032x}", f"run-{number}", 10)
        assert (await channel.info(10)).nonce == channel.nonce == f"run-{number}"
        await channel.close()
    after = [await guest.fresh() for guest in pair]
    for guest, said in zip(pair, after, strict=True):
        await guest.line(said.number + 4)
    assert not pair[0].drawn(after[0].number) & pair[1].drawn(after[1].number)
    for number, said in enumerate(after):
        assert abs(said.clock - said.heard) < 1
        name = f"fork-{number}"
        assert said.names == (f"{number:032x}", name, name, name)
    for number, guest in enumerate(pair):
        await _ends_as(guest, f"run-{number}", tmp_path)


async def _ends_as(guest: Listener, nonce: str, tmp_path: Path) -> None:
    """It stops when it is asked, and both witnesses of its run are whole."""
    channel = await _connect(guest.run)
    await channel.shutdown(20)
    await until(lambda: guest.witness(nonce, tmp_path) and guest.reports(tmp_path).exit)
    await channel.close()
    seen = guest.witness(nonce, tmp_path)
    assert seen is not None
    assert seen.code == 3
    assert guest.witness("first", tmp_path) is None
    reports = guest.reports(tmp_path)
    assert reports.booted is not None
    assert reports.started is not None
    assert reports.exit is not None
    assert (reports.exit.code, reports.exit.asked) == (3, True)


@pytest.mark.parametrize("unread", [0, 8])
async def test_channel_survives_a_sleep_in_the_middle_of_frames(
    ward: Ward, slept: Slept, unread: int
) -> None:
    """A request is cut by the sleep; with ``unread``, so are replies that nobody took."""
    guest = await ward.wake()
    whole = encode(Frame(FrameType.PING, 1, b"x" * 60_000))
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(guest.run.channel))
        rude.settimeout(2)
        sent = _send(rude, whole * unread + whole[:30_000])
        assert unread or sent == 30_000
        await guest.line(slept.last + 4)  # it has had the time to take what it can
        manifest = await ward.lab.sleep(guest.run, slept.manifest)
    woken = await ward.wake_with(manifest, guest.run.machine.disks[1].path)
    channel = await _connect(woken.run)
    await channel.step_clock(time.time_ns(), 10)
    await channel.identify("again", OTHER_ID, "again", 10)
    said = await woken.fresh()
    assert abs(said.clock - said.heard) < 1
    assert said.names == (OTHER_ID, "again", "again", "again")
    await channel.close()


def _send(rude: socket.socket, data: bytes) -> int:
    """As much as is taken within the time-out."""
    sent = 0
    try:
        while sent < len(data):
            sent += rude.send(data[sent : sent + 4096])
    except TimeoutError:
        pass
    return sent


async def test_a_guest_that_ends_is_still_repaired(ward: Ward, tmp_path: Path) -> None:
    guest = await ward.wake()
    channel = await _connect(guest.run)
    await channel.shutdown(60)
    await until(lambda: b"<term>" in guest.log)
    await channel.step_clock(time.time_ns(), 10)
    await channel.reseed(SEED, 10)
    said = await guest.fresh()
    assert abs(said.clock - said.heard) < 1
    await channel.identify("other", OTHER_ID, "late", 10)
    await until(lambda: guest.witness("late", tmp_path))
    assert guest.witness("first", tmp_path) is None
    await channel.close()


async def test_an_effect_that_fails_is_not_acknowledged(ward: Ward) -> None:
    guest = await ward.wake()
    channel = await _connect(guest.run)
    await channel.step_clock(time.time_ns(), 10)
    await channel.identify("readonly", ID, "first", 10)
    await until(lambda: b"<readonly>" in guest.log)
    for _ in range(2):
        with pytest.raises(Retry, match="Read-only") as caught:
            await channel.identify("new", OTHER_ID, "new", 10)
        assert caught.value.reason == "GuestRefused"
    assert (await channel.info(10)).nonce == "first"
    assert (await guest.fresh()).names == (ID, "readonly", "readonly", "readonly")
    await channel.identify("readonly", ID, "new", 10)  # what stays as it is is not written
    assert (await channel.info(10)).nonce == "new"
    await channel.close()


async def test_a_full_disk_keeps_nobody_from_a_new_identity(ward: Ward) -> None:
    guest = await ward.wake()
    channel = await _connect(guest.run)
    await channel.step_clock(time.time_ns(), 10)
    await channel.identify("full", ID, "first", 10)
    await until(lambda: b"<full>" in guest.log)
    await channel.identify("a-longer-name", OTHER_ID, "new", 10)
    name = "a-longer-name"
    assert (await guest.fresh()).names == (OTHER_ID, name, name, name)
    await channel.close()


async def test_requests_that_make_no_sense_are_refused_and_change_nothing(ward: Ward) -> None:
    guest = await ward.wake()
    channel = await _connect(guest.run)
    await channel.step_clock(time.time_ns(), 10)
    token = (Key.TOKEN, b"t" * 16)
    calls: list[tuple[int, list[tuple[int, bytes | int]]]] = [
        (FrameType.TIME, [(Key.WALL, 1)]),
        (FrameType.TIME, [token, (Key.WALL, -1)]),
        (FrameType.RESEED, [token, (Key.SEED, b"short")]),
        (FrameType.RESEED, [token, (Key.SEED, bytes(513))]),
        (FrameType.IDENTITY, [token, (Key.HOSTNAME, b"a\nb"), (Key.MACHINE_ID, b"0" * 32)]),
        (FrameType.IDENTITY, [token]),
    ]
    for kind, fields in calls:
        with pytest.raises(Retry, match="Invalid argument"):
            await channel._call(FrameType(kind), pack(fields), 10)
    with pytest.raises(Retry, match="Invalid argument"):
        await channel._call(FrameType.TIME, b"\xff" * 60_000, 10)
    with pytest.raises(Retry, match="too old"):
        await channel._call(FrameType.REPORT, b"", 10)
    said = await guest.fresh()
    assert abs(said.clock - said.heard) < 1
    assert said.names == (ID, "web", "web", "web")
    await channel.close()
