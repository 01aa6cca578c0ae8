"""What a driver holds of its VMMs: for each a process behind a pidfd, a link to talk, a watch.

All of it can be lost and found again from a Handle. What does not live here: what is said over a
link, and any kind of VMM.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from controller.errors import Retry
from controller.host.process import Gone, Process
from controller.vmm.driver import EventKind, Handle, OnEvent

KILL_SECONDS = 10.0


class Link(Protocol):
    """A connection to one VMM; ``close`` never raises."""

    async def close(self) -> None:
        """Let go of it."""
        ...


L = TypeVar("L", bound=Link)


@dataclass
class Held(Generic[L]):
    """One VMM."""

    handle: Handle
    process: Process
    link: L
    watch: asyncio.Task[None] | None = None


class HeldVmms(Generic[L]):
    """The VMMs of one driver, by the Instance's UID. ``make_link`` makes a link, not yet open.

    ``tell`` hears of their deaths.
    """

    def __init__(self, make_link: Callable[[Handle], L], tell: OnEvent) -> None:
        self._make_link = make_link
        self._tell = tell
        self._held: dict[str, Held[L]] = {}

    def get(self, uid: str) -> Held[L] | None:
        """The VMM we hold for ``uid``, if any."""
        return self._held.get(uid)

    def hold(self, handle: Handle, process: Process) -> Held[L]:
        """Hold a VMM that is not watched yet: its death is the caller's to see."""
        held = self._held[handle.uid] = Held(handle, process, self._make_link(handle))
        return held

    def watch(self, held: Held[L]) -> None:
        """From now on the death of this VMM is an event."""
        held.watch = asyncio.create_task(self._tell_death(held))

    async def find(self, handle: Handle) -> Held[L]:
        """The VMM of ``handle``, held and watched, found again if need be. Raises Gone."""
        held = self._held.get(handle.uid)
        if held is not None and held.handle != handle:
            await self.release(handle.uid)
            held = None
        if held is None:
            held = self.hold(handle, Process.adopt(handle.identity))
            self.watch(held)
        if held.process.dead:
            raise Gone(f"the VMM of {handle.uid}, process {handle.identity.pid}, is dead")
        return held

    async def release(self, uid: str) -> None:
        """Let go of the VMM of ``uid``; it lives on."""
        held = self._held.get(uid)
        if held is None:
            return
        if held.process.dead and held.watch is not None:
            await self.bury(uid)
            return
        del self._held[uid]
        if held.watch is not None:
            held.watch.cancel()
        await held.link.close()
        held.process.leave()

    async def bury(self, uid: str) -> None:
        """Return once nothing is held of a dead VMM, and its death is told."""
        held = self._held.get(uid)
        if held is not None and held.watch is not None and held.process.dead:
            await asyncio.wait({held.watch})

    async def _tell_death(self, held: Held[L]) -> None:
        await held.process.wait()
        self._tell(held.handle.uid, EventKind.DIED)
        await held.link.close()
        if self._held.get(held.handle.uid) is held:
            del self._held[held.handle.uid]
        held.process.close()


async def kill(handle: Handle) -> None:
    """Kill the process and return when it is dead; a dead one is success. Raises Retry."""
    try:
        process = Process.adopt(handle.identity)
    except Gone:
        return
    try:
        with contextlib.suppress(Gone):
            process.signal(signal.SIGKILL)
        await asyncio.wait_for(process.wait(), KILL_SECONDS)
    except TimeoutError:
        raise Retry(
            f"process {handle.identity.pid} did not die within {KILL_SECONDS:g} s of SIGKILL: it"
            " waits in the kernel, probably for a disk",
            reason="VmmUnkillable",
        ) from None
    finally:
        process.close()
