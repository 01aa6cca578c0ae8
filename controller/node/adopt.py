"""Take over what lived before this process: VMMs, their log keepers, their channels.

No API server is needed for it and nothing is decided: a VMM that answers is connected to, one that
does not is left to the passes that follow, which see it as Unknown. Half-done operations need no
table of their own here; the planner goes on from the record and the lock, whoever wrote them. All
in parallel, each with a deadline, so one hung VMM holds up nobody.
"""

import asyncio
import logging

from controller.errors import TorporError
from controller.host import logs, runlock
from controller.host.process import Identity, is_alive
from controller.node import starting
from controller.node.observe import handle_of
from controller.node.parts import Parts
from controller.node.record import ProcessRecord, Record, VmmRecord
from controller.vmm.machine import CHANNEL_SOCKET

log = logging.getLogger(__name__)


async def adopt_all(parts: Parts) -> int:
    """Connect to every VMM of this node that lives. Returns how many were taken over."""
    found = [record for record in parts.records.known() if _lives(parts, record)]
    taken = await asyncio.gather(*(adopt(parts, record) for record in found))
    log.info("%d of %d living VMMs taken over", sum(taken), len(found))
    return sum(taken)


async def adopt(parts: Parts, record: Record) -> bool:
    """Connect to the VMM of ``record``; False when it does not answer now."""
    driver = parts.drivers.get(record.hardware.hypervisor)
    handle = handle_of(parts, record)
    if driver is None or handle is None:
        return False
    if record.open is None or not record.open.saving:  # a guest in the middle of a save is let be
        parts.guests.watch(record.uid, handle.run_dir / CHANNEL_SOCKET)
    await keep_logs(parts, record)
    try:
        await driver.adopt(handle)
    except TorporError as err:
        log.warning("%s/%s: its VMM is not taken over: %s", record.namespace, record.name, err)
        return False
    parts.memory.adopted.add(record.uid)
    return True


async def keep_logs(parts: Parts, record: Record) -> None:
    """See that a log keeper drains the VMM's pipes; a dead one is replaced, with a marked gap."""
    vmm = record.open.vmm if record.open else None
    if vmm is None or is_alive(vmm.keeper.identity):
        return
    try:
        keeper = await logs.revive_keeper(
            vmm.process.identity,
            starting.streams(parts, record),
            vmm.pipes,
            binary=parts.keeper,
            sandbox=starting.KEEPER,
        )
    except TorporError as err:
        log.warning("%s/%s: no log keeper: %s", record.namespace, record.name, err)
        return
    _note_keeper(parts, record.uid, vmm, keeper)


def _note_keeper(parts: Parts, uid: str, vmm: VmmRecord, keeper: Identity) -> None:
    """Into the record as it is now: passes went on while the keeper was started."""
    record = parts.records.get(uid)
    run = record.open if isinstance(record, Record) else None
    if not isinstance(record, Record) or run is None or run.vmm != vmm:
        return
    kept = vmm.model_copy(update={"keeper": ProcessRecord.of(keeper)})
    opened = run.model_copy(update={"vmm": kept})
    parts.records.save(record.model_copy(update={"open": opened}))


def _lives(parts: Parts, record: Record) -> bool:
    lock = runlock.probe(parts.places.lock(record.uid))
    return record.open is not None and lock is runlock.LockState.HELD
