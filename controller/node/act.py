"""Carry out one step. One short function for each; none of them chooses anything.

Every step is idempotent and may be abandoned at any point: what it wants to have done is written
into the record first, and the next look finds what is left to do. Crash points sit before and after
each (``step.<Name>.before``, ``.after``).
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from controller.core.desired import Desired
from controller.core.names import FINALIZER
from controller.core.observed import Snapshot
from controller.core.steps import (
    AdoptEpoch,
    ClearExit,
    CloseRun,
    CreateOverlay,
    CreateRecord,
    DestroyDisks,
    DropFinalizer,
    FetchImage,
    FinishProvision,
    KillVmm,
    NoteExit,
    OrderBoot,
    OrderStop,
    PauseVmm,
    PinImage,
    PowerDown,
    PrepareRun,
    ReleaseReservation,
    RemoveRecord,
    ResumeVmm,
    ShutDownGuest,
    StartVmm,
    Step,
    WriteTombstone,
)
from controller.errors import Bug, Retry, TorporError
from controller.host import failpoint, files, runlock
from controller.images.image import Ready
from controller.kube.resources import INSTANCES
from controller.node import clock, forking, snapshots, starting, tell
from controller.node.act_memory import MEMORY_STEPS
from controller.node.acting import new_record, record_of, update, update_run, vmm_of
from controller.node.parts import Parts
from controller.node.places import make_owned
from controller.node.record import ExitRecord, HardwareRecord
from controller.vmm.machine import CHANNEL_SOCKET
from controller.volumes import disk

LOCK_DEADLINE = 10.0  # seconds from a VMM's death to a free run lock; it takes milliseconds


async def act(parts: Parts, desired: Desired, obj: dict[str, Any], step: Step) -> None:
    """Do ``step``. Raises TorporError or TimeoutError; the next look finds what was half done."""
    failpoint.hit(f"step.{step.name}.before")
    try:
        await _DO[type(step)](parts, desired, obj, step)
    except TimeoutError:
        raise
    except OSError as err:  # a full or broken disk is told on the Instance, as any failed step is
        where = Path(str(err.filename or parts.places.state))
        raise files.failed(f"carry out {step.name} at", where, err) from err
    failpoint.hit(f"step.{step.name}.after")


# --- provision ------------------------------------------------------------------------------------


async def _create_record(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    if desired.hardware is None:
        raise Bug(f"instance {desired.uid}: provision without hardware")
    if desired.fork is not None:
        async with parts.memory.alone[desired.fork.parent]:  # its record is written as well
            parts.records.save(forking.first_record(parts, desired))
        return
    frozen = desired.hardware
    parts.records.save(
        new_record(
            parts,
            desired,
            image=desired.image,
            image_digest=desired.pinned,
            hardware=HardwareRecord(
                hypervisor=frozen.hypervisor,
                vcpus=frozen.vcpus,
                memory=frozen.memory,
                overlay=frozen.overlay,
                disk_bandwidth=frozen.disk_bandwidth,
                threads_per_core=parts.threads_per_core,
            ),
        )
    )


async def _create_overlay(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = record_of(parts, desired)
    uid = parts.vmm_uid(record)
    make_owned(parts.places.disks(record.uid), uid, 0o700)
    overlay = parts.places.overlay(record.uid)
    await disk.create_overlay(overlay, record.hardware.overlay)
    await asyncio.to_thread(shutil.chown, overlay, uid, uid)
    overlay.chmod(0o600)


async def _finish_provision(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update(parts, record_of(parts, desired), provisioned=True)


# --- boot -----------------------------------------------------------------------------------------


async def _fetch_image(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = record_of(parts, desired)
    parts.memory.fetching.add(desired.uid)
    parts.images.ensure(record.image, record.image_digest or desired.pinned)


async def _pin_image(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = record_of(parts, desired)
    pinned = desired.pinned
    if pinned is None or parts.images.get(pinned) is None:
        match parts.images.ensure(record.image, pinned):
            case Ready(image=image):
                pinned = image.digest
            case _:
                raise Retry(f"image {record.image} is gone again", reason="ImagePulling", after=0.5)
    update(parts, record, image_digest=pinned)
    parts.memory.fetching.discard(desired.uid)


async def _prepare_run(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    await starting.prepare(parts, desired, record_of(parts, desired))


async def _start_vmm(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = record_of(parts, desired)
    if record.open is not None and record.open.wakes is not None:
        for note in await snapshots.check(parts, record):
            tell.about(parts.events, obj, "OtherBuild", note)
    await starting.start(parts, record)
    parts.memory.adopted.add(record.uid)


async def _order_boot(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    now = clock.moment()
    record = update_run(parts, record_of(parts, desired), boot_ordered=now)
    update(parts, record, started_at=now.wall, stopped_at=None, exit=None)


async def _resume_vmm(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record, driver, handle = vmm_of(parts, desired)
    await driver.resume(handle)
    parts.guests.watch(record.uid, handle.run_dir / CHANNEL_SOCKET)


async def _pause_vmm(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    _, driver, handle = vmm_of(parts, desired)
    await driver.pause(handle)


# --- stop and end ---------------------------------------------------------------------------------


async def _order_stop(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update_run(parts, record_of(parts, desired), stop_ordered=clock.moment())


async def _power_down(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record, driver, handle = vmm_of(parts, desired)
    await driver.power_down(handle)
    parts.guests.note_stopping(record.uid)


async def _shut_down_guest(parts: Parts, desired: Desired, obj: Any, step: ShutDownGuest) -> None:
    record, driver, handle = vmm_of(parts, desired)
    try:
        await parts.guests.shut_down(record.uid, step.grace)
    except (TorporError, TimeoutError, OSError):
        await driver.power_down(handle)
    parts.guests.note_stopping(record.uid)


async def _kill_vmm(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record, driver, handle = vmm_of(parts, desired)
    await driver.kill(handle)
    # Dead is when the kernel let go of the lock, not when somebody says so.
    lock = parts.places.lock(record.uid)
    async with asyncio.timeout(LOCK_DEADLINE):
        while runlock.probe(lock) is not runlock.LockState.FREE:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def _note_exit(parts: Parts, desired: Desired, obj: Any, step: NoteExit) -> None:
    record = update_run(parts, record_of(parts, desired), exit_noted=True)
    ended = step.exit
    noted = (
        None
        if ended.reboot
        else ExitRecord(code=ended.code, message=ended.message, reason=ended.reason)
    )
    retry = clock.moment(step.delay) if step.delay else None
    update(parts, record, exit=noted, exited=step.exited, restarts=step.restarts, retry_after=retry)


async def _close_run(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = record_of(parts, desired)
    driver = parts.drivers.get(record.hardware.hypervisor)
    await parts.guests.drop(record.uid)
    if driver is not None:
        await driver.release(record.uid)
    parts.memory.adopted.discard(record.uid)
    parts.memory.ended.pop(record.uid, None)
    starting.clear(parts, record)
    asleep = isinstance(snapshots.look(parts, record), Snapshot)
    slept = record.disk_generation if asleep else None
    stopped_at = None if asleep else clock.wall()
    update(parts, record, open=None, stopped_at=stopped_at, slept=slept)
    if asleep and record.open is not None and record.open.saving:
        tell.about(parts.events, obj, "StandbyReached", "its VMM is gone, memory and disk are kept")


async def _clear_exit(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update(parts, record_of(parts, desired), exited=False, restarts=0, retry_after=None)


async def _release_reservation(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update(parts, record_of(parts, desired), released=desired.reservation)


async def _adopt_epoch(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update(parts, record_of(parts, desired), epoch=desired.epoch)


# --- release --------------------------------------------------------------------------------------


async def _write_tombstone(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    update(parts, record_of(parts, desired), tombstone=True)


async def _destroy_disks(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    places, uid = parts.places, desired.uid
    folders = (places.disks(uid), places.logs(uid), *snapshots.folders(places, uid))
    for folder in folders:
        await asyncio.to_thread(files.remove_tree, folder)
    parts.memory.litter.set()
    places.config(uid).unlink(missing_ok=True)
    update(parts, record_of(parts, desired), provisioned=False)


async def _remove_record(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    await asyncio.to_thread(parts.records.remove, desired.uid)
    parts.memory.fetching.discard(desired.uid)


async def _drop_finalizer(parts: Parts, desired: Desired, obj: dict[str, Any], step: Step) -> None:
    metadata = obj["metadata"]
    left = [name for name in metadata.get("finalizers", ()) if name != FINALIZER]
    if left == metadata.get("finalizers", []):
        return
    version = metadata["resourceVersion"]
    await parts.client.patch(
        INSTANCES, desired.name, {"metadata": {"resourceVersion": version, "finalizers": left}},
        namespace=desired.namespace,
    )  # fmt: skip


_DO: dict[type[Step], Callable[[Parts, Desired, dict[str, Any], Any], Awaitable[None]]] = {
    CreateRecord: _create_record,
    CreateOverlay: _create_overlay,
    FinishProvision: _finish_provision,
    FetchImage: _fetch_image,
    PinImage: _pin_image,
    PrepareRun: _prepare_run,
    StartVmm: _start_vmm,
    OrderBoot: _order_boot,
    ResumeVmm: _resume_vmm,
    PauseVmm: _pause_vmm,
    OrderStop: _order_stop,
    PowerDown: _power_down,
    ShutDownGuest: _shut_down_guest,
    KillVmm: _kill_vmm,
    NoteExit: _note_exit,
    CloseRun: _close_run,
    ClearExit: _clear_exit,
    **MEMORY_STEPS,
    ReleaseReservation: _release_reservation,
    AdoptEpoch: _adopt_epoch,
    WriteTombstone: _write_tombstone,
    DestroyDisks: _destroy_disks,
    RemoveRecord: _remove_record,
    DropFinalizer: _drop_finalizer,
}

STEPS: tuple[type[Step], ...] = tuple(_DO)

failpoint.register(
    *(f"step.{step.__name__}.{when}" for step in STEPS for when in ("before", "after"))
)
