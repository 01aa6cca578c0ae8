"""Reports from a guest that may be hostile."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.guest.console import last_panic, witnessed_exit
from controller.guest.report import (
    MAX_FILE,
    Booted,
    GuestExit,
    Reports,
    Started,
    read_reports,
    sentence,
)
from controller.guest.wire import Frame, FrameType, Key, ReportKind, encode, pack


def report(kind: int, *fields: tuple[int, bytes | int]) -> bytes:
    return encode(Frame(FrameType.REPORT, 1, pack([(Key.KIND, kind), *fields])))


def ended(code: int, signal: int = 0, oom: int = 0, message: bytes = b"") -> bytes:
    numbers = [(Key.CODE, code), (Key.SIGNAL, signal), (Key.OOM, oom), (Key.ASKED, 0)]
    return report(ReportKind.EXIT, *numbers, (Key.LOST, 0), (Key.MESSAGE, message))


BOOT = report(ReportKind.BOOTED, (Key.KERNEL, b"6.x"), (Key.INIT, b"0"), (Key.BOOT_ID, b"b"))
START = report(ReportKind.STARTED, (Key.PID, 80))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.log"


def read(path: Path, data: bytes) -> Reports:
    path.write_bytes(data)
    return read_reports(path)


def test_life_is_read_back(path: Path) -> None:
    reports = read(path, BOOT + START + ended(3))
    assert reports.booted == Booted("6.x", "0", "b")
    assert reports.started == Started(80)
    assert reports.exit == GuestExit(3, "exited 3")


def test_no_file_and_an_empty_file_report_nothing(path: Path) -> None:
    assert read_reports(path) == Reports()
    assert read(path, b"") == Reports()


def test_partial_tail_is_ignored(path: Path) -> None:
    data = BOOT + START + ended(3)
    for cut in range(len(BOOT + START), len(data)):
        reports = read(path, data[:cut])
        assert reports.started
        assert reports.exit is None


def test_nothing_after_damage_is_believed(path: Path) -> None:
    reports = read(path, BOOT + b"\xff" * 4 + START + ended(0))
    assert reports == Reports(booted=Booted("6.x", "0", "b"))


def test_first_exit_counts(path: Path) -> None:
    reports = read(path, BOOT + START + ended(3) + ended(0))
    assert reports.exit
    assert reports.exit.code == 3


def test_new_boot_forgets_the_old_one(path: Path) -> None:
    assert read(path, BOOT + START + ended(3) + BOOT).exit is None


def test_error_is_an_exit_that_nobody_takes_for_success(path: Path) -> None:
    data = BOOT + report(ReportKind.ERROR, (Key.ERRNO, 2), (Key.MESSAGE, b"no disk"))
    reports = read(path, data)
    assert reports.error
    assert reports.exit == GuestExit(125, "the guest could not start: no disk")


@pytest.mark.parametrize(
    "bad",
    [
        ended(256),
        ended(-1),
        ended(0, 65),
        ended(0, 0, 2),
        report(ReportKind.STARTED, (Key.PID, 0)),
        report(ReportKind.STARTED, (Key.PID, b"12")),
        encode(Frame(FrameType.REPORT, 1, b"\1\2")),
        encode(Frame(FrameType.REPORT, 1, pack([(Key.KIND, 1)] * 65))),
    ],
)
def test_values_out_of_range_are_damage(path: Path, bad: bytes) -> None:
    assert read(path, BOOT + bad + START + ended(0)) == Reports(booted=Booted("6.x", "0", "b"))


def test_unknown_kinds_and_frames_are_passed_over(path: Path) -> None:
    later = report(77) + encode(Frame(200, 1, b"later"))
    assert read(path, BOOT + later + START).started == Started(80)


def test_text_is_bounded_and_harmless(path: Path) -> None:
    reports = read(path, BOOT + ended(126, message=b"\x1b[2J\n\xff" + b"x" * 60_000))
    assert reports.exit
    assert len(reports.exit.message) == 256
    assert reports.exit.message.isprintable()


def test_file_is_read_up_to_a_bound(path: Path) -> None:
    filler = encode(Frame(200, 1, bytes(60_000)))
    assert read(path, BOOT + filler * (MAX_FILE // len(filler) + 1) + START).started is None


@given(data=st.binary(max_size=500))
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read(tmp_path_factory.mktemp("any") / "report.log", BOOT + data)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((0, 0, False), "exited 0"),
        ((137, 9, False), "killed by signal 9"),
        ((137, 9, True), "out of memory"),
    ],
)
def test_end_in_words(how: tuple[int, int, bool], said: str) -> None:
    assert sentence(*how) == said


def test_panic_is_found_on_the_console(path: Path) -> None:
    assert last_panic(path) is None
    path.write_bytes(
        b"[ 1.0] x\r\n[ 2.1] Kernel panic - not syncing: Fatal\x1b[1m exception\r\n[ 2.2] end\r\n"
    )
    assert last_panic(path) == "Fatal\ufffd[1m exception"


def test_console_witness_needs_the_nonce(path: Path) -> None:
    path.write_bytes(b"torpor-exit bad code=0 signal=0\r\nx torpor-exit n1 code=0 signal=0\r\n")
    assert witnessed_exit(path, "n1") is None
    assert witnessed_exit(path, "") is None
    path.write_bytes(b"noise\r\ntorpor-exit n1 code=137 signal=9\r\n")
    assert witnessed_exit(path, "n1") == GuestExit(137, "killed by signal 9", 9)
