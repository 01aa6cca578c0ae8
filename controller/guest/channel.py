"""The host's end of the agent channel: requests to one guest over its virtio-serial socket.

A connection may start in the middle of what an earlier one left, in both directions, so that
``connect`` says HELLO with a number of its own until the guest answers to it. Every call has a
deadline; what a guest sends is bounded in size and in count. What does not live here: the frame
format, and what is done with the answers.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOSYS
from pathlib import Path
from typing import Self

from controller.errors import Blocked, Retry, Timeout
from controller.guest.report import (
    GuestExit,
    Report,
    number,
    parse_exit,
    parse_report,
    read_fields,
    text,
)
from controller.guest.wire import (
    PROTOCOL,
    Decoder,
    Frame,
    FrameType,
    Key,
    WireError,
    encode,
    pack,
)

_FIRST_ATTEMPT = 0.5  # seconds for a HELLO, doubled each time: the machine may be slow
_PAUSE_SECONDS = 0.25  # between attempts: the guest drops a half frame after 0.2 s of silence
_MAX_UNASKED = 256  # frames that nobody asked for, in the life of a connection
_READ = 64 * 1024
_TOKEN_BYTES = 16


@dataclass(frozen=True)
class GuestInfo:
    """What INFO tells. ``nonce`` is that of the config disk or of the last ``identify``; ``pid``
    None: no workload was started.
    """

    boot_id: str
    nonce: str
    kernel: str
    init: str
    asked: bool
    lost: int
    pid: int | None
    exit: GuestExit | None


class Channel:
    """One connection. ``boot_id`` and ``nonce`` say which boot of which guest answers."""

    def __init__(self, on_report: Callable[[Report], None] | None) -> None:
        self.boot_id = ""
        self.nonce = ""
        self._on_report = on_report
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._unasked = 0
        self._closed = asyncio.Event()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._task: asyncio.Task[None]

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        deadline: float,
        on_report: Callable[[Report], None] | None = None,
    ) -> Self:
        """Connect to the socket at ``path`` and wait until the guest answers.

        ``deadline`` is seconds from now; a guest that is still booting answers late. ``on_report``
        is called in the event loop and must not block. Raises Timeout when nobody answers, Retry
        when there is no socket until the deadline, Blocked when the guest speaks another protocol.
        """
        end = time.monotonic() + deadline
        attempt = _FIRST_ATTEMPT
        while True:
            channel = cls(on_report)
            left = end - time.monotonic()
            try:
                await channel._open(path, max(min(left, attempt), 0.01))
                return channel
            except Retry:
                await channel.close()
                if time.monotonic() + _PAUSE_SECONDS >= end:
                    raise
            except BaseException:
                await channel.close()
                raise
            await asyncio.sleep(_PAUSE_SECONDS)
            attempt *= 2

    async def info(self, deadline: float) -> GuestInfo:
        """What runs in the guest. Raises Timeout, Retry."""
        reply = await self._call(FrameType.INFO, b"", deadline)
        try:
            return _parse_info(read_fields(reply.payload))
        except WireError as err:
            raise _misbehaved(str(err)) from err

    async def ping(self, deadline: float) -> float:
        """Seconds that the guest took to answer. Raises Timeout, Retry."""
        start = time.monotonic()
        payload = secrets.token_bytes(8)
        reply = await self._call(FrameType.PING, payload, deadline)
        if reply.payload != payload:
            raise _misbehaved("a PONG with other bytes than its PING")
        return time.monotonic() - start

    async def shutdown(self, grace: float, deadline: float = 5.0) -> None:
        """Ask for the end: stop signal now, SIGKILL after ``grace`` seconds, then power-off.

        Returns when the guest has taken the request. Raises Timeout, Retry.
        """
        payload = pack([(Key.GRACE, round(grace * 1000))])
        await self._call(FrameType.SHUTDOWN, payload, deadline)

    async def step_clock(self, wall_ns: int, deadline: float) -> float:
        """Set the guest's wall clock to ``wall_ns``, in nanoseconds since the epoch.

        Gives seconds that it took: the clock is at most so far behind. Raises Timeout, and Retry
        as ``reseed`` does.
        """
        start = time.monotonic()
        await self._acknowledged(FrameType.TIME, [(Key.WALL, wall_ns)], deadline)
        return time.monotonic() - start

    async def reseed(self, seed: bytes, deadline: float) -> None:
        """Make the guest kernel's random generator start anew from ``seed``: 64 to 512 bytes.

        Raises Timeout, and Retry unless the guest says that it is done: GuestRefused with its
        reason, GuestMisbehaved, GuestChannelDown.
        """
        await self._acknowledged(FrameType.RESEED, [(Key.SEED, seed)], deadline)

    async def identify(self, hostname: str, machine_id: str, nonce: str, deadline: float) -> None:
        """Tell the guest who it is from now on; all three are letters, digits, ``-``, ``.``, ``_``.

        ``hostname`` and ``nonce`` have 1 to 64 of them, ``machine_id`` 32. What does not change is
        not touched. Under a new nonce the guest says all its reports again, so that the files of a
        new run are whole. Raises Timeout, and Retry as ``reseed`` does.
        """
        fields: list[tuple[int, bytes | int]] = [
            (Key.HOSTNAME, hostname.encode()),
            (Key.MACHINE_ID, machine_id.encode()),
            (Key.NONCE, nonce.encode()),
        ]
        await self._acknowledged(FrameType.IDENTITY, fields, deadline)
        self.nonce = nonce

    async def close(self) -> None:
        """Hang up. Idempotent; calls under way raise Retry."""
        if not hasattr(self, "_task"):
            return
        self._task.cancel()
        # not suppress(CancelledError): that would also swallow the order to end our caller
        await asyncio.gather(self._task, return_exceptions=True)

    async def wait_closed(self) -> None:
        """Until the connection is gone, from either side."""
        await self._closed.wait()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def _open(self, path: Path, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                opened = await asyncio.open_unix_connection(str(path))
        except TimeoutError as err:
            raise Timeout(f"guest channel {path}: the VMM does not accept") from err
        except OSError as err:
            raise Retry(f"guest channel {path}: {err}", reason="GuestChannelDown") from err
        self._reader, self._writer = opened
        self._task = asyncio.create_task(self._read(), name=f"guest-channel {path.name}")
        reply = await self._call(FrameType.HELLO, b"", seconds)
        try:
            fields = read_fields(reply.payload)
            protocol = number(fields, Key.PROTOCOL, 0, 1 << 31)
        except WireError as err:
            raise _misbehaved(str(err)) from err
        if protocol != PROTOCOL:
            raise Blocked(
                f"guest channel {path}: the guest speaks protocol {protocol}, want {PROTOCOL}; "
                f"stop it and start it again",
                reason="GuestProtocol",
            )
        self.boot_id = text(fields, Key.BOOT_ID)
        self.nonce = text(fields, Key.NONCE)

    async def _acknowledged(
        self, kind: FrameType, fields: list[tuple[int, bytes | int]], deadline: float
    ) -> None:
        """Only a reply with this request's token says that its effect was seen."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        reply = await self._call(kind, pack([(Key.TOKEN, token), *fields]), deadline)
        try:
            heard = read_fields(reply.payload).get(Key.TOKEN)
        except WireError as err:
            raise _misbehaved(str(err)) from err
        if heard != token:
            raise _misbehaved(f"answered {kind.name} without its token")

    async def _call(self, kind: FrameType, payload: bytes, deadline: float) -> Frame:
        if self._closed.is_set():
            raise _gone()
        nonce = secrets.randbits(32)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = future
        try:
            async with asyncio.timeout(deadline):
                self._writer.write(encode(Frame(kind, nonce, payload)))
                await self._writer.drain()
                reply = await future
        except TimeoutError as err:
            raise Timeout(
                f"guest channel: no answer to {kind.name} in {deadline:g} s", reason="GuestSilent"
            ) from err
        except OSError as err:
            raise _gone() from err
        finally:
            self._waiting.pop(nonce, None)
            future.cancel()
        if reply.type == FrameType.REFUSED:
            raise _refused(kind, reply)
        if reply.type != kind + 1:  # a reply's type follows its request's
            raise _misbehaved(f"answered {kind.name} with a frame of type {reply.type:d}")
        return reply

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while not decoder.broken and (data := await self._reader.read(_READ)):
                for frame in decoder.feed(data):
                    self._take(frame)
        except (OSError, WireError):
            pass  # for the callers it is gone, whatever the cause: they connect anew
        finally:
            self._closed.set()
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_gone())

    def _take(self, frame: Frame) -> None:
        future = self._waiting.get(frame.nonce) if frame.type != FrameType.REPORT else None
        if future:
            if not future.done():
                future.set_result(frame)
            return
        self._unasked += 1
        if self._unasked > _MAX_UNASKED:
            raise WireError("too many frames that nobody asked for")
        report = parse_report(frame) if frame.type == FrameType.REPORT else None
        if report and self._on_report:
            self._on_report(report)


def _parse_info(fields: dict[int, bytes]) -> GuestInfo:
    return GuestInfo(
        boot_id=text(fields, Key.BOOT_ID),
        nonce=text(fields, Key.NONCE),
        kernel=text(fields, Key.KERNEL),
        init=text(fields, Key.INIT),
        asked=bool(number(fields, Key.ASKED, 0, 1)),
        lost=number(fields, Key.LOST, 0, (1 << 63) - 1),
        pid=number(fields, Key.PID, 1, 1 << 22) if Key.PID in fields else None,
        exit=parse_exit(fields) if Key.CODE in fields else None,
    )


def _refused(kind: FrameType, reply: Frame) -> Retry:
    try:
        errno = number(read_fields(reply.payload), Key.ERRNO, 1, 4095)
    except WireError as err:
        return _misbehaved(str(err))
    why = "it is too old to know that" if errno == ENOSYS else os.strerror(errno)
    return Retry(f"guest channel: the guest refused {kind.name}: {why}", reason="GuestRefused")


def _gone() -> Retry:
    return Retry("guest channel: the connection is gone; connect again", reason="GuestChannelDown")


def _misbehaved(what: str) -> Retry:
    return Retry(f"guest channel: the guest sent nonsense ({what})", reason="GuestMisbehaved")
