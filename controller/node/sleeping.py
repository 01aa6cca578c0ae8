"""Put the guest that stands still on disk: device state, changed pages, one commit.

The step table is in ``core.sleep``. Nothing is said on the agent channel from ``order`` on: what
arrives there would change memory behind the copy. What does not live here: the kill that follows.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controller import metrics
from controller.core.state import State
from controller.errors import Blocked, Bug, Retry, Timeout, TorporError
from controller.host import files
from controller.host.process import Identity
from controller.memory import commit
from controller.memory.manifest import Manifest, Platform, StoredFile
from controller.memory.store import changed_bytes
from controller.node import clock, snapshots
from controller.node.blocking import all_finished, finished
from controller.node.parts import Parts
from controller.node.record import Record, RunRecord
from controller.vmm.driver import Driver, Handle
from controller.vmm.machine import CHANNEL_SOCKET, EMPTY_IMAGE

if TYPE_CHECKING:  # at run time when the first guest sleeps; ``memory.store`` says why
    from controller.memory.saving import Saving, Taken

log = logging.getLogger(__name__)

STATE_ROOM = 1024 * 1024  # bytes for device state; a quarter of it is usual


@dataclass(frozen=True)
class Living:
    """A VMM whose memory is to be read."""

    record: Record
    run: RunRecord
    driver: Driver
    handle: Handle

    @property
    def who(self) -> Identity:
        """Its process."""
        return self.handle.identity


async def order(parts: Parts, vmm: Living) -> Record:
    """See that there is space, then note that a save begins. Raises Retry (NoSpace) untouched."""
    await check_space(parts, vmm)
    answer = await vmm.driver.state(vmm.handle)
    now = parts.records.get(vmm.record.uid)  # a new log keeper may have been noted meanwhile
    if not isinstance(now, Record) or now.open is None:
        raise Retry("its run was closed while a save was to begin", reason="NotAllowed")
    record = snapshots.with_lineage(parts, now)
    run = now.open.model_copy(update={"saving": True, "goes_on": answer.state is State.RUNNING})
    record = parts.records.save(record.model_copy(update={"open": run}))
    await parts.guests.drop(record.uid)
    return record


async def check_space(parts: Parts, vmm: Living) -> None:
    """Raise Retry (NoSpace) unless everything that may have to be written fits.

    Raises Blocked (BaseMissing) as well: the guest is not disturbed for nothing.
    """
    size, image = vmm.record.hardware.memory, mapped(parts, vmm.run)
    with contextlib.suppress(Retry):  # where all of RAM fits nobody need count what changed
        await finished(parts.snapshots.check_space, size + STATE_ROOM)
        return
    needed = await finished(changed_bytes, vmm.who, image, size)
    await finished(parts.snapshots.check_space, needed + STATE_ROOM)


def mapped(parts: Parts, run: RunRecord) -> Path:
    """The image that the VMM of this run maps. Raises Blocked (BaseMissing)."""
    if run.base is None:
        return EMPTY_IMAGE
    image = parts.snapshots.path(run.base)
    if not image.exists():
        raise Blocked(
            f"{image}, which its RAM is mapped from, is gone, so its memory cannot be saved: bring "
            "it back, or ask for operatingMode: Stopped, which gives the memory up",
            reason="BaseMissing",
        )
    return image


async def save(parts: Parts, vmm: Living) -> Manifest:
    """Commit a snapshot of a Paused guest. On any failure before the commit it goes on as before.

    Raises Retry (NoSpace, IOError, …), Blocked, Timeout (CommitUnknown: it stays paused).
    """
    try:
        return await _save(parts, vmm)
    except Timeout as err:
        if err.reason != "CommitUnknown":
            await asyncio.shield(let_go(parts, vmm))
        raise
    except BaseException:
        await asyncio.shield(let_go(parts, vmm))
        raise


async def _save(parts: Parts, vmm: Living) -> Manifest:
    record, home = vmm.record, parts.places.instance(vmm.record.uid)
    overlay = parts.places.overlay(record.uid)
    platform = await snapshots.platform(parts, record)
    async with saving(parts) as files_of:
        state, taken = await capture(parts, vmm, files_of)
        with metrics.SAVE_SECONDS.labels("durable").time():
            pages, stored, _ = await all_finished(
                finished(files_of.finish, taken),
                finished(files_of.state, state, gid_of(record)),
                finished(files.fsync_file, overlay),
            )
        await still_paused(vmm)
        manifest = manifest_of(vmm, platform, pages, stored)
        await finished(commit.commit, home, record.disk_generation, manifest)
    return manifest


async def capture(
    parts: Parts, vmm: Living, files_of: "Saving", *, digests: bool = True
) -> "tuple[bytes, Taken]":
    """Device state and changed pages of a guest that stands still."""
    from controller.memory.saving import StateSink

    with StateSink() as sink, metrics.SAVE_SECONDS.labels("state").time():
        await vmm.driver.save(vmm.handle, sink.fd)
        state = sink.data()
    with metrics.SAVE_SECONDS.labels("pages").time():
        taken = await finished(
            files_of.take,
            vmm.who,
            mapped=mapped(parts, vmm.run),
            ram=vmm.record.hardware.memory,
            gid=gid_of(vmm.record),
            base=vmm.run.base,
            digests=digests,
        )
    return state, taken


def manifest_of(vmm: Living, platform: Platform, pages: StoredFile, state: StoredFile) -> Manifest:
    """The snapshot of the open run: ``pages`` are a base, or a delta on the base it runs on."""
    record, base = vmm.record, vmm.run.base
    return Manifest(
        uid=record.uid,
        epoch=record.epoch,
        run=record.run,
        taken_at=clock.wall(),
        disks={snapshots.OVERLAY: record.disk_generation},
        platform=platform,
        base=base or pages,
        delta=pages if base else None,
        state=state,
    )


def gid_of(record: Record) -> int:
    """The gid of the family's files. Raises Bug before ``order`` gave it one."""
    if record.lineage is None:
        raise Bug(f"instance {record.uid}: memory is to be saved before it has a lineage")
    return record.lineage.gid


@contextlib.asynccontextmanager
async def saving(parts: Parts) -> "AsyncIterator[Saving]":
    """The store's ``saving``: waits in a thread while unused files are removed."""
    with contextlib.ExitStack() as stack:
        yield await finished(stack.enter_context, parts.snapshots.saving())


async def let_go(parts: Parts, vmm: Living) -> None:
    """Make the guest what it was before the save; what fails here is found by the next look."""
    record = parts.records.get(vmm.record.uid)
    run = record.open if isinstance(record, Record) else None
    if not isinstance(record, Record) or run is None:
        return
    try:
        committed = commit.read(parts.places.instance(record.uid), record.disk_generation)
        if committed is None and run.goes_on:
            await vmm.driver.resume(vmm.handle)
        if committed is None:
            cancel(parts, record)
    except (TorporError, OSError) as err:
        log.warning("%s: its guest is not let go yet: %s", record.uid, err)


def cancel(parts: Parts, record: Record) -> None:
    """Forget the save that was begun in the open run; talk to the guest again."""
    if record.open is None:
        return
    run = record.open.model_copy(update={"saving": False, "goes_on": False})
    parts.records.save(record.model_copy(update={"open": run}))
    parts.guests.watch(record.uid, parts.places.run_of(record) / CHANNEL_SOCKET)


async def still_paused(vmm: Living) -> None:
    """See that nobody on the host let it go on meanwhile. Raises Retry (NotAllowed)."""
    if (await vmm.driver.state(vmm.handle)).state is not State.PAUSED:
        raise Retry("the guest went on while its memory was saved", reason="NotAllowed")
