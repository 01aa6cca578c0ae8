"""How the loading of device state ends: said by an event, or by the death of the process.

QEMU reads the state from its main loop. One that it does not like makes it exit, often before it
has answered the command. What does not live here: the commands.
"""

import asyncio
import contextlib
from typing import Any

from controller.errors import Blocked, Retry
from controller.host.process import Process

LAST_SECONDS = 2.0  # for one that stopped answering to die


class Loading:
    """One attempt; make it before the command is sent, and ``forget`` it after."""

    def __init__(self, process: Process) -> None:
        self.told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._death = asyncio.ensure_future(process.wait())

    async def completed(self, seconds: float) -> None:
        """Return when the state is loaded.

        Raises Blocked when the VMM refused it (the process may still be dying), Retry when it was
        killed, or is not ready within ``seconds``.
        """
        either: set[asyncio.Future[Any]] = {self.told, self._death}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.told.done():
            if self.told.result() != "completed":
                raise _refused()
        elif self._death.done():
            # Of an earlier agent's child nobody knows how it died: the next one will be ours.
            code = self._death.result()
            raise _refused() if code is not None and code > 0 else Retry("it died meanwhile")
        else:
            raise Retry(f"it was not ready within {seconds:g} s")

    async def dies(self) -> bool:
        """Whether a process that does not answer any more ends within a moment."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._death), LAST_SECONDS)
        return self._death.done()

    def forget(self) -> None:
        """Wait no longer."""
        self._death.cancel()


def _refused() -> Blocked:
    return Blocked(
        "the VMM refused the device state; its log says why", reason="DeviceStateRefused"
    )
