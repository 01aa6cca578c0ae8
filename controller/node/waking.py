"""Bring a guest back from its snapshot, and see that it knows who and when it is.

The step table is in ``core.sleep``. What does not live here: the spawn (``starting``), and the
write that uses the snapshot up (``snapshots.give_up``).
"""

import asyncio
import contextlib
import logging
import os
import secrets
import time

from controller.core.names import machine_id
from controller.core.state import State
from controller.errors import Blocked, Retry, TorporError
from controller.memory.manifest import REMEDY
from controller.node import snapshots, starting
from controller.node.blocking import all_finished, finished
from controller.node.parts import Parts
from controller.node.record import Record, RunRecord
from controller.vmm.driver import Driver, Handle
from controller.vmm.machine import CHANNEL_SOCKET

log = logging.getLogger(__name__)

SEED_BYTES = 64
ANSWER_SECONDS = 5.0  # for the channel to open after a wake, and again for each request


async def prepare(parts: Parts, record: Record) -> Record:
    """Count and journal the run that the snapshot is to become, then make its directories."""
    manifest = await asyncio.to_thread(snapshots.committed, parts, record)
    record = parts.records.save(
        record.model_copy(
            update={
                "run": record.run + 1,
                "open": RunRecord(
                    nonce=starting.new_nonce(),
                    machine_type=manifest.platform.machine_type,
                    accelerator=manifest.platform.accelerator,
                    base=manifest.base,
                    wakes=record.disk_generation,
                ),
                "vmm_version": parts.versions[record.hardware.hypervisor].version,
            }
        )
    )
    return starting.make_places(parts, record)


async def load(parts: Parts, record: Record, driver: Driver, handle: Handle) -> None:
    """Fill the VMM that waits for its memory. One that took half of it is killed.

    Raises Blocked (the device state was refused), Rejected (SnapshotCorrupt), Retry.
    """
    manifest = await asyncio.to_thread(snapshots.committed, parts, record)
    try:
        await finished(parts.snapshots.put_back, handle.identity, manifest)
        fd = await asyncio.to_thread(parts.snapshots.open_state, manifest)
        try:
            await driver.load(handle, fd)
        finally:
            os.close(fd)
    except TorporError as err:
        with contextlib.suppress(TorporError):
            if (await driver.state(handle)).state is State.PAUSED:
                return  # an earlier order to load it has done it
        await driver.kill(handle)
        if isinstance(err, Blocked):
            raise Blocked(f"{err}; {REMEDY}", reason="SnapshotIncompatible") from err
        raise


async def repair(parts: Parts, record: Record) -> Record:
    """Tell the woken guest the time, give it entropy, tell it who it is.

    Raises Retry (IdentityPending) unless it acknowledged each.
    """
    run = record.open
    if run is None:
        raise Retry(f"instance {record.uid}: it does not run", reason="IdentityPending")
    # Nobody may have watched it, or for long without an answer: not every resume was our step.
    parts.guests.expect(record.uid, parts.places.run_of(record) / CHANNEL_SOCKET)
    try:
        channel = await parts.guests.channel(record.uid, ANSWER_SECONDS)
        # Sent together, done in this order: on a slow machine each way to the guest and back costs.
        await all_finished(
            channel.step_clock(time.time_ns(), ANSWER_SECONDS),
            channel.reseed(secrets.token_bytes(SEED_BYTES), ANSWER_SECONDS),
            channel.identify(record.name, machine_id(record.uid), run.nonce, ANSWER_SECONDS),
        )
    except (TorporError, TimeoutError, OSError) as err:
        raise Retry(
            f"the guest was woken and has not acknowledged its clock, entropy and identity: {err}",
            reason="IdentityPending",
        ) from err
    repaired = run.model_copy(update={"repaired": True})
    return parts.records.save(record.model_copy(update={"open": repaired}))
