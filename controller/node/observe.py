"""Look at one Instance on this host: ask record, lock, VMM, guest, disk and stores.

A failure to look becomes Unknown with its reason; nothing is decided and nothing is changed here.
"""

import os
import time
from pathlib import Path

from controller.core.desired import Desired, Mode
from controller.core.observed import (
    ABSENT,
    Absent,
    Ending,
    Exit,
    Guest,
    ImageFact,
    ImageFailed,
    ImagePulling,
    ImageReady,
    Lock,
    Observed,
    Recorded,
    Snapshot,
    Source,
    Unknown,
    Vmm,
)
from controller.core.state import State
from controller.errors import TorporError
from controller.guest.console import last_panic, witnessed_exit
from controller.guest.report import read_reports
from controller.host import runlock
from controller.host.process import boot_id
from controller.images.image import Failed, Pulling, Ready
from controller.node import clock, snapshots
from controller.node.parts import Parts
from controller.node.record import Record
from controller.vmm.driver import Handle

# A log keeper writes at once; this is for a machine that has no time for it. Seconds.
LAST_WORDS = 3.0
# Under this much free space a guest that was held by a full disk is not let go again.
STORAGE_RESERVE = 64 * 1024 * 1024

SourceFact = Source | Absent | Unknown


async def observe(parts: Parts, desired: Desired) -> Observed:
    """Everything there is to know about this Instance now. Never raises for a failed look."""
    record = parts.records.get(desired.uid)
    if not isinstance(record, Record):
        return Observed(
            record=ABSENT if record is None else record,
            lock=_lock(parts, desired.uid),
            vmm=ABSENT, guest=ABSENT, image=_image(parts, desired, None),
            kernel=_kernel(parts), overlay=False,
            source=await _source(parts, desired, None),
        )  # fmt: skip
    lock = _lock(parts, record.uid)
    vmm = await _vmm(parts, record) if lock is Lock.HELD else ABSENT
    return Observed(
        record=recorded(record),
        lock=lock,
        vmm=vmm,
        guest=_guest(parts, record, vmm),
        image=_image(parts, desired, record),
        kernel=_kernel(parts),
        overlay=_overlay(parts, record),
        snapshot=snapshots.look(parts, record),
        stopping=parts.guests.stopping(record.uid),
        source=await _source(parts, desired, record),
    )


def recorded(record: Record) -> Recorded:
    """The record as the planner sees it: times of another boot are no times."""
    run, boot = record.open, boot_id()
    ended = record.exit
    return Recorded(
        epoch=record.epoch,
        run=record.run,
        provisioned=record.provisioned,
        hardware=record.hardware.frozen,
        image_digest=record.image_digest,
        kernel_version=record.kernel.version if record.kernel else None,
        kernel_digest=record.kernel.digest if record.kernel else None,
        workload=record.workload.said if record.workload else None,
        run_open=run is not None,
        run_prepared=run is not None and run.prepared and not run.starting,
        boot_ordered=run is not None and run.boot_ordered is not None,
        run_began_at=run.boot_ordered.within(boot) if run and run.boot_ordered else None,
        rebooted=_rebooted(record, boot),
        released=record.released,
        exit=Exit(ended.code, ended.message, reason=ended.reason) if ended else None,
        exit_noted=run is not None and run.exit_noted,
        exited=record.exited,
        restarts=record.restarts,
        retry_at=record.retry_after.within(boot) if record.retry_after else None,
        stop_ordered=run is not None and run.stop_ordered is not None,
        stop_ordered_at=run.stop_ordered.within(boot) if run and run.stop_ordered else None,
        started_at=record.started_at,
        stopped_at=record.stopped_at,
        tombstone=record.tombstone,
        vmm_noted=run is None or run.vmm is not None,
        waking=run is not None and run.wakes is not None and run.boot_ordered is None,
        woken=run is not None and run.wakes is not None and run.boot_ordered is not None,
        repaired=run is not None and run.repaired,
        saving=run is not None and run.saving,
        forked_at=record.lineage.forked_at if record.lineage else None,
        inherited=record.inherited.said if record.inherited else None,
    )


def handle_of(parts: Parts, record: Record) -> Handle | None:
    """The VMM of the open run: from the record, else whoever holds the run lock; None if nobody."""
    if record.open is None:
        return None
    run_dir = parts.places.run_of(record)
    if vmm := record.open.vmm:
        return Handle(record.uid, vmm.process.identity, run_dir)
    # The agent died between the spawn and the note of who was spawned. The lock's holder is it.
    holder = runlock.holder(parts.places.lock(record.uid))
    return Handle(record.uid, holder, run_dir) if holder else None


def _rebooted(record: Record, boot: str) -> bool:
    run = record.open
    if run is None:
        return False
    if run.vmm is not None:
        return run.vmm.process.boot_id != boot
    return run.boot_ordered is not None and run.boot_ordered.boot_id != boot


def _lock(parts: Parts, uid: str) -> Lock:
    if _exists(parts.places.instance(uid)) is False and parts.places.instances.is_dir():
        return Lock.FREE  # nothing of it was ever here
    match runlock.probe(parts.places.lock(uid)):
        case runlock.LockState.HELD:
            return Lock.HELD
        case runlock.LockState.FREE:
            return Lock.FREE
        case _:
            return Lock.UNKNOWN


async def _vmm(parts: Parts, record: Record) -> Vmm | Absent | Unknown:
    driver = parts.drivers.get(record.hardware.hypervisor)
    if driver is None:
        return Unknown(f"this node has no driver for hypervisor {record.hardware.hypervisor}")
    handle = handle_of(parts, record)
    if handle is None:
        return Unknown("its run lock is held, but by no process that can be found")
    try:
        if record.uid not in parts.memory.adopted:
            await driver.adopt(handle)
            parts.memory.adopted.add(record.uid)
        answer = await driver.state(handle)
    except TorporError as err:
        return Unknown(str(err))
    run = record.open
    full = answer.storage_full and _free(parts.places.state) < STORAGE_RESERVE
    return Vmm(
        answer.state,
        handle.identity.pid,
        record.vmm_version,
        run.accelerator if run else "",
        answer.ending,
        full,
    )


def _guest(parts: Parts, record: Record, vmm: Vmm | Absent | Unknown) -> Guest | Absent | Unknown:
    if record.open is None:
        return ABSENT
    logs = parts.places.run_logs(record)
    try:
        reports = read_reports(logs / "report.log")
        ended, panic = reports.exit, None
        over = not isinstance(vmm, Vmm) or vmm.state is State.SHUTDOWN
        if over and ended is None:  # the second witness
            console = logs / "console.log"
            ended, panic = witnessed_exit(console, record.open.nonce), last_panic(console)
    except OSError as err:
        return Unknown(f"the guest's reports cannot be read: {err.strerror}")
    exited = Exit(ended.code, ended.message) if ended else None
    unheard = ended is None and panic is None and _just_ended(parts, record, vmm)
    started = reports.started is not None or record.open.wakes is not None
    return Guest(started, exited, panic, unheard)


async def _source(parts: Parts, desired: Desired, record: Record | None) -> SourceFact:
    """The Instance that a fork is made from, as long as it is not made yet."""
    if desired.fork is None or (record is not None and record.provisioned):
        return ABSENT
    source = parts.records.get(desired.fork.parent)
    if source is None or isinstance(source, Unknown):
        return source or ABSENT
    return source_fact(parts, source, await observe(parts, about(source)))


def source_fact(parts: Parts, source: Record, seen: Observed) -> Source:
    """What a fork of ``source`` has to know of it."""
    told = isinstance(seen.record, Recorded) and seen.record.stop_ordered
    guest = seen.guest if isinstance(seen.guest, Guest) else Guest()
    return Source(
        name=source.name,
        state=seen.state,
        started=guest.started,
        ending=told or guest.exit is not None or source.tombstone,
        memory=isinstance(seen.snapshot, Snapshot),
        asked=parts.asked(source.uid),
        exited=source.exited,
    )


def about(record: Record) -> Desired:
    """A wish that names the Instance of ``record``, for who only looks or takes down."""
    return Desired(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        generation=0,
        mode=Mode.GONE,
        epoch=record.epoch,
        image=record.image,
        hardware=record.hardware.frozen,
    )


def _just_ended(parts: Parts, record: Record, vmm: Vmm | Absent | Unknown) -> bool:
    """Whether the guest ended so lately that the log keeper may still hold what it said."""
    if not isinstance(vmm, Vmm) or vmm.ending not in (Ending.POWERED_OFF, Ending.PANICKED):
        return False
    return clock.now() - parts.memory.ended.setdefault(record.uid, clock.now()) < LAST_WORDS


def _image(parts: Parts, desired: Desired, record: Record | None) -> ImageFact | Unknown:
    pinned = (record.image_digest if record else None) or desired.pinned
    if pinned and parts.images.get(pinned):
        return ImageReady(pinned)
    if desired.uid not in parts.memory.fetching:
        return ABSENT
    match parts.images.ensure(record.image if record else desired.image, pinned):
        case Ready(image=image):
            return ImageReady(image.digest)
        case Pulling(progress=progress):
            return ImagePulling(progress)
        case Failed(reason=reason, message=message, stalled=stalled, retry_at=retry_at):
            at = clock.now() + (retry_at - time.monotonic())
            return ImageFailed(reason, message, stalled, at)


def _kernel(parts: Parts) -> str | Absent | Unknown:
    if parts.artifacts is None:
        return Unknown(parts.no_artifacts)
    return parts.artifacts.version


def _overlay(parts: Parts, record: Record) -> bool | Unknown:
    path = parts.places.overlay(record.uid)
    try:
        return path.stat().st_uid == parts.vmm_uid(record)
    except FileNotFoundError:
        return False
    except OSError as err:
        return Unknown(f"{path}: {err.strerror}")


def _exists(path: Path) -> bool | Unknown:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as err:
        return Unknown(f"{path}: {err.strerror}")
    return True


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
