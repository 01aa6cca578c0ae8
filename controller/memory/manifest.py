"""The manifest: the one small file that makes files of the store a snapshot of one Instance.

It names device state, base and delta by digest, says which hypervisor and devices they belong to
and which generation of which disk, and is committed by one rename. ``problems`` compares it with
what is now: pure, so that every refusal is a line in a table of tests.

A manifest has a checksum over its canonical form. A newer one than this release knows is refused,
never guessed at. What does not live here: its directory (``commit``), and the files (``store``).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.errors import Rejected

SCHEMA = 1
LIMIT = 1024 * 1024  # bytes
REMEDY = "ask for operatingMode: Stopped, then Running: it boots cold and the memory is given up"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Role(StrEnum):
    """What a file of the store is."""

    BASE = "base"
    DELTA = "delta"
    STATE = "state"


class Seen(_Part):
    """How a file looked when its content was last known to be right; times in nanoseconds."""

    size: Count
    inode: Count
    mtime: int
    ctime: int
    mode: Count

    @classmethod
    def of(cls, status: os.stat_result) -> "Seen":
        """From a look at the file."""
        return cls(
            size=status.st_size,
            inode=status.st_ino,
            mtime=status.st_mtime_ns,
            ctime=status.st_ctime_ns,
            mode=status.st_mode,
        )


class StoredFile(_Part):
    """A file of the store: ``gid`` is its lineage's. ``on_disk``: bytes when it was written."""

    role: Annotated[Role, Field(strict=False)]
    gid: Count
    digest: Digest
    seen: Seen
    on_disk: Count

    @property
    def name(self) -> str:
        """Its name in the directory of its lineage."""
        return f"{self.role.value}-{self.digest}"


class Platform(_Part):
    """What must be the same for device state to load and the guest to go on.

    ``build``: of the same version, another one is worth an Event only. ``devices``: digest of the
    device list, in the order and with the addresses that the driver gave them.
    """

    hypervisor: Text
    version: Text  # "10.0.2"
    build: Text
    machine_type: Text
    cpu_model: Text
    cpu_features: Annotated[tuple[Text, ...], Field(max_length=4096, strict=False)]
    accelerator: Text
    devices: Digest
    memory: Count
    kernel: Digest
    initrd: Digest


class Manifest(_Part):
    """A snapshot of the Instance ``uid``. ``disks``: generation of each writable disk by serial."""

    uid: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    epoch: Count
    run: Count
    taken_at: Text  # RFC 3339, UTC
    disks: Annotated[dict[Text, Count], Field(max_length=256)]
    platform: Platform
    base: StoredFile
    delta: StoredFile | None  # None: nothing but what the base holds
    state: StoredFile

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file it names."""
        return tuple(file for file in (self.base, self.delta, self.state) if file is not None)


@dataclass(frozen=True)
class Facts:
    """What is now: who asks for the snapshot, with which disks, on which hypervisor."""

    uid: str
    disks: dict[str, int]
    platform: Platform


@dataclass(frozen=True)
class Problem:
    """Why a snapshot cannot be used. ``reason``: SnapshotCorrupt or SnapshotIncompatible."""

    reason: str
    message: str


def problems(manifest: Manifest, now: Facts) -> tuple[Problem, ...]:
    """Everything that forbids using ``manifest`` now; nothing when it may be used."""
    return tuple(
        Problem("SnapshotIncompatible", f"the snapshot's {what}; {REMEDY}")
        for what in _differences(manifest, now)
    )


def notes(manifest: Manifest, now: Facts) -> tuple[str, ...]:
    """What is different and allowed: worth an Event."""
    was, is_ = manifest.platform, now.platform
    if (was.version, was.build) == (is_.version, is_.build):
        return ()
    return (
        f"saved by {was.hypervisor} {was.version} ({was.build}), woken by"
        f" {is_.version} ({is_.build})",
    )


def encode(manifest: Manifest) -> bytes:
    """One JSON object: schema, checksum over the canonical form, manifest."""
    body = manifest.model_dump(mode="json")
    whole = {"schema": SCHEMA, "checksum": _checksum(body), "manifest": body}
    return json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """The inverse of ``encode``. Raises Rejected (SnapshotCorrupt, SnapshotIncompatible)."""
    if len(data) > LIMIT:
        raise _corrupt(f"it has more than {LIMIT} bytes")
    try:
        whole: Any = json.loads(data)
        schema, checksum, body = whole["schema"], whole["checksum"], whole["manifest"]
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise _corrupt("it is not a whole manifest") from err
    if type(schema) is not int or schema < 1:
        raise _corrupt("it has no schema number")
    if schema > SCHEMA:
        raise Rejected(
            f"the manifest is of a newer release (schema {schema}, this one knows {SCHEMA});"
            f" run that release again, or {REMEDY}",
            reason="SnapshotIncompatible",
        )
    if checksum != _checksum(body):
        raise _corrupt("its checksum does not match")
    try:
        found = Manifest.model_validate(body)
    except ValidationError as err:
        where = ".".join(str(part) for part in err.errors()[0]["loc"])
        raise _corrupt(f"{where}: {err.errors()[0]['msg']}") from err
    if why := _contradiction(found):
        raise _corrupt(why)
    return found


def _differences(manifest: Manifest, now: Facts) -> Iterator[str]:
    was, is_ = manifest.platform, now.platform
    if manifest.uid != now.uid:
        yield f"Instance is {manifest.uid}, not {now.uid}"
    if _release(was.version) != _release(is_.version):
        yield f"hypervisor version is {was.version}, this node has {is_.version}"
    for name in Platform.model_fields:
        mine, theirs = getattr(was, name), getattr(is_, name)
        if name in ("version", "build") or mine == theirs:
            continue
        if name == "cpu_features":
            gone = ", ".join(sorted(set(mine) ^ set(theirs))[:8])
            yield f"CPU features differ ({gone})"
        else:
            yield f"{name.replace('_', ' ')} is {str(mine)[:80]}, now it is {str(theirs)[:80]}"
    for serial in sorted({*manifest.disks, *now.disks}):
        had, has = manifest.disks.get(serial), now.disks.get(serial)
        if had != has:
            yield f"disk {serial} was at generation {had}, now it is at {has}"


def _contradiction(manifest: Manifest) -> str:
    roles = [file.role for file in manifest.files]
    expected = [Role.BASE, Role.DELTA, Role.STATE] if manifest.delta else [Role.BASE, Role.STATE]
    if roles != expected:
        return "a file has the role of another"
    if len({file.gid for file in manifest.files}) != 1:
        return "its files are of more than one lineage"
    return ""


def _release(version: str) -> tuple[str, ...]:
    """Major and minor: device state is kept loadable between builds of one release only."""
    return tuple(version.split(".")[:2])


def _corrupt(why: str) -> Rejected:
    return Rejected(f"manifest: {why}; {REMEDY}", reason="SnapshotCorrupt")


def _checksum(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
