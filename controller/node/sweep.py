"""Look for what nobody owns any more, and take it down with proof.

An Instance of this host is an orphan when its object is absent from a full, fresh, error-free list
of *all* Instances, and from a second one at least ``orphan_sweep_seconds`` later; the lists must be
of the cluster this agent started with. A failed list proves nothing. The same walk gives back
images, kernels and memory that nothing needs, and gives sleepers new bases where that is due.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from controller.core.observed import Unknown
from controller.errors import Bug, TorporError
from controller.host import files, runlock
from controller.kube.resources import INSTANCES
from controller.node import clock, identity, snapshots
from controller.node.observe import about
from controller.node.parts import Parts
from controller.node.rebasing import rebase_sleepers
from controller.node.worker import Worker

log = logging.getLogger(__name__)


@dataclass
class Sweep:
    """The walk over this host's Instances; ``run`` repeats it for ever."""

    parts: Parts
    worker: Worker
    suspects: dict[str, float] = field(default_factory=dict)  # UID -> boot time first missed

    async def run(self) -> None:
        """Walk every ``orphan_sweep_seconds``. A failure is logged and the next walk comes."""
        while True:
            await asyncio.sleep(self.parts.settings.orphan_sweep_seconds)
            try:
                await self.once()
            except (TorporError, OSError) as err:
                log.warning("sweep: %s; nothing was removed", err)

    async def once(self) -> tuple[str, ...]:
        """One walk. Returns the UIDs that were taken down."""
        await self._collect()
        for uid in await rebase_sleepers(self.parts):
            self.worker.intake.news(uid)  # its sizes are others now
        missing = await self._missing()
        now = clock.now()
        self.suspects = {uid: self.suspects.get(uid, now) for uid in missing}
        wait = self.parts.settings.orphan_sweep_seconds * 0.9  # two walks, whatever the jitter
        proven = [uid for uid, since in self.suspects.items() if now - since >= wait]
        return tuple([uid for uid in proven if await self._take_down(uid)])

    async def _missing(self) -> set[str]:
        """UIDs on this host whose object does not exist. Raises when that cannot be known."""
        client = self.parts.client
        items, _ = await client.list(INSTANCES)
        if await identity.cluster_uid(client) != self.parts.cluster:
            raise Bug("the API server answers for another cluster than at start")
        alive = {item["metadata"]["uid"] for item in items}
        return self.parts.places.uids() - alive

    async def _take_down(self, uid: str) -> bool:
        record = self.parts.records.get(uid)
        if isinstance(record, Unknown):
            log.error("orphan %s: %s", uid, record.why)
            return False
        if record is None:
            return await self._remove_remains(uid)
        log.warning(
            "%s/%s (%s) exists no more, as two full lists said: taking it down",
            record.namespace, record.name, uid,
        )  # fmt: skip
        return await self.worker.reap(about(record))

    async def _remove_remains(self, uid: str) -> bool:
        """A directory without a record: a creation that was cut off before its first write."""
        place = self.parts.places.instance(uid)
        if runlock.probe(self.parts.places.lock(uid)) is not runlock.LockState.FREE:
            log.error("%s: a VMM lives there that has no record; it is left alone", place)
            return False
        await asyncio.to_thread(files.remove_tree, place)
        return True

    async def _collect(self) -> None:
        records = self.parts.records
        if any(isinstance(record, Unknown) for _, record in records.items()):
            return  # what an unreadable record needs is not known
        known = records.known()
        await self.parts.images.collect({r.image_digest for r in known if r.image_digest})
        kernels = {record.kernel.digest for record in known if record.kernel}
        await asyncio.to_thread(self.parts.kernels.collect, kernels)
        await snapshots.collect(self.parts)
