"""A cheap look at every VMM's process, every few seconds: who stands still tells nobody.

Death comes as an event; a VMM that is stopped (SIGSTOP, a debugger) or whose log keeper died does
not announce it. Reading one line of /proc for each costs some microseconds; asking each VMM over
its monitor would cost a hundred times that, all day. What does not live here: what is done about
it; a pass looks closer.
"""

import asyncio
from dataclasses import dataclass

from controller.host.process import is_alive, is_stopped
from controller.node import adopt
from controller.node.intake import Intake
from controller.node.parts import Parts

PULSE_SECONDS = 4.0  # a hung VMM is to show as Unknown within 10 s, its monitor's deadline included


@dataclass
class Pulse:
    """The watch over this node's processes; ``run`` repeats ``once`` for ever."""

    parts: Parts
    intake: Intake

    async def run(self) -> None:
        """Look every few seconds."""
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            await self.once()

    async def once(self) -> None:
        """Queue every Instance whose VMM stands still; replace log keepers that are dead."""
        for record in self.parts.records.known():
            vmm = record.open.vmm if record.open else None
            if vmm is None:
                continue
            if is_stopped(vmm.process.identity):
                self.intake.news(record.uid)
            elif not is_alive(vmm.keeper.identity):
                await adopt.keep_logs(self.parts, record)
