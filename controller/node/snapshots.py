"""The snapshots of this node's Instances: what is committed, what fits, what may be thrown away.

The record's ``disk_generation`` says which snapshot counts; it goes up when one is used or given
up, in the write that makes it so, hence no memory is ever used twice. What does not live here: the
bytes (``memory``), and the making and using of a snapshot (``sleeping``, ``waking``).
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from controller.core.observed import ABSENT, Absent, Snapshot, Unknown
from controller.errors import Blocked, Rejected, Retry
from controller.memory import commit
from controller.memory.manifest import (
    REMEDY,
    Facts,
    Manifest,
    Platform,
    Problem,
    notes,
    problems,
)
from controller.memory.store import References
from controller.node import starting
from controller.node.blocking import finished
from controller.node.parts import Parts
from controller.node.places import Places
from controller.node.record import LineageRecord, ModelRecord, Record, Records

log = logging.getLogger(__name__)

OVERLAY = "overlay"  # the serial of the writable disk


def look(parts: Parts, record: Record) -> Snapshot | Absent | Unknown:
    """The committed snapshot of the current disk generation. Never raises for a failed look."""
    try:
        manifest = _read(parts, record)
    except Rejected as err:
        return Snapshot("", 0, 0, 0, "", err.reason, str(err))
    except Retry as err:
        return Unknown(str(err), err.reason)
    if manifest is None:
        return ABSENT
    return Snapshot(
        taken_at=manifest.taken_at,
        base_bytes=manifest.base.on_disk,
        delta_bytes=manifest.delta.on_disk if manifest.delta else 0,
        state_bytes=manifest.state.on_disk,
        hypervisor=f"{manifest.platform.hypervisor} {manifest.platform.version}",
    )


def committed(parts: Parts, record: Record) -> Manifest:
    """The snapshot that a step needs. Raises Retry when there is none, Rejected when damaged."""
    manifest = _read(parts, record)
    if manifest is None:
        raise Retry(f"instance {record.uid}: its snapshot is gone", reason="SnapshotGone")
    return manifest


def _read(parts: Parts, record: Record) -> Manifest | None:
    """As ``commit.read``; and one that fell asleep has a manifest: without it, it is damaged."""
    home = parts.places.instance(record.uid)
    manifest = commit.read(home, record.disk_generation)
    if manifest is None and record.slept == record.disk_generation:
        place = commit.folder(home, record.disk_generation)
        why = f"the manifest of its snapshot is gone from {place}; bring it back, or {REMEDY}"
        raise Rejected(why, reason="SnapshotCorrupt")
    return manifest


async def platform(parts: Parts, record: Record) -> Platform:
    """What device state of the living VMM belongs to: as it was started, whatever came since."""
    model = record.open.model if record.open else None
    if model is None:
        return await _platform_now(parts, record)
    return _platform(parts, record, model)


async def _platform_now(parts: Parts, record: Record) -> Platform:
    """What device state would have to belong to for a VMM of this host as it is now."""
    machine = starting.machine_of(parts, record)
    model = await parts.driver(record.hardware.hypervisor).describe(machine)
    return _platform(parts, record, ModelRecord(**dataclasses.asdict(model)))


def _platform(parts: Parts, record: Record, model: ModelRecord) -> Platform:
    artifacts = starting.artifacts_of(parts, record)
    return Platform(
        **model.model_dump(),
        hypervisor=record.hardware.hypervisor,
        accelerator=record.open.accelerator if record.open else parts.accelerator,
        memory=record.hardware.memory,
        kernel=artifacts.digest,
        initrd=artifacts.initrd_digest,
    )


async def check(parts: Parts, record: Record) -> tuple[str, ...]:
    """See that the snapshot fits this host and is whole; gives what is worth a word.

    Raises Blocked (SnapshotIncompatible, SnapshotCorrupt) with the remedy: nothing was started
    and the snapshot is kept. Raises Retry when a file cannot be read.
    """
    manifest = await finished(committed, parts, record)
    now = Facts(record.uid, {OVERLAY: record.disk_generation}, await _platform_now(parts, record))
    found = problems(manifest, now) or _another_host(parts, record, manifest)
    found = found or await finished(parts.snapshots.verify, manifest)
    if found:
        raise Blocked(found[0].message, reason=found[0].reason)
    return notes(manifest, now)


def _another_host(parts: Parts, record: Record, manifest: Manifest) -> tuple[Problem, ...]:
    """What a VMM is made with as the snapshot has it, compared with what this host would take."""
    was, now = manifest.platform, parts.versions[record.hardware.hypervisor]
    pairs = {
        "accelerator": (was.accelerator, parts.accelerator),
        "machine type": (was.machine_type, now.machine_type),
    }
    return tuple(
        Problem(
            "SnapshotIncompatible",
            f"the snapshot's {what} is {then[:80]}, this node has {today}; {REMEDY}",
        )
        for what, (then, today) in pairs.items()
        if then != today
    )


async def verify(parts: Parts, record: Record) -> dict[str, Any]:
    """Everything that can be checked of the snapshot, each byte of it included.

    ``problems``: texts; ``files``: role, bytes and digest of each. Raises Rejected (NoSnapshot).
    """
    try:
        manifest = await finished(committed, parts, record)
    except Rejected as err:
        return {"problems": [str(err)], "files": []}
    except Retry as err:
        raise Rejected(
            f"{record.namespace}/{record.name} has no snapshot: it is not in Standby",
            reason="NoSnapshot",
        ) from err
    found = await finished(parts.snapshots.verify, manifest, full=True)
    files = [
        {"role": file.role.value, "bytes": file.on_disk, "digest": file.digest}
        for file in manifest.files
    ]
    return {"problems": [problem.message for problem in found], "files": files}


def give_up(parts: Parts, record: Record, **changes: object) -> Record:
    """Raise the disk generation in the record: durably, no snapshot is there any more.

    The manifest itself goes after that; one that cannot be removed says nothing and goes later.
    """
    old = record.disk_generation
    record = parts.records.save(
        record.model_copy(update={**changes, "disk_generation": old + 1}),
    )
    try:
        commit.void(parts.places.instance(record.uid), old)
    except Retry as err:
        log.warning("%s: %s", record.uid, err)
    parts.memory.litter.set()
    return record


def with_lineage(parts: Parts, record: Record) -> Record:
    """``record`` with a lineage, a new one if it has none. Not saved."""
    if record.lineage is not None:
        return record
    return record.model_copy(update={"lineage": LineageRecord(gid=_free_gid(parts))})


def references(places: Places, records: Records) -> References:
    """Who names files of the memory store. Raises Retry when not every record can be read."""
    held = set()
    for uid, record in records.items():
        if isinstance(record, Unknown):
            raise Retry(f"record {uid}: {record.why}", reason="ReferencesUnknown")
        if record.open is not None and record.open.base is not None:
            held.add(record.open.base.digest)
        asleep = record.slept == record.disk_generation and not record.tombstone
        if asleep and not _manifest(places, record).exists():
            raise Retry(f"the manifest of {uid} is gone", reason="ReferencesUnknown")
    return References(tuple(map(places.instance, sorted(places.uids()))), frozenset(held))


def _manifest(places: Places, record: Record) -> Path:
    return commit.folder(places.instance(record.uid), record.disk_generation) / commit.NAME


def folders(places: Places, uid: str) -> tuple[Path, ...]:
    """Where snapshots of this Instance may lie. Raises Retry when it cannot look."""
    return tuple(path.parent for path in commit.manifests(places.instance(uid)))


def tidy(places: Places, records: Records) -> None:
    """Remove what an agent that died left half written beside the snapshots; failures are logged.

    Only before anything is committed.
    """
    for record in records.known():
        try:
            commit.clean(places.instance(record.uid))
        except (Retry, OSError) as err:
            log.warning("%s: %s", record.uid, err)


def _void_older(places: Places, records: Records) -> None:
    """Finish what ``give_up`` began where it was cut off after the write of the record."""
    for record in records.known():
        commit.void_older(places.instance(record.uid), record.disk_generation)


async def collect(parts: Parts) -> None:
    """Remove the files of the memory store that nobody needs; a failure is logged."""
    try:
        await finished(_void_older, parts.places, parts.records)
        removed = await finished(parts.snapshots.collect)
    except (Retry, OSError) as err:
        log.warning("memory store: %s", err)
        return
    if removed:
        log.info("memory store: removed %d files that nobody names", len(removed))


def _free_gid(parts: Parts) -> int:
    """A gid that no family of this node has: above the uids of all VMMs."""
    first = parts.settings.uid_base + parts.settings.uid_count
    taken = {record.lineage.gid for record in parts.records.known() if record.lineage}
    root = parts.snapshots.root
    taken |= {int(path.name) for path in root.iterdir() if path.name.isdigit()}
    for gid in range(first, first + parts.settings.uid_count):
        if gid not in taken:
            return gid
    raise Retry("all gids of this node for families of Instances are in use", reason="NoFreeGid")
