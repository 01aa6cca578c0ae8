"""A connection to the monitor of one hollow VMM: numbered lines, and events between them.

What does not live here: what a line means to a VMM (``hollow_process``), and when one is said.
"""

import asyncio
import contextlib
from collections.abc import Callable

from controller.errors import Blocked, Retry, Timeout
from controller.vmm.driver import EventKind, Handle, NotAllowed
from controller.vmm.machine import socket_path

MONITOR_SOCKET = "hollow.sock"
SECONDS = 5.0  # for any answer
LINE_BYTES = 64 * 1024
_EVENTS = {
    "changed": EventKind.CHANGED,
    "storage": EventKind.STORAGE,
    "spoke": EventKind.SPOKE,
}


class Refused(Blocked):
    """The VMM refused its device state, and ends."""

    default_reason = "DeviceStateRefused"


class Link:
    """A connection to one hollow VMM's monitor: numbered lines, and events between them."""

    def __init__(
        self, handle: Handle, tell: Callable[[EventKind], None], lost: Callable[[], None]
    ) -> None:
        self._lost = lost
        self._path = socket_path(handle.run_dir, MONITOR_SOCKET)
        self._tell = tell
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._number = 0

    @property
    def connected(self) -> bool:
        """Whether it stands, as far as we know."""
        return self._reading is not None and not self._reading.done()

    async def connect(self, seconds: float) -> None:
        """Connect anew. Raises Timeout, Retry."""
        await self.close()
        try:
            async with asyncio.timeout(seconds):
                reader, self._writer = await asyncio.open_unix_connection(
                    str(self._path), limit=LINE_BYTES
                )
                greeting = await reader.readline()
        except TimeoutError:
            await self.close()
            raise Timeout(f"{self._path} does not greet", reason="VmmSilent") from None
        except OSError as error:
            raise Retry(f"cannot connect to {self._path}: {error}", reason="VmmSilent") from error
        if greeting != b"hollow 1\n":
            await self.close()
            raise Retry(f"{self._path} greets with {greeting[:40]!r}", reason="VmmSilent")
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, words: str) -> str:
        """One command and its answer. Raises Timeout, Retry, NotAllowed, Blocked, Refused."""
        if self._writer is None:
            raise Retry(f"{self._path} is not connected", reason="VmmSilent")
        self._number += 1
        number = str(self._number)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(f"{number} {words}\n".encode())
        try:
            said: str = await asyncio.wait_for(answer, SECONDS)
        except TimeoutError:
            word = words.partition(" ")[0]
            raise Timeout(f"{self._path} did not answer {word}", reason="VmmSilent") from None
        finally:
            self._waiting.pop(number, None)
        verdict, _, text = said.partition(" ")
        if verdict != "ok":
            raise self._refusal(verdict, text)
        return text

    async def close(self) -> None:
        """As held.Link says."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reading = self._writer = None

    def _refusal(self, verdict: str, text: str) -> Retry | Blocked:
        if verdict == "refused":
            return Refused(f"{self._path} refused its device state: {text}")
        if verdict == "unknown":
            return Blocked(f"{self._path} has unknown memory: {text}", reason="UnknownMemory")
        if verdict == "failed":
            return Retry(f"{self._path} failed: {text}", reason="DeviceStateUnsaved")
        return NotAllowed(f"{self._path} refused: {text}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "closed its monitor"
        try:
            while line := await reader.readline():
                number, _, rest = line.decode().rstrip("\n").partition(" ")
                if number == "event":
                    self._tell(_EVENTS[rest])
                elif number in self._waiting:
                    self._waiting[number].set_result(rest)
                elif not number.isdecimal():  # a number is an answer that came too late
                    raise ValueError(number)
        except (OSError, ValueError, KeyError) as error:
            why = f"speaks nonsense: {error!r}"
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Retry(f"{self._path} {why}", reason="VmmSilent"))
        self._lost()
