"""The log keeper as a real process: bounds, survival, gaps, revival."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controller import settings
from controller.errors import Retry
from controller.host import logread, process
from controller.host.logs import LogPipes, Stream, build_keeper, revive_keeper, start_keeper
from controller.host.process import Gone, Identity, Process, Sandbox
from tests.waiting import unmount, until

pytestmark = pytest.mark.node
ROOT = Sandbox(uid=0, gid=0)
# Writes what it is told to: "N" on standard input means N lines of 100 bytes on descriptor FD.
WRITER = r"""
import os, sys
fd, number = int(sys.argv[1]), 0
for order in sys.stdin:
    end = number + int(order)
    while number < end:
        last = min(number + 500, end)
        data = b"".join(b"%099d\n" % n for n in range(number + 1, last + 1))
        number = last
        while data:
            data = data[os.write(fd, data):]
"""


@pytest.fixture(scope="session")
def keeper_binary() -> Path:
    return build_keeper(settings.cache_dir())


@dataclass
class Rig:
    """A stand-in for a VMM that holds both ends of its pipe, and the keeper of it."""

    stream: Stream
    binary: Path
    sandbox: Sandbox = ROOT
    inodes: dict[str, int] = field(default_factory=dict)
    orders: int = -1
    writer: Process | None = None
    keeper: Identity | None = None

    async def start(self) -> None:
        pipes = LogPipes([self.stream])
        read, self.orders = os.pipe2(os.O_CLOEXEC)
        fd = pipes.write_fd(self.stream.name)
        self.writer = await process.spawn(
            [sys.executable, "-c", WRITER, str(fd)], sandbox=ROOT, stdin=read, pass_fds=pipes.fds
        )
        self.keeper = await start_keeper(
            pipes, [self.stream], binary=self.binary, sandbox=self.sandbox
        )
        self.inodes = {self.stream.name: pipes.inode(self.stream.name)}
        pipes.close()
        os.close(read)

    def write(self, lines: int) -> None:
        os.write(self.orders, b"%d\n" % lines)

    async def finish(self) -> None:
        """End the writer; the keeper then has to end by itself."""
        assert self.writer
        if self.orders >= 0:
            os.close(self.orders)
            self.orders = -1
        await self.writer.wait()
        if self.keeper:
            keeper = self.keeper
            await until(lambda: not process.is_alive(keeper))

    def text(self) -> str:
        return logread.tail(self.stream.dir, self.stream.name, 10**9, 1 << 30).decode()

    def numbers(self) -> list[int]:
        return [int(line) for line in self.text().splitlines() if line.isdigit()]

    def sizes(self) -> dict[str, int]:
        found = {}
        for path in self.stream.dir.glob("*.log*"):
            with contextlib.suppress(FileNotFoundError):  # rotated just now
                found[path.name] = path.stat().st_size
        return found


@pytest.fixture
async def rig(tmp_path: Path, keeper_binary: Path) -> AsyncIterator[Rig]:
    made = Rig(Stream("console", tmp_path, max_bytes=1 << 20, files=3), keeper_binary)
    yield made
    if made.writer and not made.writer.dead:
        made.writer.signal(signal.SIGKILL)
    if made.writer:
        await made.finish()
        made.writer.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(where)], check=True)
    yield where
    unmount(str(where))


def private_kib(who: Identity) -> int:
    """Memory of its own (the program's pages are shared by all keepers); 0 when it has ended."""
    try:
        status = Path(f"/proc/{who.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(x.split()[1]) for x in status.splitlines() if x.startswith("RssAnon")), 0)


async def test_log_is_complete_in_order_and_private(rig: Rig) -> None:
    await rig.start()
    rig.write(1000)
    await rig.finish()
    assert rig.numbers() == list(range(1, 1001))
    assert (rig.stream.dir / "console.log").stat().st_mode & 0o7777 == 0o640


async def test_keeper_has_no_rights_and_only_its_descriptors(rig: Rig) -> None:
    await rig.start()
    assert rig.keeper
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{rig.keeper.pid}/status").read_text().splitlines()
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    fds = Path(f"/proc/{rig.keeper.pid}/fd")
    targets = sorted(str(fd.readlink()) for fd in fds.iterdir())
    pipe = f"pipe:[{rig.inodes['console']}]"
    log = str(rig.stream.dir / "console.log")
    assert targets == sorted(["/dev/null"] * 3 + [pipe, log])


async def test_flood_of_200_mb_keeps_the_bound_and_the_keeper_small(rig: Rig) -> None:
    await rig.start()
    assert rig.keeper
    seen: list[int] = []
    rig.write(2_000_000)
    os.close(rig.orders)
    rig.orders = -1
    assert rig.writer

    def finished() -> bool:
        seen.append(private_kib(rig.keeper))
        sizes = rig.sizes()
        assert set(sizes) <= {"console.log", "console.log.1", "console.log.2"}
        assert all(size <= 1 << 20 for size in sizes.values())
        return not process.is_alive(rig.keeper)

    await until(finished, 100)
    assert 0 < max(seen) < 256
    assert max(seen) - seen[len(seen) // 10] <= 64
    assert rig.numbers()[-1] == 2_000_000
    assert len(rig.numbers()) >= 3 * (1 << 20) // 100 - (1 << 20) // 100 - 2


async def test_keeper_ignores_signals_that_stop_services(rig: Rig) -> None:
    await rig.start()
    assert rig.keeper
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        process.kill(rig.keeper, number)
    rig.write(10)
    await rig.finish()
    assert rig.numbers() == list(range(1, 11))


async def test_dead_keeper_never_breaks_the_pipe_and_is_revived_with_a_mark(rig: Rig) -> None:
    await rig.start()
    assert rig.keeper
    assert rig.writer
    rig.write(10)
    await until(lambda: len(rig.numbers()) == 10)
    process.kill(rig.keeper, signal.SIGKILL)
    await until(lambda: not process.is_alive(rig.keeper))
    rig.write(100)  # goes into the pipe: nobody reads, nobody gets EPIPE
    rig.keeper = await revive_keeper(
        rig.writer.identity, [rig.stream], rig.inodes, binary=rig.binary, sandbox=ROOT
    )
    await rig.finish()
    assert rig.numbers() == list(range(1, 111))
    assert "[torpor: log keeper restarted, output may be lost here]\n" in rig.text()
    assert await rig.writer.wait() == 0


async def test_reviving_for_a_dead_process_or_a_foreign_pipe_is_refused(rig: Rig) -> None:
    await rig.start()
    assert rig.writer
    with pytest.raises(Retry, match="no pipe for console"):
        await revive_keeper(
            rig.writer.identity, [rig.stream], {"console": 1}, binary=rig.binary, sandbox=ROOT
        )
    await rig.finish()
    with pytest.raises(Gone):
        await revive_keeper(
            rig.writer.identity, [rig.stream], rig.inodes, binary=rig.binary, sandbox=ROOT
        )


async def test_full_disk_is_a_marked_gap_and_stops_nobody(rig: Rig, small_disk: Path) -> None:
    rig.stream = Stream("console", small_disk, max_bytes=512 << 10, files=2)
    await rig.start()
    rig.write(10)
    await until(lambda: len(rig.numbers()) == 10)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))
    rig.write(10_000)
    rig.write(0)
    # Everything is read although nothing can be written: the pipe holds 655 lines at most.
    assert rig.writer
    waiting = Path(f"/proc/{rig.writer.identity.pid}/wchan")
    await until(lambda: "pipe_read" in waiting.read_text())
    ballast.unlink()
    await until(lambda: "bytes lost]" in rig.text())
    rig.write(5)
    await rig.finish()
    text = rig.text()
    lost = int(text.split("[torpor: ")[1].split()[0])
    kept = len(text) - sum(len(x) + 1 for x in text.splitlines() if x.startswith("[torpor"))
    assert rig.numbers()[-5:] == list(range(10_006, 10_016))[-5:]
    assert lost > 0
    assert kept + lost in (10_015 * 100, 10_015 * 100 + 1)  # plus one newline before the mark


async def test_head_keeps_the_beginning_and_drains_the_rest(rig: Rig) -> None:
    rig.stream = Stream("report", rig.stream.dir, max_bytes=1000, files=1, head=True)
    await rig.start()
    rig.write(100_000)
    await rig.finish()
    assert rig.numbers() == list(range(1, 11))
    assert rig.sizes() == {"report.log": 1000}


async def test_keeper_that_cannot_open_its_file_says_why(rig: Rig) -> None:
    rig.stream = Stream("console", rig.stream.dir / "missing", max_bytes=1000, files=2)
    with pytest.raises(Retry, match=r"missing/console\.log: No such file"):
        await rig.start()
    await rig.finish()


async def test_keeper_and_log_survive_kill_9_of_the_agent(
    tmp_path: Path, keeper_binary: Path
) -> None:
    agent = f"""
import asyncio, os, sys
from pathlib import Path
from controller.host import process
from controller.host.logs import LogPipes, Stream, start_keeper
async def main():
    stream = Stream("console", Path({str(tmp_path)!r}), 1 << 20, 3)
    pipes = LogPipes([stream])
    box = process.Sandbox(0, 0)
    argv = [sys.executable, "-c", {WRITER!r}, str(pipes.write_fd("console"))]
    vmm = await process.spawn(argv, sandbox=box, stdin=0, pass_fds=pipes.fds)
    keeper = await start_keeper(pipes, [stream], binary=Path({str(keeper_binary)!r}), sandbox=box)
    print(keeper.pid, vmm.identity.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    parent = subprocess.Popen(  # noqa: ASYNC220 - starts at once
        [sys.executable, "-c", agent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdin
    assert parent.stdout
    with parent:
        keeper, vmm = (process.identity(int(n)) for n in parent.stdout.readline().split())
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        assert process.is_alive(keeper)
        assert process.is_alive(vmm)
        parent.stdin.write(b"5000\n")
    await until(lambda: not process.is_alive(keeper))
    numbers = [int(line) for line in logread.tail(tmp_path, "console", 10**6).splitlines()]
    assert numbers == list(range(1, 5001))


async def test_follow_of_a_real_keeper_is_complete_across_rotations(rig: Rig) -> None:
    rig.stream = Stream("console", rig.stream.dir, max_bytes=20_000, files=4)
    await rig.start()
    seen = b""
    asked = 1
    rig.write(asked)
    async for chunk in logread.follow(rig.stream.dir, "console", 10):
        seen += chunk
        if seen.endswith(b"%099d\n" % asked):
            if asked > 8000:
                break
            asked += 400  # two files full: the four hold what is not read yet
            rig.write(400)
    assert [int(line) for line in seen.splitlines()] == list(range(1, asked + 1))
