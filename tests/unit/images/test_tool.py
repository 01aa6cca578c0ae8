"""Programs of a pull: bounded, and never left behind."""

import asyncio
import os
import sys
import textwrap
from pathlib import Path

import pytest

from controller.errors import Blocked, Timeout
from controller.images.tool import Limits, run
from tests.waiting import until

FIVE = Limits(5.0)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def pid_in(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


async def test_status_and_both_streams_come_back(tmp_path: Path) -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], FIVE, home=tmp_path)
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", "err\n")


async def test_output_over_the_limit_is_dropped_and_does_not_block(tmp_path: Path) -> None:
    script = "head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2"
    done = await run(["sh", "-c", script], Limits(20.0, output=1000), home=tmp_path)
    assert (done.status, len(done.stdout), len(done.stderr)) == (0, 1000, 1000)


async def test_last_words_are_one_printable_line(tmp_path: Path) -> None:
    script = r"printf 'first\n\033[31mbad\007 %0500d\n\n' 0 >&2; exit 1"
    done = await run(["sh", "-c", script], FIVE, home=tmp_path)
    assert done.last_words.startswith("?[31mbad? 000")
    assert done.last_words.isprintable()
    assert len(done.last_words) == 300


async def test_deadline_ends_the_program_and_its_children(tmp_path: Path) -> None:
    script = "sleep 1000 & echo $! > child; wait"
    with pytest.raises(Timeout, match=r"sh did not finish in 0\.5 s"):
        await run(["sh", "-c", script], Limits(0.5), home=tmp_path)
    pid = await pid_in(tmp_path / "child")
    await until(lambda: not alive(pid))


async def test_cancel_ends_the_program_before_it_returns(tmp_path: Path) -> None:
    task = asyncio.create_task(
        run(["sh", "-c", "echo $$ > pid; exec sleep 1000"], Limits(1000.0), home=tmp_path)
    )
    pid = await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)


async def test_program_without_progress_is_ended(tmp_path: Path) -> None:
    limits = Limits(1000.0, stall=0.05, progress=lambda: 7)
    with pytest.raises(Timeout, match="no progress"):
        await run(["sleep", "1000"], limits, home=tmp_path)


async def test_program_with_progress_goes_on(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    limits = Limits(1000.0, stall=0.02, progress=lambda: next(ticks))
    done = await run(["sleep", "0.2"], limits, home=tmp_path)
    assert done.status == 0


async def test_file_over_the_limit_cannot_be_written(tmp_path: Path) -> None:
    argv = ["sh", "-c", "trap '' XFSZ; exec head -c 100000 /dev/zero > big"]
    done = await run(argv, Limits(5.0, file_bytes=4096), home=tmp_path)
    assert done.status != 0
    assert (tmp_path / "big").stat().st_size == 4096


async def test_missing_program_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="no-such-program is not on this node; install it"):
        await run(["no-such-program"], FIVE, home=tmp_path)


async def test_environment_holds_no_secret_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    done = await run(["env"], FIVE, home=tmp_path)
    assert b"secret" not in done.stdout
    assert b"https_proxy=http://proxy.example\n" in done.stdout
    assert f"HOME={tmp_path}\n".encode() in done.stdout


async def test_program_dies_with_us_even_by_kill_9(tmp_path: Path) -> None:
    parent = textwrap.dedent("""
        import asyncio, pathlib, sys
        from controller.images.tool import Limits, run
        home = pathlib.Path(sys.argv[1])
        script = "echo $$ > pid; exec sleep 1000"
        asyncio.run(run(["sh", "-c", script], Limits(1000.0), home=home))
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, str(tmp_path))
    try:
        pid = await pid_in(tmp_path / "pid")
        assert alive(pid)
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not alive(pid))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to lose")
@pytest.mark.parametrize(
    ("capabilities", "left"), [((), 0), (("chown", "mknod"), 1 << 0 | 1 << 27)]
)
async def test_program_has_only_the_powers_that_were_named(
    tmp_path: Path, capabilities: tuple[str, ...], left: int
) -> None:
    limits = Limits(5.0, capabilities=capabilities)
    done = await run(["cat", "/proc/self/status"], limits, home=tmp_path)
    said = dict(line.split(":\t") for line in done.stdout.decode().splitlines() if ":\t" in line)
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(said[kind], 16) == left
    assert int(said["CapInh"], 16) == 0
    assert said["NoNewPrivs"] == "1"
