"""A node agent, over its own Unix socket: where the socket is, and what is asked there.

What does not live here: printing, and which Instance is meant (``lookup``).
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from controller.errors import Rejected, Retry, TorporError
from controller.local import install as installs
from controller.local.install import Install

SOCKET = "agent.sock"
ANSWER_SECONDS = 10.0
IDLE_SECONDS = 2.0  # after this much silence: does the Instance still exist?
ERROR_BYTES = 4096
VERIFY_SECONDS = 3600.0  # at a gibibyte a second, more memory than an Instance may have


class Away(Retry):
    """No agent listens there, or it went away in the middle."""

    default_reason = "AgentAway"


class NotHere(TorporError):
    """The agent has nothing of that Instance (any more)."""

    default_reason = "NotHere"


@dataclass(frozen=True)
class CheckedFile:
    """One file of a snapshot: what it is for, its length in bytes, its digest."""

    role: str
    size: int
    digest: str


@dataclass(frozen=True)
class Verified:
    """What became of reading a whole snapshot: ``problems`` in sentences, none when it is whole."""

    problems: tuple[str, ...]
    files: tuple[CheckedFile, ...]


@dataclass(frozen=True)
class Agent:
    """One node's agent, known by its socket."""

    socket: Path

    async def logs(self, uid: str, source: str, tail: int | None) -> bytes:
        """What is there now, at most the last ``tail`` lines. Raises Away, NotHere, Rejected."""
        async with self._ask(uid, source, tail, follow=False) as response:
            return await response.read()

    async def follow(self, uid: str, source: str, tail: int | None) -> AsyncIterator[bytes]:
        """The same, then what comes, for ever. The first block may be empty: it is connected.

        Raises NotHere when the Instance is deleted, Away, Rejected.
        """
        async with self._ask(uid, source, tail, follow=True) as response:
            yield b""
            while True:
                reading = asyncio.ensure_future(response.content.readany())
                try:
                    while not (await asyncio.wait({reading}, timeout=IDLE_SECONDS))[0]:
                        await self.logs(uid, source, 0)  # raises NotHere once it is deleted
                finally:
                    if not reading.done():
                        reading.cancel()
                if not (block := reading.result()):
                    raise Away(f"the agent at {self.socket} ended the stream")
                yield block

    async def verify(self, uid: str) -> Verified:
        """Have every file of the Instance's snapshot read. Raises Away, NotHere, Rejected."""
        async with self._get("verify", {"uid": uid}, VERIFY_SECONDS) as response:
            body = await response.read()
        return _verified(body)

    @asynccontextmanager
    async def _ask(
        self, uid: str, source: str, tail: int | None, *, follow: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        query = {"uid": uid, "source": source}
        query |= {"tail": str(tail)} if tail is not None else {}
        query |= {"follow": "1"} if follow else {}
        # a stream that is followed may be silent for days
        async with self._get("logs", query, None if follow else ANSWER_SECONDS) as response:
            yield response

    @asynccontextmanager
    async def _get(
        self, path: str, query: dict[str, str], silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS, sock_read=silence)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(self.socket)), timeout=timeout
                ) as session,
                session.get(f"http://agent/{path}", params=query) as response,
            ):
                if response.status != 200:
                    raise _refusal(response.status, await response.content.read(ERROR_BYTES))
                yield response
        except PermissionError as err:
            raise Rejected(f"{self.socket} belongs to root; use sudo") from err
        except aiohttp.ClientConnectorError as err:
            if isinstance(err.os_error, PermissionError):
                raise Rejected(f"{self.socket} belongs to root; use sudo") from err
            raise self._away(err.os_error.strerror or str(err)) from err
        except (aiohttp.ClientError, ConnectionError) as err:
            raise self._away(str(err) or type(err).__name__) from err

    def _away(self, why: str) -> Away:
        return Away(
            f"the node agent does not answer on {self.socket} ({why}); is it running? "
            "torpor status shows a local cluster's; guests run on without it"
        )


def _verified(body: bytes) -> Verified:
    try:
        said = json.loads(body)
        files = tuple(
            CheckedFile(str(file["role"]), int(file["bytes"]), str(file["digest"]))
            for file in said["files"]
        )
        return Verified(tuple(map(str, said["problems"])), files)
    except (ValueError, KeyError, TypeError) as err:
        raise TorporError(
            f"the node agent's answer cannot be read ({err!r}); is it of another release?"
        ) from err


def _refusal(status: int, body: bytes) -> TorporError:
    try:
        said = json.loads(body)
        reason, message = str(said["reason"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        return TorporError(f"the node agent answered {status}; its log says more (--source agent)")
    if reason == "NotHere":
        return NotHere(message)
    return Rejected(message, reason=reason)


@dataclass(frozen=True)
class Place:
    """Where an agent is reached and where its own log is. ``log`` None: not ours to know."""

    agent: Agent
    log: Path | None


def local_install(directory: Path | None, kubeconfig: Path | None) -> Install | None:
    """The local cluster that is meant: the one of ``directory``, else the kubeconfig's, else the
    usual one. None where there is none. Raises Rejected when it is damaged.
    """
    if directory is not None:
        return installs.load(directory.absolute())
    if kubeconfig is not None and (beside := installs.load(kubeconfig.absolute().parent)):
        return beside
    return installs.load(installs.DEFAULT_DIRECTORY)


def place_of(node: str, socket: Path | None, install: Install | None) -> Place:
    """Where the agent of ``node`` is. Raises Rejected for a node of another machine."""
    if socket is not None:
        return Place(Agent(socket), None)
    if install is None:
        raise Rejected(
            f"it is on node {node}, and there is no local cluster here (torpor up); on that "
            "node's machine name its agent's socket: --socket RUN_DIR/agent.sock"
        )
    if node not in install.node_names:
        raise Rejected(
            f"it is on node {node}, which is no node of the cluster in {install.directory} "
            f"({', '.join(install.node_names)}); run this on that node's machine, with --socket"
        )
    settings = install.node_settings(install.node_names.index(node))
    log = install.directory / "log" / f"agent-{node}.log"
    return Place(Agent(settings.run_dir / SOCKET), log)
