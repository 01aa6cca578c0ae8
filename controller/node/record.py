"""The record: the one small durable file that the node agent keeps for each Instance.

It holds what no look at the host can bring back: what the hardware was frozen as, how often a VMM
was started, who that VMM is, how the last run ended, which reservation was given back. It is
written before the effect it speaks of. A record that cannot be read, or that a newer agent wrote,
is never acted on and never removed: its guest is left alone.

State that can be derived (running, paused, stopped) is not in here. A field that is added later
gets a default that means "as before"; anything else raises ``SCHEMA``.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from controller.core.desired import Hardware, Workload
from controller.core.names import checked_uid, is_uid
from controller.core.observed import Unknown
from controller.errors import Bug, Rejected, Retry
from controller.host import files
from controller.host.process import Identity
from controller.memory.manifest import StoredFile

SCHEMA = 1
NAME = "record.json"
_LIMIT = 4 * 1024 * 1024  # env and arguments are in it; their bound in the API is far below


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Moment(_Part):
    """A point in time that is comparable within one boot of the host, and readable for people."""

    boot_id: str
    seconds: float  # CLOCK_BOOTTIME
    wall: str  # RFC 3339, UTC

    def within(self, boot_id: str) -> float | None:
        """Seconds of this boot's clock; None when it was in another boot."""
        return self.seconds if self.boot_id == boot_id else None


class HardwareRecord(_Part):
    """``core.desired.Hardware`` as provision froze it, and the machine type of the first boot."""

    hypervisor: str
    vcpus: int
    memory: int
    overlay: int
    disk_bandwidth: int
    threads_per_core: int

    @property
    def frozen(self) -> Hardware:
        """As the core's value."""
        return Hardware(self.hypervisor, self.vcpus, self.memory, self.overlay, self.disk_bandwidth)


class KernelRecord(_Part):
    """The guest kernel of the open or last run; kept on the node while it is named here."""

    version: str
    digest: str
    initrd: str = ""  # digest; "" before snapshots were


class WorkloadRecord(_Part):
    """What the open or last run was booted with, as the user said it."""

    command: tuple[str, ...] | None
    args: tuple[str, ...] | None
    env: tuple[tuple[str, str], ...]

    @property
    def said(self) -> Workload:
        """As the core's value."""
        return Workload(self.command, self.args, self.env)

    @classmethod
    def of(cls, said: Workload) -> "WorkloadRecord":
        return cls(command=said.command, args=said.args, env=said.env)


class ProcessRecord(_Part):
    """Only (pid, start time, boot id) together name a process."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, who: Identity) -> "ProcessRecord":
        return cls(pid=who.pid, start_time=who.start_time, boot_id=who.boot_id)

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start_time, self.boot_id)


class VmmRecord(_Part):
    """Who the VMM of the open run is, and who keeps its logs."""

    process: ProcessRecord
    keeper: ProcessRecord
    pipes: dict[str, int]  # inode of each log pipe, by stream: a new keeper finds them by it


class ModelRecord(_Part):
    """``vmm.driver.DeviceModel`` of the VMM that was started, whatever is installed by now."""

    version: str
    build: str
    machine_type: str
    cpu_model: str
    cpu_features: tuple[str, ...]
    devices: str


class ExitRecord(_Part):
    """How the last run ended by itself."""

    code: int | None
    message: str
    reason: str = ""


class LineageRecord(_Part):
    """The family of Instances that share memory. ``gid``: of their files in the memory store."""

    gid: int
    parent: str | None = None  # UID; None: the first of its family
    root: str | None = None
    depth: int = 0
    forked_at: str | None = None  # RFC 3339; None for the first, and for a fork not made yet


class RunRecord(_Part):
    """The open run, from PrepareRun to CloseRun: the operation in flight, and how far it came.

    Each mark is durable before the effect it announces.
    """

    nonce: str = ""  # names this boot to the guest, and its words on the console to us
    prepared: bool = False  # directories and config disk are made
    starting: bool = False  # a VMM may exist from here on
    vmm: VmmRecord | None = None
    machine_type: str = ""
    accelerator: str = ""
    boot_ordered: Moment | None = None
    stop_ordered: Moment | None = None
    exit_noted: bool = False
    model: ModelRecord | None = None  # None: an earlier release started it
    base: StoredFile | None = None  # the image that its RAM is mapped from; None: all holes
    wakes: int | None = None  # the disk generation whose snapshot it is made from; None: a boot
    repaired: bool = False  # the woken guest has acknowledged time, entropy and identity
    saving: bool = False  # a save was begun
    goes_on: bool = False  # its guest ran when it was made to stand still for a save or a fork


class Record(_Part):
    """Everything durable about one Instance on this node."""

    uid: str
    namespace: str
    name: str
    id: str
    install_id: str
    epoch: int
    index: int  # of this node, unique among records; the VMM's uid is made of it
    run: int = 0
    provisioned: bool = False
    image: str
    image_digest: str | None = None
    hardware: HardwareRecord
    kernel: KernelRecord | None = None
    workload: WorkloadRecord | None = None
    open: RunRecord | None = None
    vmm_version: str = ""  # of the last VMM, for people
    started_at: str | None = None
    stopped_at: str | None = None
    exit: ExitRecord | None = None
    exited: bool = False
    restarts: int = 0
    retry_after: Moment | None = None
    released: str | None = None
    disk_generation: int = 0
    slept: int | None = None  # the disk generation whose snapshot it was left with, without a VMM
    lineage: LineageRecord | None = None  # None: it never slept and is no fork
    inherited: WorkloadRecord | None = None  # a fork's, where its spec is silent
    tombstone: bool = False


class Records:
    """The records of one state directory, cached; every ``save`` is durable when it returns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache: dict[str, Record | Unknown] = {}

    def load(self) -> None:
        """Read every record. One that cannot be read becomes Unknown, never absent."""
        found = {
            path.name: self._read(path / NAME)
            for path in sorted(self.root.iterdir())
            if is_uid(path.name) and path.is_dir()
        }
        self._cache = {uid: record for uid, record in found.items() if record is not None}

    def get(self, uid: str) -> Record | Unknown | None:
        """The record, Unknown when it cannot be trusted, None when there is none."""
        return self._cache.get(checked_uid(uid))

    def items(self) -> list[tuple[str, Record | Unknown]]:
        """Every (uid, record or Unknown)."""
        return list(self._cache.items())

    def known(self) -> list[Record]:
        """The records that can be trusted."""
        return [found for found in self._cache.values() if isinstance(found, Record)]

    def save(self, record: Record) -> Record:
        """Write ``record`` durably. Raises Retry (NoSpace, IOError): then the old one stands."""
        if isinstance(self._cache.get(record.uid), Unknown):
            raise Bug(f"record {record.uid}: refusing to overwrite one that could not be read")
        place = self.directory(record.uid)
        if not place.exists():
            place.mkdir(mode=0o711, parents=True)
            files.fsync_dir(self.root)
        files.write_atomic(place / NAME, encode(record), mode=0o600)
        self._cache[record.uid] = record
        return record

    def remove(self, uid: str) -> None:
        """Remove the record with its whole directory: the last trace on this host."""
        files.remove_tree(self.directory(uid))
        self._cache.pop(uid, None)

    def directory(self, uid: str) -> Path:
        """Where everything durable of one Instance lies."""
        return self.root / checked_uid(uid)

    def free_index(self, limit: int) -> int:
        """The lowest index no record holds. Raises Retry when all ``limit`` are taken."""
        if any(isinstance(found, Unknown) for found in self._cache.values()):
            # An unreadable record holds an index we cannot see; going above all others is safe
            # only by chance, so start far from them.
            taken = {record.index for record in self.known()}
            return next(i for i in range(limit - 1, -1, -1) if i not in taken)
        taken = {record.index for record in self.known()}
        for index in range(limit):
            if index not in taken:
                return index
        raise Retry(f"all {limit} uids of this node are in use", reason="NoFreeUid")

    def _read(self, path: Path) -> Record | Unknown | None:
        try:
            data = path.read_bytes()[: _LIMIT + 1]
        except FileNotFoundError:
            return None  # a directory whose record was never written, or already removed: sweep's
        except OSError as err:
            return Unknown(f"record {path} cannot be read: {err.strerror}", "RecordUnreadable")
        try:
            return decode(data)
        except Rejected as err:
            return Unknown(f"record {path}: {err}", err.reason, stalled=True)


def encode(record: Record) -> bytes:
    """One JSON object: schema, checksum over the body's canonical form, body."""
    body = record.model_dump(mode="json")
    # A field a line, for people; json's own indentation takes a whole millisecond.
    fields = ",\n".join(
        f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in body.items()
    )
    head = f'{{\n "schema": {SCHEMA},\n "checksum": "{_checksum(body)}",\n "record": {{\n'
    return f"{head}{fields}\n }}\n}}\n".encode()


def decode(data: bytes) -> Record:
    """The inverse of ``encode``. Raises Rejected (RecordCorrupt, RecordNewer) with the remedy."""
    try:
        whole: Any = json.loads(data)
        schema, body = whole["schema"], whole["record"]
    except (ValueError, TypeError, KeyError) as err:
        raise _corrupt("it is not a whole record") from err
    if not isinstance(schema, int) or schema > SCHEMA:
        raise _newer(f"schema {schema!r}, this one knows {SCHEMA}")
    if whole.get("checksum") != _checksum(body):
        raise _corrupt("its checksum does not match")
    try:
        return Record.model_validate(body)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":  # whole, by its checksum, yet with a field unknown
            raise _newer(f"field {field}, which this one does not know") from err
        raise _corrupt(f"{field}: {first['msg']}") from err


def _newer(what: str) -> Rejected:
    return Rejected(
        f"a newer agent wrote it ({what}); its guest is left alone: run that agent again",
        reason="RecordNewer",
    )


def _corrupt(why: str) -> Rejected:
    return Rejected(
        f"{why}; its guest is left alone: restore the file, or delete the Instance after moving "
        "the directory away",
        reason="RecordCorrupt",
    )


def _checksum(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
