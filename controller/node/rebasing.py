"""Give a sleeper a new base when its delta has grown past half of the old one.

Every later Standby would write that delta again. It is done only while it sleeps, holds up nobody,
and is cancelled by a wake. The step table is in ``memory.rebasing``. What does not live here: the
merging of the two files (``memory``).
"""

import logging

from controller.core.observed import Unknown
from controller.errors import Bug, TorporError
from controller.memory import commit
from controller.memory.manifest import Manifest
from controller.node import sleeping
from controller.node.blocking import finished
from controller.node.parts import Parts
from controller.node.record import Record

log = logging.getLogger(__name__)


async def rebase_sleepers(parts: Parts) -> tuple[str, ...]:
    """Do it for everyone for whom it is due. Returns the UIDs; a failure is logged."""
    done = []
    for record in parts.records.known():
        try:
            manifest = await finished(_due, parts, record)
            if manifest is not None and await _rebase(parts, record, manifest):
                done.append(record.uid)
        except (TorporError, OSError) as err:
            log.warning("%s/%s: no new base: %s", record.namespace, record.name, err)
    return tuple(done)


def _due(parts: Parts, record: Record) -> Manifest | None:
    if record.open is not None or record.tombstone or not record.provisioned:
        return None
    manifest = commit.read(parts.places.instance(record.uid), record.disk_generation)
    if manifest is None or manifest.delta is None:
        return None
    from controller.memory import rebasing

    return manifest if rebasing.is_due(manifest) else None


async def _rebase(parts: Parts, record: Record, manifest: Manifest) -> bool:
    home, generation = parts.places.instance(record.uid), record.disk_generation

    def woken() -> bool:
        now = parts.records.get(record.uid)
        if now is None or isinstance(now, Unknown):
            return True
        return now.open is not None or now.tombstone or now.disk_generation != generation

    from controller.memory import rebasing

    async with sleeping.saving(parts) as files_of:
        new = await finished(rebasing.rebase, parts.snapshots, files_of, manifest, woken)
        async with parts.memory.alone[record.uid]:
            if woken():
                return False
            try:
                await finished(commit.replace, home, generation, manifest, new)
            except Bug:  # another snapshot of the same generation: it woke and slept meanwhile
                return False
    parts.memory.litter.set()
    log.info("%s/%s: has a new base", record.namespace, record.name)
    return True
