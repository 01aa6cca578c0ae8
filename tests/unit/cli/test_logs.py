"""``torpor logs``: finding an agent, living through its restart, what is shown and what not."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from controller.cli import agentlog
from controller.cli import logs as command
from controller.cli.agent import Agent, Away, NotHere, local_install, place_of
from controller.cli.logs import Out, followed, subject_of
from controller.errors import Rejected, TorporError
from controller.local.install import Install
from tests.waiting import until

UID = "1f42d52e-fb78-4127-bb35-2726c25414e6"


class FakeAgent:
    """The /logs of an agent: ``written`` so far; ``gone`` when the Instance is deleted."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.written = b""
        self.gone = False
        self.asked: list[dict[str, str]] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/logs", self._logs)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.socket.unlink(missing_ok=True)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        if self.gone:
            return web.json_response({"reason": "NotHere", "message": "nothing of it"}, status=400)
        if request.query["source"] == "nonsense":
            return web.json_response({"reason": "Invalid", "message": "no such"}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        shown = 0 if request.query.get("tail") != "0" else len(self.written)
        while True:
            if new := self.written[shown:]:
                shown += len(new)
                await response.write(new)
            if not request.query.get("follow"):
                return response
            await asyncio.sleep(0.002)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "agent.sock")
    await fake.start()
    yield fake
    await fake.stop()


class Reader:
    """Reads a stream in the background; ``text`` is what came, ``error`` how it ended."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self.text = b""
        self.error: Exception | None = None
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: AsyncIterator[bytes]) -> None:
        try:
            async for block in stream:
                self.text += block
        except TorporError as err:
            self.error = err


async def test_what_is_there_is_read_at_once(agent):
    agent.written = b"one\x1b[2J\ntwo\n"
    assert await Agent(agent.socket).logs(UID, "workload", 5) == agent.written
    assert agent.asked == [{"uid": UID, "source": "workload", "tail": "5"}]


async def test_refusals_are_the_agents_words(agent):
    with pytest.raises(Rejected, match="no such"):
        await Agent(agent.socket).logs(UID, "nonsense", None)
    agent.gone = True
    with pytest.raises(NotHere, match="nothing of it"):
        await Agent(agent.socket).logs(UID, "workload", None)


async def test_an_agent_that_is_away_is_said_with_its_socket(tmp_path):
    with pytest.raises(Away, match=str(tmp_path / "agent.sock")):
        await Agent(tmp_path / "agent.sock").logs(UID, "workload", None)


async def test_an_agent_that_does_not_answer_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.cli.agent.ANSWER_SECONDS", 0.05)
    silent = await asyncio.start_unix_server(lambda reader, writer: None, tmp_path / "s")
    with pytest.raises(Away, match="does not answer"):
        await Agent(tmp_path / "s").logs(UID, "workload", None)
    silent.close()


async def test_following_shows_what_comes(agent):
    reader = Reader(followed(Agent(agent.socket), UID, "workload", None))
    agent.written += b"one\n"
    await until(lambda: reader.text == b"one\n")
    agent.written += b"two\n"
    await until(lambda: reader.text == b"one\ntwo\n")
    reader.task.cancel()
    assert agent.asked == [{"uid": UID, "source": "workload", "follow": "1"}]


async def test_following_lives_through_a_restart_of_the_agent(agent, capsys, monkeypatch):
    monkeypatch.setattr(command, "AGAIN_SECONDS", 0.01)
    agent.written = b"before\n"
    reader = Reader(followed(Agent(agent.socket), UID, "workload", None))
    await until(lambda: reader.text == b"before\n")
    await agent.stop()
    await until(lambda: command.MISSED in capsys.readouterr().err)
    agent.written += b"between\n"
    await agent.start()
    await until(lambda: len(agent.asked) == 2)
    agent.written += b"after\n"
    await until(lambda: reader.text == b"before\nafter\n")
    reader.task.cancel()
    assert agent.asked[-1]["tail"] == "0", "what was shown is not shown again"


async def test_following_gives_up_on_an_agent_that_stays_away(agent, monkeypatch):
    monkeypatch.setattr(command, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(command, "AGAIN_SECONDS", 0.01)
    agent.written = b"before\n"
    reader = Reader(followed(Agent(agent.socket), UID, "workload", None))
    await until(lambda: reader.text)
    await agent.stop()
    await asyncio.wait_for(reader.task, 10)
    assert isinstance(reader.error, Away)


async def test_following_ends_when_the_instance_is_deleted(agent, capsys, monkeypatch):
    monkeypatch.setattr("controller.cli.agent.IDLE_SECONDS", 0.02)
    agent.written = b"last words\n"
    reader = Reader(followed(Agent(agent.socket), UID, "workload", None))
    await until(lambda: reader.text)
    agent.gone = True
    await asyncio.wait_for(reader.task, 10)
    assert (reader.text, reader.error) == (b"last words\n", None)
    assert "the Instance is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([], "the operator has not seen it"),
        ([{"type": "Ready", "message": "Waiting for the operator"}], "Waiting for the operator"),
        (
            [
                {"type": "Ready", "message": "no"},
                {"type": "Scheduled", "message": "0/1 nodes are available"},
            ],
            "0/1 nodes are available",
        ),
    ],
)
def test_without_a_node_the_reason_is_told(conditions, said):
    fresh = {
        "metadata": {"name": "web", "namespace": "team", "uid": UID},
        "status": {"conditions": conditions},
    }
    with pytest.raises(TorporError, match=f"team/web is on no node yet.*{said}"):
        subject_of(fresh)


def install_in(directory: Path) -> Install:
    install = Install(
        id="0000abcd", directory=directory, control_plane=(1, 2, 3, 4, 5), registry=6,
        operator_probe=7, node_metrics=(8,),
    )  # fmt: skip
    directory.mkdir(exist_ok=True)
    (directory / "install.json").write_text(install.model_dump_json())
    return install


def test_the_agent_of_a_local_node_is_found(tmp_path):
    place = place_of("node-1", None, install_in(tmp_path))
    assert place.agent.socket == Path("/run/torpor/0000abcd/node-1/agent.sock")
    assert place.log == tmp_path / "log" / "agent-node-1.log"


def test_a_node_of_another_machine_is_refused_by_name(tmp_path):
    with pytest.raises(Rejected, match=r"on node far-away.*node-1.*--socket"):
        place_of("far-away", None, install_in(tmp_path))
    with pytest.raises(Rejected, match="no local cluster"):
        place_of("far-away", None, None)


def test_a_named_socket_wins(tmp_path):
    place = place_of("far-away", tmp_path / "s", None)
    assert (place.agent.socket, place.log) == (tmp_path / "s", None)


def test_the_cluster_is_the_one_named_else_the_kubeconfigs(tmp_path, monkeypatch):
    named, beside = install_in(tmp_path / "named"), install_in(tmp_path / "beside")
    usual = install_in(tmp_path / "usual")
    monkeypatch.setattr("controller.local.install.DEFAULT_DIRECTORY", usual.directory)
    config = beside.directory / "kubeconfig"
    assert local_install(named.directory, config) == named
    assert local_install(None, config) == beside
    assert local_install(None, tmp_path / "elsewhere") == usual
    assert local_install(tmp_path / "nothing", config) is None


def printed(terminal: bool, *blocks: bytes) -> bytes:
    raw = io.BytesIO()
    out = Out(raw, terminal)
    for block in blocks:
        out.write(block)
    out.end()
    return raw.getvalue()


def test_bytes_stay_as_they_are_in_a_pipe():
    assert printed(False, b"\x1b[2J\xff\r", b"\n") == b"\x1b[2J\xff\r\n"


def test_control_characters_cannot_drive_a_terminal():
    assert printed(True, b"\x1b]0;x\x07", b"caf\xc3", b"\xa9\r") == (
        b"\\x1b]0;x\\x07caf\xc3\xa9\\x0d"
    )


def log_of(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


async def collected(stream: AsyncIterator[bytes]) -> list[str]:
    return [line.decode().rstrip() async for line in stream]


async def test_agent_lines_are_those_about_the_instance(tmp_path):
    log = tmp_path / "agent-node-1.log"
    mine = ["team/web: StartVmm", f"VMM of {UID} died", "stopping team/web"]
    others = ["team/web2: StartVmm", "ateam/web: x", "team/web-1: x", "x/team/web: y", "team/web.b"]
    log_of(tmp_path / "agent-node-1.log.1", "team/web: earlier", "team/other: earlier")
    log_of(log, *mine, *others)
    assert await collected(agentlog.lines(log, UID, "team/web", None, False)) == [
        "team/web: earlier",
        *mine,
    ]
    assert await collected(agentlog.lines(log, UID, "team/web", 1, False)) == mine[-1:]
    assert await collected(agentlog.lines(log, UID, "team/web", 0, False)) == []


async def test_agent_lines_are_followed_over_a_rotation(tmp_path):
    log = tmp_path / "agent-node-1.log"
    log_of(log, "team/web: one")
    reader = Reader(agentlog.lines(log, UID, "team/web", None, True))
    await until(lambda: reader.text == b"team/web: one\n")
    log_of(log, "team/other: x", "team/web: two")
    await until(lambda: reader.text.endswith(b"team/web: two\n"))
    log.replace(tmp_path / "agent-node-1.log.1")
    log_of(log, "team/web: three")
    await until(lambda: reader.text == b"team/web: one\nteam/web: two\nteam/web: three\n")
    reader.task.cancel()


async def test_a_missing_agent_log_is_said(tmp_path):
    with pytest.raises(TorporError, match="is the agent running"):
        await collected(agentlog.lines(tmp_path / "none.log", UID, "team/web", None, False))
