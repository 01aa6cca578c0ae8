"""The host's end of the agent channel against a guest that answers, lies or says nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry, Timeout
from controller.guest.channel import Channel
from controller.guest.report import Report, Started
from controller.guest.wire import (
    PROTOCOL,
    Decoder,
    Frame,
    FrameType,
    Key,
    ReportKind,
    encode,
    integer,
    pack,
    unpack,
)
from tests.waiting import until

HELLO = [(Key.PROTOCOL, PROTOCOL), (Key.BOOT_ID, b"boot"), (Key.NONCE, b"nonce")]
INFO = [*HELLO, (Key.KERNEL, b"6.x"), (Key.INIT, b"0"), (Key.ASKED, 0), (Key.LOST, 5)]

Answer = Callable[[Frame], bytes]


def honest(frame: Frame) -> bytes:
    payloads = {
        FrameType.HELLO: pack(HELLO),
        FrameType.INFO: pack([*INFO, (Key.PID, 80)]),
        FrameType.PING: frame.payload,
    }
    return encode(Frame(frame.type + 1, frame.nonce, payloads.get(FrameType(frame.type), b"")))


class FakeGuest:
    """A unix socket server that answers each frame with bytes of the test's choice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Answer = honest
        self.heard: list[Frame] = []
        self.connections = 0
        self.greeting = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        decoder = Decoder()
        writer.write(self.greeting)
        while data := await reader.read(4096):
            for frame in decoder.feed(data):
                self.heard.append(frame)
                writer.write(self.answer(frame))
        writer.close()


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    fake = FakeGuest(tmp_path / "agent.sock")
    server = await asyncio.start_unix_server(fake.serve, str(fake.path))
    yield fake
    server.close()
    for writer in fake.writers:
        writer.close()
    await server.wait_closed()


async def test_hello_tells_which_boot_answers(guest: FakeGuest) -> None:
    channel = await Channel.connect(guest.path, deadline=5)
    assert (channel.boot_id, channel.nonce) == ("boot", "nonce")
    info = await channel.info(5)
    assert (info.kernel, info.pid, info.lost, info.exit) == ("6.x", 80, 5, None)
    await channel.ping(5)
    await channel.close()
    assert channel.closed


async def test_exit_is_part_of_info(guest: FakeGuest) -> None:
    exit_ = [(Key.CODE, 137), (Key.SIGNAL, 9), (Key.OOM, 1)]
    payload = pack([*INFO, *exit_])
    guest.answer = lambda f: (
        encode(Frame(FrameType.INFO_REPLY, f.nonce, payload))
        if f.type == FrameType.INFO
        else honest(f)
    )
    channel = await Channel.connect(guest.path, deadline=5)
    info = await channel.info(5)
    assert info.exit
    assert (info.exit.code, info.exit.message, info.pid) == (137, "out of memory", None)
    await channel.close()


async def test_grace_goes_along_with_a_shutdown(guest: FakeGuest) -> None:
    channel = await Channel.connect(guest.path, deadline=5)
    await channel.shutdown(2.5)
    assert [(k, integer(v)) for k, v in unpack(guest.heard[-1].payload)] == [(Key.GRACE, 2500)]
    await channel.close()


async def test_reports_reach_the_callback(guest: FakeGuest) -> None:
    guest.greeting = encode(
        Frame(FrameType.REPORT, 1, pack([(Key.KIND, ReportKind.STARTED), (Key.PID, 80)]))
    )
    heard: list[Report] = []
    channel = await Channel.connect(guest.path, deadline=5, on_report=heard.append)
    assert heard == [Started(80)]
    await channel.close()


async def test_leftovers_of_an_earlier_connection_are_survived(guest: FakeGuest) -> None:
    """Half a frame comes first, once: it swallows the reply, and the next attempt succeeds."""
    guest.greeting = encode(Frame(FrameType.PONG, 1, b"x" * 500))[:9]

    def answer(frame: Frame) -> bytes:
        guest.greeting = b""
        return honest(frame)

    guest.answer = answer
    channel = await Channel.connect(guest.path, deadline=5)
    await channel.ping(5)
    assert guest.connections == 2
    await channel.close()


async def test_replies_to_somebody_elses_requests_are_ignored(guest: FakeGuest) -> None:
    guest.answer = lambda f: encode(Frame(f.type + 1, f.nonce ^ 1, b"")) + honest(f)
    channel = await Channel.connect(guest.path, deadline=5)
    await channel.ping(5)
    await channel.close()


async def test_silent_guest_is_a_timeout(guest: FakeGuest) -> None:
    guest.answer = lambda frame: b""
    with pytest.raises(Timeout, match="no answer to HELLO"):
        await Channel.connect(guest.path, deadline=0.2)


async def test_no_socket_is_a_retry(tmp_path: Path) -> None:
    with pytest.raises(Retry, match="No such file") as caught:
        await Channel.connect(tmp_path / "none", deadline=0.1)
    assert caught.value.reason == "GuestChannelDown"


async def test_other_protocol_needs_a_human(guest: FakeGuest) -> None:
    guest.answer = lambda f: encode(
        Frame(FrameType.HELLO_REPLY, f.nonce, pack([(Key.PROTOCOL, PROTOCOL + 1)]))
    )
    with pytest.raises(Blocked, match="protocol"):
        await Channel.connect(guest.path, deadline=1)


async def _connected_then(guest: FakeGuest, answer: Answer) -> Channel:
    channel = await Channel.connect(guest.path, deadline=5)
    guest.answer = answer
    return channel


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda f: encode(Frame(FrameType.REFUSED, f.nonce)), "GuestMisbehaved"),
        (lambda f: encode(Frame(FrameType.INFO_REPLY, f.nonce, b"\1")), "GuestMisbehaved"),
        (lambda f: encode(Frame(FrameType.INFO_REPLY, f.nonce)), "GuestMisbehaved"),
        (lambda f: b"\xff" * 8, "GuestChannelDown"),
        (lambda f: encode(Frame(FrameType.PONG, 0)) * 300, "GuestChannelDown"),
        (lambda f: encode(Frame(FrameType.REPORT, 0, b"\1")), "GuestChannelDown"),
        (lambda f: b"", "GuestSilent"),
    ],
)
async def test_nonsense_ends_the_call_with_a_retry(
    guest: FakeGuest, answer: Answer, reason: str
) -> None:
    channel = await _connected_then(guest, answer)
    with pytest.raises(Retry) as caught:
        await channel.info(0.5)
    assert caught.value.reason == reason
    await channel.close()


async def test_hang_up_fails_what_waits_and_what_comes(guest: FakeGuest) -> None:
    channel = await _connected_then(guest, lambda frame: b"")

    async def hang_up() -> None:
        await until(lambda: any(frame.type == FrameType.INFO for frame in guest.heard))
        guest.writers[-1].close()

    calls: list[Awaitable[object]] = [channel.info(5), hang_up()]
    failed, _ = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(failed, Retry)
    await channel.wait_closed()
    with pytest.raises(Retry):
        await channel.ping(5)
    await channel.close()


async def test_close_does_not_swallow_the_order_to_end_its_caller(guest: FakeGuest) -> None:
    channel = await Channel.connect(guest.path, deadline=5)
    closing = asyncio.create_task(channel.close())
    await asyncio.sleep(0)  # it has begun to wait for the reader's end
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


Ask = Callable[[Channel], Awaitable[object]]
REPAIRS: dict[FrameType, Ask] = {
    FrameType.TIME: lambda channel: channel.step_clock(1_700_000_000_123_456_789, 0.5),
    FrameType.RESEED: lambda channel: channel.reseed(b"s" * 64, 0.5),
    FrameType.IDENTITY: lambda channel: channel.identify("web-2", "ab" * 16, "n2", 0.5),
}
TOLD: dict[FrameType, list[tuple[int, bytes | int]]] = {
    FrameType.TIME: [(Key.WALL, 1_700_000_000_123_456_789)],
    FrameType.RESEED: [(Key.SEED, b"s" * 64)],
    FrameType.IDENTITY: [
        (Key.HOSTNAME, b"web-2"),
        (Key.MACHINE_ID, b"ab" * 16),
        (Key.NONCE, b"n2"),
    ],
}
repairs = pytest.mark.parametrize("kind", REPAIRS)


def token_of(frame: Frame) -> bytes:
    return dict(unpack(frame.payload))[Key.TOKEN]


def with_token(frame: Frame, token: bytes) -> bytes:
    return encode(Frame(frame.type + 1, frame.nonce, pack([(Key.TOKEN, token)])))


@repairs
async def test_a_repair_is_done_when_its_token_comes_back(
    guest: FakeGuest, kind: FrameType
) -> None:
    channel = await _connected_then(guest, lambda f: with_token(f, token_of(f)))
    await REPAIRS[kind](channel)
    await REPAIRS[kind](channel)
    first, second = guest.heard[-2:]
    assert first.type == second.type == kind
    assert len(token_of(first)) == 16
    assert token_of(first) != token_of(second)
    fields = [field for field in unpack(first.payload) if field[0] != Key.TOKEN]
    assert fields == unpack(pack(TOLD[kind]))
    assert channel.nonce == ("n2" if kind == FrameType.IDENTITY else "nonce")
    await channel.close()


@repairs
@pytest.mark.parametrize(
    ("answer", "reason", "why"),
    [
        (
            lambda f: encode(Frame(FrameType.REFUSED, f.nonce, pack([(Key.ERRNO, 28)]))),
            "GuestRefused",
            "No space left",
        ),
        (
            lambda f: encode(Frame(FrameType.REFUSED, f.nonce, pack([(Key.ERRNO, 38)]))),
            "GuestRefused",
            "too old",
        ),
        (lambda f: encode(Frame(FrameType.REFUSED, f.nonce)), "GuestMisbehaved", "ERRNO|number"),
        (lambda f: with_token(f, bytes(16)), "GuestMisbehaved", "token"),
        (lambda f: with_token(f, token_of(f)[:15]), "GuestMisbehaved", "token"),
        (lambda f: encode(Frame(f.type + 1, f.nonce)), "GuestMisbehaved", "token"),
        (lambda f: encode(Frame(f.type + 1, f.nonce, b"\1")), "GuestMisbehaved", "half a field"),
        (
            lambda f: encode(Frame(FrameType.PONG, f.nonce, f.payload)),
            "GuestMisbehaved",
            "frame of type 6",
        ),
        (lambda f: b"", "GuestSilent", "no answer"),
    ],
)
async def test_a_repair_without_its_token_did_not_happen(
    guest: FakeGuest, kind: FrameType, answer: Answer, reason: str, why: str
) -> None:
    channel = await _connected_then(guest, answer)
    with pytest.raises(Retry, match=why) as caught:
        await REPAIRS[kind](channel)
    assert caught.value.reason == reason
    assert isinstance(caught.value, Timeout) == (reason == "GuestSilent")
    assert channel.nonce == "nonce"
    await channel.close()


async def test_setting_the_clock_tells_how_far_behind_it_may_be(guest: FakeGuest) -> None:
    channel = await _connected_then(guest, lambda f: with_token(f, token_of(f)))
    assert 0 < await channel.step_clock(1, 5) < 5
    await channel.close()
