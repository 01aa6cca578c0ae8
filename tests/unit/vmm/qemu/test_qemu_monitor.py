"""One QMP connection, against a server that may be slow, silent, rude or gone."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Retry, Timeout
from controller.vmm.driver import NotAllowed
from controller.vmm.qemu.monitor import Monitor

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 2}}, "capabilities": []}}\r\n'

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qmp") as home:  # short, for a socket
        yield Path(home) / "s"


class Server:
    """A QMP server that answers by a table: command -> reply without its id."""

    def __init__(self, replies: Mapping[str, dict[str, Any] | bytes | None]) -> None:
        self.replies = replies
        self.writer: asyncio.StreamWriter | None = None
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        writer.write(GREETING)
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(4096):
            text += data.decode()
            while text.strip():
                try:
                    message, end = decoder.raw_decode(text.strip())
                except ValueError:
                    break
                text = text.strip()[end:]
                self.answer(message, writer)
        writer.close()

    def answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        reply = self.replies.get(message["execute"], {"return": {}})
        if isinstance(reply, bytes):
            writer.write(reply)
        elif reply is not None:
            writer.write(json.dumps({**reply, "id": message["id"]} if "id" in message else reply)
                         .encode() + b"\r\n")  # fmt: skip


Started = Callable[[Server], Awaitable[Server]]


@pytest.fixture
async def started(path: Path) -> AsyncIterator[Started]:
    servers = []

    async def start(server: Server) -> Server:
        servers.append(await asyncio.start_unix_server(server.serve, str(path)))
        return server

    yield start
    for each in servers:
        each.close()


async def test_a_command_gets_its_answer(path: Path, started: Started) -> None:
    await started(Server({"query-status": {"return": {"status": "running"}}}))
    monitor = Monitor(path, lambda _n, _d: None)
    assert await monitor.execute("query-status") == {"status": "running"}
    await monitor.close()
    assert not monitor.connected


async def test_no_answer_is_a_timeout(path: Path, started: Started) -> None:
    await started(Server({"cont": None}))
    monitor = Monitor(path, lambda _n, _d: None)
    with pytest.raises(Timeout, match="cont"):
        await monitor.execute("cont", seconds=0.05)
    await monitor.close()


async def test_a_refusal_is_no_effect(path: Path, started: Started) -> None:
    error = {"error": {"class": "GenericError", "desc": "Resetting is required"}}
    await started(Server({"cont": error}))
    monitor = Monitor(path, lambda _n, _d: None)
    with pytest.raises(NotAllowed, match="Resetting is required"):
        await monitor.execute("cont")
    assert monitor.connected
    await monitor.close()


async def test_a_silent_monitor_is_a_timeout_not_an_absence(path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(silence, str(path))
    monitor = Monitor(path, lambda _n, _d: None)
    with pytest.raises(Timeout):
        await monitor.connect(0.05)
    assert not monitor.connected
    server.close()


async def test_nobody_there_is_a_retry(path: Path) -> None:
    monitor = Monitor(path, lambda _n, _d: None)
    with pytest.raises(Retry) as caught:
        await monitor.execute("query-status")
    assert not isinstance(caught.value, Timeout)
    await monitor.close()


async def test_garbage_is_a_retry_and_the_next_command_connects_anew(
    path: Path, started: Started
) -> None:
    server = Server({"stop": b"{]\r\n"})
    await started(server)
    monitor = Monitor(path, lambda _n, _d: None)
    with pytest.raises(Retry):
        await monitor.execute("stop")
    assert await monitor.execute("query-status") == {}
    assert server.connections == 2
    await monitor.close()


async def test_events_are_told_and_not_kept(path: Path, started: Started) -> None:
    server = await started(Server({}))
    heard: list[tuple[str, Mapping[str, Any]]] = []
    monitor = Monitor(path, lambda name, data: heard.append((name, data)))
    await monitor.connect()
    assert server.writer is not None
    event = {"event": "STOP", "data": {"n": 1}, "timestamp": {"seconds": 1, "microseconds": 2}}
    for _ in range(100):
        server.writer.write(json.dumps(event).encode() + b"\r\n")
    assert await monitor.execute("query-status") == {}  # comes after all of them
    assert heard == [("STOP", {"n": 1})] * 100
    client = monitor._client
    assert client is not None
    assert client.events.empty()
    assert client.events.history == ()
    await monitor.close()
