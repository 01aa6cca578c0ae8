"""What a guest says about its life, and the file that keeps it whether an agent runs or not.

Every byte comes from a guest: text is bounded and free of control characters, numbers are in
range, a file is read up to a bound, and whatever follows damage is not believed. What does not
live here: who writes the file, and what an end means for an Instance.
"""

from dataclasses import dataclass
from pathlib import Path

from controller.guest.wire import (
    Decoder,
    Frame,
    FrameType,
    Key,
    ReportKind,
    WireError,
    integer,
    unpack,
)

MAX_FILE = 256 * 1024  # a guest sends under 1 KiB in its life
_MAX_TEXT = 256  # characters
_MAX_FIELDS = 64
_NEVER_TRIED = 125  # what container tools exit with when they could not run anything


@dataclass(frozen=True)
class Booted:
    """init runs. ``boot_id`` is the guest kernel's."""

    kernel: str
    init: str
    boot_id: str


@dataclass(frozen=True)
class Started:
    """The workload's first program runs, as this pid in the guest."""

    pid: int


@dataclass(frozen=True)
class GuestExit:
    """The workload ended. ``code`` is a shell's (128 + signal where a signal ended it; 127 and
    126: it could not be started), ``message`` says it for people, ``asked`` means after a request
    to stop, ``lost`` is bytes of output that the host did not take.
    """

    code: int
    message: str
    signal: int = 0
    oom: bool = False
    asked: bool = False
    lost: int = 0


@dataclass(frozen=True)
class GuestError:
    """The guest could not even try its workload: a disk is missing, the config is bad."""

    errno: int
    what: str


Report = Booted | Started | GuestExit | GuestError


@dataclass(frozen=True)
class Reports:
    """What is known of the last boot; None: not reported. An error is an exit too (code 125)."""

    booted: Booted | None = None
    started: Started | None = None
    exit: GuestExit | None = None
    error: GuestError | None = None

    def after(self, report: Report) -> "Reports":
        """With one more report. A boot starts anew; of anything else the first is believed."""
        if isinstance(report, Booted):
            return Reports(booted=report)
        if isinstance(report, Started):
            return Reports(self.booted, self.started or report, self.exit, self.error)
        if isinstance(report, GuestExit):
            return Reports(self.booted, self.started, self.exit or report, self.error)
        ended = self.exit or GuestExit(_NEVER_TRIED, f"the guest could not start: {report.what}")
        return Reports(self.booted, self.started, ended, self.error or report)


def read_reports(path: Path) -> Reports:
    """Parse a report file; nothing in it, or no file, is nothing reported.

    A partial frame at the end is ignored, and so is everything after damage.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE)
    except FileNotFoundError:
        return Reports()
    reports = Reports()
    decoder = Decoder()
    try:
        for start in range(0, len(data), 4096):
            for frame in decoder.feed(data[start : start + 4096]):
                reports = _with(reports, frame)
    except WireError:
        pass  # frames before the damage count
    return reports


def _with(reports: Reports, frame: Frame) -> Reports:
    report = parse_report(frame) if frame.type == FrameType.REPORT else None
    return reports.after(report) if report else reports


def parse_report(frame: Frame) -> Report | None:
    """The report in a REPORT frame, None for a kind not known here. Raises WireError."""
    fields = read_fields(frame.payload)
    kind = number(fields, Key.KIND, 0, 255)
    if kind == ReportKind.BOOTED:
        return Booted(*(text(fields, key) for key in (Key.KERNEL, Key.INIT, Key.BOOT_ID)))
    if kind == ReportKind.STARTED:
        return Started(number(fields, Key.PID, 1, 1 << 22))
    if kind == ReportKind.EXIT:
        return parse_exit(fields)
    if kind == ReportKind.ERROR:
        return GuestError(number(fields, Key.ERRNO, 0, 4095), text(fields, Key.MESSAGE))
    return None


def parse_exit(fields: dict[int, bytes]) -> GuestExit:
    """The fields of an exit. Raises WireError."""
    code = number(fields, Key.CODE, 0, 255)
    signal = number(fields, Key.SIGNAL, 0, 64)
    oom = bool(number(fields, Key.OOM, 0, 1))
    return GuestExit(
        code=code,
        message=text(fields, Key.MESSAGE) or sentence(code, signal, oom),
        signal=signal,
        oom=oom,
        asked=bool(number(fields, Key.ASKED, 0, 1)),
        lost=number(fields, Key.LOST, 0, (1 << 63) - 1),
    )


def sentence(code: int, signal: int, oom: bool) -> str:
    """How a process ended, in words."""
    if oom:
        return "out of memory"
    return f"killed by signal {signal}" if signal else f"exited {code}"


def read_fields(payload: bytes) -> dict[int, bytes]:
    """Fields by key, the first of each. Raises WireError, also for more than a guest ever sends."""
    pairs = unpack(payload)
    if len(pairs) > _MAX_FIELDS:
        raise WireError(f"{len(pairs)} fields, at most {_MAX_FIELDS} allowed")
    return dict(reversed(pairs))


def number(fields: dict[int, bytes], key: Key, low: int, high: int) -> int:
    """A whole number that must be there and in range. Raises WireError."""
    value = integer(fields.get(key, b""))
    if not low <= value <= high:
        raise WireError(f"{key.name} {value} is not within {low} and {high}")
    return value


def text(fields: dict[int, bytes], key: Key) -> str:
    """Printable text, cut to a bound; empty when absent."""
    return printable(fields.get(key, b""))


def printable(raw: bytes) -> str:
    """What a guest said as one bounded line that no terminal can be tricked with."""
    said = raw[: 4 * _MAX_TEXT].decode("utf-8", "replace")[:_MAX_TEXT]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said)
