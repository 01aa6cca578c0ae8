"""Make an Instance out of another one: its disk, and its memory where it has one.

The step table is in ``core.fork``. Whoever forks holds the source's turn, so that no pass of the
source goes on meanwhile. A source that lives is held for the device state, the copying of its
anonymous pages and of its disk; syncing and digests follow while it goes on. Forks of it that were
asked for together are made from one such look, and share one image.

What does not live here: whether it may be forked (``core.fork``), and the fork's first wake.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.desired import Desired, Fork, Workload
from controller.core.fork import refusal
from controller.core.observed import Observed, Snapshot
from controller.core.state import State
from controller.errors import Bug, Retry
from controller.host import files
from controller.memory import commit
from controller.memory.manifest import Manifest
from controller.node import clock, sleeping, snapshots
from controller.node.acting import new_record
from controller.node.blocking import finished
from controller.node.observe import about, handle_of, observe, source_fact
from controller.node.parts import Parts
from controller.node.places import make_owned
from controller.node.record import LineageRecord, Record, WorkloadRecord
from controller.node.sleeping import Living
from controller.volumes import copy

log = logging.getLogger(__name__)

GENERATION = 1  # of a fork's disk: its first
# Forks of a living source share one image when they come so close after each other, and all that
# come within the latter are waited for at most.
TOGETHER_SECONDS, TOGETHER_MOST = 0.15, 1.0


@dataclass(frozen=True)
class Cost:
    """What a fork took of its source. Seconds, bytes."""

    paused: float = 0.0  # the source stood still
    disk: float = 0.0  # copying the disk; while a living source stood still
    written: int = 0  # bytes of the disk's copy, 0 for a reflink
    together: bool = False  # another fork took it along, and says what it cost


def first_record(parts: Parts, desired: Desired) -> Record:
    """The record of a fork before anything of it exists. Not saved. Raises Retry (SourceGone)."""
    fork = _wish(desired)
    known = source_of(parts, fork)
    source = snapshots.with_lineage(parts, known)
    if source.lineage is None:
        raise Bug(f"instance {source.uid}: no lineage")
    if source is not known:
        parts.records.save(source)
    return new_record(
        parts,
        desired,
        image=source.image,
        image_digest=source.image_digest,
        hardware=source.hardware,
        lineage=LineageRecord(
            gid=source.lineage.gid, parent=fork.parent, root=fork.root, depth=fork.depth
        ),
    )


def source_of(parts: Parts, fork: Fork) -> Record:
    """The record of the source. Raises Retry (SourceGone, SourceNotReady)."""
    source = parts.records.get(fork.parent)
    if not isinstance(source, Record):
        raise Retry(f"its source (UID {fork.parent}) is gone", reason="SourceGone")
    if not source.provisioned or source.tombstone:
        raise Retry(f"its source {source.name} is going", reason="SourceNotReady")
    return source


async def take(parts: Parts, desired: Desired) -> Cost:
    """Give the fork disk and memory; its record says so last. Raises Retry, Blocked."""
    fork = _wish(desired)
    waiting = parts.memory.forks[fork.parent]
    try:
        if fork.from_running and desired.workload == Workload():  # others may take it along
            waiting[desired.uid] = clock.now()
            await _gather(waiting, clock.now())
        async with parts.memory.alone[fork.parent]:
            target = _target(parts, desired.uid)
            if target is None:
                return Cost(together=True)
            return await _take(parts, desired, target, waiting)
    finally:
        waiting.pop(desired.uid, None)


async def _gather(waiting: Mapping[str, float], began: float) -> None:
    """Wait until no further fork of that source has come for a moment."""
    while clock.now() < min(max(waiting.values()) + TOGETHER_SECONDS, began + TOGETHER_MOST):  # noqa: ASYNC110
        await asyncio.sleep(TOGETHER_SECONDS / 3)


async def _take(
    parts: Parts, desired: Desired, target: Record, waiting: Mapping[str, float]
) -> Cost:
    fork = _wish(desired)
    source = source_of(parts, fork)
    seen = await observe(parts, about(source))
    # It had turns of its own since this was planned: who is shutting down by now is no source.
    if in_the_way := refusal(source_fact(parts, source, seen), fork, desired.workload):
        reason, message, _ = in_the_way
        raise Retry(message, reason=reason, after=1.0)
    if isinstance(seen.snapshot, Snapshot) and seen.state in (State.STANDBY, State.PAUSED):
        return await _of_sleeper(parts, source, target)
    if seen.state is State.STOPPED:
        cost = await _copy_disk(parts, source, target)
        await _finish(parts, source, target, None)
        return cost
    if seen.state in (State.RUNNING, State.PAUSED):
        others = [_target(parts, uid) for uid in sorted(set(waiting) - {target.uid})]
        together = [target, *(other for other in others if other is not None)]
        return await _of_living(parts, source, seen, together)
    raise Retry(
        f"its source {source.name} is {seen.state.value} by now", reason="SourceNotReady", after=1.0
    )


async def _of_sleeper(parts: Parts, source: Record, target: Record) -> Cost:
    """Every file of its snapshot is shared; nothing but the disk is copied."""
    async with sleeping.saving(parts):  # read in here, so that its files stay until the commit
        manifest = await finished(snapshots.committed, parts, source)
        cost = await _copy_disk(parts, source, target)
        await _finish(parts, source, target, manifest)
    return cost


async def _of_living(parts: Parts, source: Record, seen: Observed, targets: list[Record]) -> Cost:
    driver, handle = parts.driver(source.hardware.hypervisor), handle_of(parts, source)
    if handle is None or source.open is None:
        raise Retry(f"the VMM of {source.name} cannot be found", reason="SourceNotReady")
    vmm = Living(source, source.open, driver, handle)
    source = await sleeping.order(parts, vmm)  # space first; then it is noted that it must go on
    if source.open is None:
        raise Bug(f"instance {source.uid}: its run was closed while it was forked")
    vmm = Living(source, source.open, driver, handle)
    platform = await snapshots.platform(parts, source)
    async with sleeping.saving(parts) as files_of:
        began = clock.now()
        try:
            if source.open.goes_on:
                await driver.pause(handle)
            state, taken = await sleeping.capture(parts, vmm, files_of, digests=False)
            cost = await _copy_disk(parts, source, targets[0])
            await sleeping.still_paused(vmm)
        finally:
            await asyncio.shield(sleeping.let_go(parts, vmm))
        paused = clock.now() - began
        pages = await finished(files_of.finish, taken)
        stored = await finished(files_of.state, state, sleeping.gid_of(source))
        manifest = sleeping.manifest_of(vmm, platform, pages, stored)
        for other in targets[1:]:  # from the first copy, which nobody uses yet
            await _copy_disk(parts, targets[0], other)
        for each in targets:
            await _finish(parts, source, each, manifest)
    return Cost(paused, cost.disk, cost.written)


async def _copy_disk(parts: Parts, source: Record, target: Record) -> Cost:
    began = clock.now()
    owner, home = parts.vmm_uid(target), parts.places.instance(target.uid)
    make_owned(parts.places.disks(target.uid), owner, 0o700)
    files.remove_temporaries(parts.places.disks(target.uid))
    await finished(commit.void, home, GENERATION)  # of an earlier try, with another disk
    copied = await finished(
        copy.copy, parts.places.overlay(source.uid), parts.places.overlay(target.uid), owner=owner
    )
    return Cost(disk=clock.now() - began, written=copied.written)


async def _finish(parts: Parts, source: Record, target: Record, manifest: Manifest | None) -> None:
    """Make all of it durable; the write of the record makes it so."""
    places, home = parts.places, parts.places.instance(target.uid)
    await finished(copy.sync, places.overlay(target.uid))
    if manifest is not None:
        await finished(_copy_config, parts, source, target)
        own = {
            "uid": target.uid,
            "epoch": target.epoch,
            "run": target.run,
            "disks": {snapshots.OVERLAY: GENERATION},
        }
        await finished(commit.commit, home, GENERATION, manifest.model_copy(update=own))
    if target.lineage is None:
        raise Bug(f"instance {target.uid}: a fork without a lineage")
    parts.records.save(
        target.model_copy(
            update={
                "provisioned": True,
                "disk_generation": GENERATION,
                "slept": None if manifest is None else GENERATION,
                "kernel": source.kernel,
                "workload": source.workload,
                "inherited": _workload(source),
                "vmm_version": source.vmm_version,
                "lineage": target.lineage.model_copy(update={"forked_at": clock.wall()}),
            }
        )
    )


def _copy_config(parts: Parts, source: Record, target: Record) -> None:
    """The disk that the guest has in memory belongs to its devices, whatever it says of whom."""
    config = parts.places.config(target.uid)
    temporary = config.with_name(f".{config.name}{files.TEMPORARY_SUFFIX}")
    try:
        shutil.copyfile(parts.places.config(source.uid), temporary)
        os.chown(temporary, 0, parts.vmm_uid(target))
        temporary.chmod(0o440)
        temporary.rename(config)
    except OSError as err:
        raise files.failed("copy the config disk to", config, err) from err
    copy.sync(config)


def _workload(source: Record) -> WorkloadRecord | None:
    """What the source was booted with, or would be: a fork boots with the same."""
    return source.workload or source.inherited


def _target(parts: Parts, uid: str) -> Record | None:
    """The record of a fork that is still to be made."""
    record = parts.records.get(uid)
    waits = isinstance(record, Record) and not record.provisioned and not record.tombstone
    return record if isinstance(record, Record) and waits else None


def _wish(desired: Desired) -> Fork:
    if desired.fork is None:
        raise Bug(f"instance {desired.uid}: a step of a fork, and it is none")
    return desired.fork
