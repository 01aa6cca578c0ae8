"""Reading logs while they grow and rotate."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from controller.host.logread import Sanitiser, follow, sanitise, tail
from tests.waiting import until


class Log:
    """What a keeper does to the files, one byte string at a time."""

    def __init__(self, directory: Path, files: int = 4) -> None:
        self.current = directory / "c.log"
        self.files = files

    def write(self, data: bytes) -> None:
        with self.current.open("ab") as file:
            file.write(data)

    def rotate(self) -> None:
        for number in range(self.files - 1, 0, -1):
            older = self.current.with_name(f"c.log.{number - 1}") if number > 1 else self.current
            with contextlib.suppress(FileNotFoundError):
                older.rename(self.current.with_name(f"c.log.{number}"))


class Reader:
    """A follower in a task, and what it has seen."""

    def __init__(self, directory: Path, lines: int = 0) -> None:
        self.seen = b""
        self.task = asyncio.create_task(self._run(directory, lines))

    async def _run(self, directory: Path, lines: int) -> None:
        async for chunk in follow(directory, "c", lines):
            self.seen += chunk

    async def stop(self) -> bytes:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task
        return self.seen


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (0, b""),
        (1, b"six"),
        (2, b"five\nsix"),
        (3, b"four\nfive\nsix"),
        (5, b"two\nthree\nfour\nfive\nsix"),
        (100, b"one\ntwo\nthree\nfour\nfive\nsix"),
    ],
)
def test_tail_counts_lines_across_rotated_files(
    tmp_path: Path, lines: int, expected: bytes
) -> None:
    log = Log(tmp_path)
    log.write(b"one\ntwo\nth")
    log.rotate()
    log.write(b"ree\nfour\n")
    log.rotate()
    log.write(b"five\nsix")
    assert tail(tmp_path, "c", lines) == expected


def test_tail_keeps_the_last_newline_and_ignores_other_files(tmp_path: Path) -> None:
    Log(tmp_path).write(b"a\nb\n")
    (tmp_path / "c.log.old").write_bytes(b"x")
    (tmp_path / "cc.log").write_bytes(b"x")
    assert tail(tmp_path, "c", 1) == b"b\n"
    assert tail(tmp_path, "nothing", 1) == b""
    assert tail(tmp_path / "nowhere", "c", 1) == b""


def test_tail_is_bounded_even_without_newlines(tmp_path: Path) -> None:
    Log(tmp_path).write(b"x" * 300_000)
    assert tail(tmp_path, "c", 10, max_bytes=1000) == b"x" * 1000


async def test_follow_starts_with_the_last_lines_and_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"one\ntwo\nthree\n")
    reader = Reader(tmp_path, lines=2)
    await until(lambda: reader.seen == b"two\nthree\n")
    log.write(b"four\n")
    await until(lambda: reader.seen == b"two\nthree\nfour\n")
    await reader.stop()


async def test_follow_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    await asyncio.sleep(0)
    Log(tmp_path).write(b"first")
    await until(lambda: reader.seen == b"first")
    await reader.stop()


async def test_follow_across_rotations_loses_and_repeats_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"0\n")
    reader = Reader(tmp_path, lines=10)
    await until(lambda: reader.seen)
    for number in range(1, 9):
        log.write(b"%d\n" % number)
        log.rotate()
        if number % 2 == 0:  # three older files are kept: it may fall behind by two
            wanted = b"%d\n" % number
            await until(lambda wanted=wanted: reader.seen.endswith(wanted))
    log.write(b"9\n")
    await until(lambda: reader.seen.endswith(b"9\n"))
    assert await reader.stop() == b"".join(b"%d\n" % n for n in range(10))


async def test_follow_that_is_overtaken_says_so(tmp_path: Path) -> None:
    log = Log(tmp_path, files=2)
    log.write(b"a\n")
    reader = Reader(tmp_path, lines=1)
    await until(lambda: reader.seen)
    for text in (b"b\n", b"c\n", b"d\n"):
        log.rotate()
        log.write(text)
    await until(lambda: reader.seen.endswith(b"d\n"))
    seen = await reader.stop()
    assert b"output is missing here" in seen
    assert seen.startswith(b"a\n")
    assert seen.endswith(b"c\nd\n")


@pytest.mark.parametrize(
    ("raw", "harmless"),
    [
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("a\r\nb", "a\nb"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("grüße 日本 🙂", "grüße 日本 🙂"),
        ("\x00\x7f", "\\x00\\x7f"),
    ],
)
def test_control_characters_become_visible(raw: str, harmless: str) -> None:
    assert sanitise(raw) == harmless


def test_stream_cut_anywhere_is_sanitised_like_the_whole() -> None:
    raw = "grüße\r\n\x1b[1mbold\r🙂\r".encode() + b"\xff"
    whole = sanitise(raw.decode(errors="replace"))
    for cut in range(len(raw)):
        stream = Sanitiser()
        assert (
            stream.feed(raw[:cut]) + stream.feed(raw[cut:]) + stream.feed(b"", final=True) == whole
        )
