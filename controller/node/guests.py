"""The agent's connections to its guests: one task for each living VMM, reconnecting by itself.

A connection only brings news sooner ("look again") and carries the request to shut down. What the
guest told about its run is read from the report file, which is there whether we were or not.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from controller.errors import Retry, TorporError
from controller.guest.channel import Channel

log = logging.getLogger(__name__)

CONNECT_DEADLINE = 2.0
FIRST_RETRY, LAST_RETRY = 0.2, 15.0
SHUTDOWN_DEADLINE = 3.0


class Guests:
    """All open channels of one agent. ``on_news`` gets the UID and must not block."""

    def __init__(self, on_news: Callable[[str], None]) -> None:
        self._on_news = on_news
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._channels: dict[str, Channel] = {}
        self._stopping: set[str] = set()
        self._opened = asyncio.Condition()

    def watch(self, uid: str, socket: Path) -> None:
        """Keep a channel to this guest open from now on. Calling again changes nothing."""
        if uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._keep(uid, socket), name=f"guest {uid}")

    def expect(self, uid: str, socket: Path) -> None:
        """It answers from now on: connect at once, however long it was silent, or not watched."""
        if uid not in self._channels and (task := self._tasks.pop(uid, None)) is not None:
            task.cancel()
        self.watch(uid, socket)

    async def drop(self, uid: str) -> None:
        """Forget this guest: its VMM is gone, or not ours to talk to any more."""
        self._stopping.discard(uid)
        task = self._tasks.pop(uid, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Close every channel; the guests do not notice."""
        for uid in list(self._tasks):
            await self.drop(uid)

    def stopping(self, uid: str) -> bool:
        """Whether this process has asked the guest to shut down, in its current run."""
        return uid in self._stopping

    def note_stopping(self, uid: str) -> None:
        """The guest was asked to shut down, in whatever way."""
        self._stopping.add(uid)

    async def channel(self, uid: str, deadline: float) -> Channel:
        """The open channel to this guest, waited for. Raises Retry (GuestSilent)."""
        try:
            async with asyncio.timeout(deadline):
                async with self._opened:
                    await self._opened.wait_for(lambda: uid in self._channels)
                    return self._channels[uid]
        except TimeoutError:
            raise Retry(
                f"the guest has not answered on its agent channel within {deadline:g} s",
                reason="GuestSilent",
            ) from None

    async def shut_down(self, uid: str, grace: int) -> None:
        """Ask the guest's init to end. Raises Retry when it cannot be asked."""
        channel = self._channels.get(uid)
        if channel is None:
            raise Retry("the guest's agent channel is not open", reason="GuestSilent")
        await asyncio.wait_for(channel.shutdown(grace), SHUTDOWN_DEADLINE)

    async def _keep(self, uid: str, socket: Path) -> None:
        delay = FIRST_RETRY
        while True:
            try:
                channel = await Channel.connect(
                    socket, deadline=CONNECT_DEADLINE, on_report=lambda _: self._on_news(uid)
                )
            except (TorporError, OSError) as err:
                log.debug("guest %s: channel: %s", uid, err)
            else:
                delay = FIRST_RETRY
                await self._serve(uid, channel)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY)

    async def _serve(self, uid: str, channel: Channel) -> None:
        self._channels[uid] = channel
        async with self._opened:
            self._opened.notify_all()
        try:
            self._on_news(uid)
            await channel.wait_closed()
        finally:
            self._channels.pop(uid, None)
            await channel.close()
