"""One QMP connection: a deadline on every command, events by callback, reconnect on demand.

Built on qemu.qmp, with what that library leaves to its user:

- A monitor serves one client. A second one connects, and waits for a greeting that never comes; so
  does the client of a stopped or wedged VMM. Every wait here has a deadline (``Timeout``).
- The library keeps every event for ever, twice. ``_Client`` keeps none.
- A lost connection leaves exceptions in tasks; somebody has to collect them (``close``).

Events that arrive while nobody is connected are lost: ask after a reconnect. What does not live
here: what commands mean.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from controller.errors import Retry, Timeout
from controller.vmm.driver import NotAllowed

COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 2.0
_CLOSE_SECONDS = 1.0
_REPLY_BYTES = 1024 * 1024  # the longest answer that we ask for is a few KiB

# The library logs every failed connection as an error; here that is an answer like another.
_LIBRARY_LOG = "torpor"
logging.getLogger(f"qemu.qmp.protocol.{_LIBRARY_LOG}").setLevel(logging.CRITICAL)
logging.getLogger(f"qemu.qmp.qmp_client.{_LIBRARY_LOG}").setLevel(logging.CRITICAL)

OnQmpEvent = Callable[[str, Mapping[str, Any]], None]
"""Called with the event's name and data."""


class _Client(QMPClient):  # type: ignore[misc]  # the library is not checked here
    def __init__(self, on_event: OnQmpEvent) -> None:
        super().__init__(_LIBRARY_LOG, readbuflen=_REPLY_BYTES)
        self._on_event = on_event

    async def _event_dispatch(self, msg: Mapping[str, Any]) -> None:
        data = msg.get("data")
        self._on_event(str(msg.get("event")), data if isinstance(data, dict) else {})

    def _cb_outbound(self, msg: Message) -> Message:
        return msg  # the library would print it nicely for a log that nobody keeps

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def abort(self) -> None:
        """Close the socket without a word; the library's tasks end by themselves then."""
        if self._writer is not None:
            self._writer.transport.abort()


class Monitor:
    """The connection to one VMM's monitor at ``path``. For one event loop."""

    def __init__(self, path: Path, on_event: OnQmpEvent) -> None:
        self.path = path
        self._on_event = on_event
        self._client: _Client | None = None
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as we know."""
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    async def connect(self, seconds: float = CONNECT_SECONDS) -> None:
        """Connect unless connected. Raises Timeout (busy, wedged), Retry (nobody there)."""
        async with self._connecting:
            if self.connected:
                return
            await self._drop()
            client = _Client(self._on_event)
            try:
                await asyncio.wait_for(client.connect(str(self.path)), seconds)
            except TimeoutError:
                raise Timeout(
                    f"monitor {self.path} did not greet within {seconds:g} s: the VMM is stopped or"
                    " busy, or another client holds its monitor",
                    reason="VmmSilent",
                ) from None
            except (QMPError, OSError, EOFError) as error:
                raise Retry(
                    f"cannot connect to monitor {self.path}: {_cause(error)}", reason="VmmSilent"
                ) from error
            self._client = client

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        seconds: float = COMMAND_SECONDS,
    ) -> Any:
        """Run one command and return its answer.

        Raises Timeout (the effect is unknown), NotAllowed (no effect), Retry (connection lost: the
        effect is unknown too).
        """
        return await self._run(command, arguments, None, seconds)

    async def execute_with_fd(self, command: str, arguments: Mapping[str, object], fd: int) -> Any:
        """Run one command that takes a descriptor (``getfd``, ``add-fd``); ours stays open."""
        return await self._run(command, arguments, fd, COMMAND_SECONDS)

    async def close(self) -> None:
        """Let go of the connection, if there is one; never raises."""
        async with self._connecting:
            await self._drop()

    async def _run(
        self, command: str, arguments: Mapping[str, object] | None, fd: int | None, seconds: float
    ) -> Any:
        await self.connect()
        client = self._client
        if client is None:
            raise Retry(f"monitor {self.path} was closed", reason="VmmSilent")
        try:
            if fd is not None:
                client.send_fd_scm(fd)
            return await asyncio.wait_for(client.execute(command, arguments), seconds)
        except TimeoutError:
            raise Timeout(
                f"the VMM at {self.path} did not answer {command} within {seconds:g} s",
                reason="VmmSilent",
            ) from None
        except ExecuteError as error:
            raise NotAllowed(f"the VMM at {self.path} refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise Retry(
                f"connection to {self.path} was lost in {command}: {_cause(error)}",
                reason="VmmSilent",
            ) from error

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            # Raises whatever ended the connection before: collected here, and known already.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await asyncio.wait_for(client.disconnect(), _CLOSE_SECONDS)
        except TimeoutError:
            client.abort()


def _cause(error: BaseException) -> str:
    inner = getattr(error, "exc", None) or error
    return str(inner) or type(inner).__name__
