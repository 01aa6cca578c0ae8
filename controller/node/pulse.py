"""A cheap look at every VMM's process, every few seconds: who stands still tells nobody.

Death comes as an event; a VMM that is stopped (SIGSTOP, a debugger) or whose log keeper died does
not announce it. Reading one line of /proc for each VMM costs some microseconds, asking the kernel
for all keepers at once costs nothing; asking each VMM over its monitor would cost a hundred times
that, all day. What does not live here: what is done about it; a pass looks closer.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import Collection
from dataclasses import dataclass, field

from controller.host.process import Gone, Identity, open_pidfd, state_letter
from controller.node import adopt
from controller.node.intake import Intake
from controller.node.parts import Parts
from controller.node.record import Record

PULSE_SECONDS = 4.0  # a hung VMM is to show as Unknown within 10 s, its monitor's deadline included
STANDING = ("T", "t")


@dataclass
class Pulse:
    """The watch over this node's processes; ``run`` repeats ``once`` for ever."""

    parts: Parts
    intake: Intake
    _pidfds: dict[Identity, int] = field(default_factory=dict)  # of the log keepers

    async def run(self) -> None:
        """Look every few seconds."""
        try:
            while True:
                await asyncio.sleep(PULSE_SECONDS)
                await self.once()
        finally:
            self._hold([])

    async def once(self) -> None:
        """Queue every Instance whose VMM stands still; replace log keepers that are dead."""
        kept: dict[Identity, Record] = {}
        for record in self.parts.records.known():
            vmm = record.open.vmm if record.open else None
            if vmm is None:
                continue
            kept[vmm.keeper.identity] = record
            if state_letter(vmm.process.identity) in STANDING:
                self.intake.news(record.uid)
        self._hold(kept)
        for keeper in self._dead(kept):
            await adopt.keep_logs(self.parts, kept[keeper])

    def _hold(self, keepers: Collection[Identity]) -> None:
        """Have a pidfd of each of these that lives, and no others."""
        for gone in self._pidfds.keys() - set(keepers):
            os.close(self._pidfds.pop(gone))
        for new in set(keepers) - self._pidfds.keys():
            with contextlib.suppress(Gone):
                self._pidfds[new] = open_pidfd(new)

    def _dead(self, keepers: Collection[Identity]) -> list[Identity]:
        poll = select.poll()
        for pidfd in self._pidfds.values():
            poll.register(pidfd, select.POLLIN)
        ended = {pidfd for pidfd, _ in poll.poll(0)}
        return [who for who in keepers if self._pidfds.get(who) in ended or who not in self._pidfds]
