"""What a look at a host found, as JSON: the form that ``torpor plan --seen`` reads.

One object, keys as the fields of ``core.observed.Observed`` in camelCase. Every fact is its value,
``"absent"`` (looked, not there) or ``{"unknown": WHY}`` (could not look)::

    now       seconds since the host's boot; other times are on the same clock     default 0
    record    {epoch, run, provisioned, hardware, ...}; what is left out is as after a provision
    lock      "Free", "Held" (a VMM lives) or "Unknown"                            default "Free"
    vmm       {state: Created|Running|Paused|Shutdown, pid, version, accelerator, ending,
              storageFull}
    guest     {started, exit: {code, message}, panic}
    image     {ready: {digest}} | {pulling: {progress}} |
              {failed: {reason, message, stalled, retryAt}}
    kernel    the version of the guest kernel that a boot would take
    overlay   true, false or unknown: its writable disk is there                   default false
    snapshot  {takenAt, baseBytes, deltaBytes, stateBytes, hypervisor, reason, problem}: a committed
              one; {} is enough
    source    {name, state, started, ending, memory}: what a fork is to be made from
    stopping  true, false: the guest was told to shut down                         default false

A fact that is left out is absent. ``example`` is a whole one. What does not live here: what follows
from it (``core.plan``).
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel, to_snake

from controller.core.desired import Desired, Hardware, Workload
from controller.core.observed import (
    ABSENT,
    Absent,
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
from controller.errors import Rejected

T = TypeVar("T")

_IMAGES: dict[str, type[ImageReady] | type[ImagePulling] | type[ImageFailed]] = {
    "ready": ImageReady,
    "pulling": ImagePulling,
    "failed": ImageFailed,
}
# where the values of a fact have values of their own
_NESTED = {"hardware": Hardware, "workload": Workload, "exit": Exit}


def parse(document: Any, desired: Desired) -> tuple[Observed, float]:
    """The look and its time. Raises Rejected naming the key.

    ``desired`` fills what a record leaves out: its epoch and hardware.
    """
    facts = _mapping(document, "seen")
    names = {field.name for field in dataclasses.fields(Observed)}
    _known(facts, names | {"now"}, "seen")
    seen = Observed(
        record=_fact(Recorded, facts, "record", defaults=_provisioned(desired)),
        lock=_value(Lock, facts.get("lock", Lock.FREE.value), "lock"),
        vmm=_fact(Vmm, facts, "vmm"),
        guest=_fact(Guest, facts, "guest"),
        image=_image(facts.get("image", "absent")),
        kernel=_kernel(facts.get("kernel", "absent")),
        overlay=_truth(facts, "overlay"),
        snapshot=_fact(Snapshot, facts, "snapshot", _SNAPSHOT),
        source=_fact(Source, facts, "source"),
        stopping=_value(bool, facts.get("stopping", False), "stopping"),
    )
    return seen, _value(float, facts.get("now", 0.0), "now")


def to_json(seen: Observed, now: float) -> dict[str, Any]:
    """The inverse of ``parse``."""
    facts = {f.name: _plain(getattr(seen, f.name)) for f in dataclasses.fields(Observed)}
    for word, kind in _IMAGES.items():
        if isinstance(seen.image, kind):
            facts["image"] = {word: facts["image"]}
    return {"now": now, **facts}


def example() -> dict[str, Any]:
    """A guest that runs, as its node sees it, with every key."""
    hardware = Hardware("qemu", vcpus=1, memory=128 << 20, overlay=64 << 20)
    fresh = Recorded(**_defaults(1, hardware))
    digest = "sha256:" + 64 * "0"
    record = dataclasses.replace(
        fresh,
        run=1,
        image_digest=digest,
        workload=Workload(),
        run_open=True,
        boot_ordered=True,
        run_began_at=90.0,
        started_at="2026-01-01T00:00:00Z",
    )
    seen = Observed(
        record=record,
        lock=Lock.HELD,
        vmm=Vmm(State.RUNNING, pid=4242, version="10.0.2", accelerator="tcg"),
        guest=Guest(started=True),
        image=ImageReady(digest),
        kernel="6.1.0-56-cloud-amd64",
        overlay=True,
    )
    return to_json(seen, 100.0)


def _provisioned(desired: Desired) -> dict[str, Any]:
    hardware = desired.hardware or Hardware("qemu", 1, 1 << 30, 1 << 30)
    return _defaults(max(desired.epoch, 1), hardware)


def _defaults(epoch: int, hardware: Hardware) -> dict[str, Any]:
    """A record right after provision: no run yet, nothing ended, nothing ordered."""
    no = dict.fromkeys(
        ("run_open", "run_prepared", "boot_ordered", "rebooted", "exit_noted", "exited",
         "stop_ordered", "tombstone"), False,
    )  # fmt: skip
    none = dict.fromkeys(
        ("image_digest", "kernel_version", "kernel_digest", "workload", "run_began_at", "released",
         "exit", "retry_at", "stop_ordered_at", "started_at", "stopped_at"),
    )  # fmt: skip
    settled = {"epoch": epoch, "run": 0, "provisioned": True, "hardware": hardware, "restarts": 0}
    return {**settled, **no, **none}


def _fact(
    kind: type[T], facts: Mapping[str, Any], key: str, defaults: Mapping[str, Any] | None = None
) -> T | Absent | Unknown:
    given = facts.get(key, "absent")
    if (nothing := _nothing(given, key)) is not None:
        return nothing
    fields = _mapping(given, key)
    _known(fields, {field.name for field in dataclasses.fields(kind)}, key)  # type: ignore[arg-type]
    for name, inner in _NESTED.items():
        if isinstance(fields.get(name), Mapping):
            _known(fields[name], {field.name for field in dataclasses.fields(inner)}, key)
    return _value(kind, {**(defaults or {}), **fields}, key)


def _nothing(given: Any, key: str) -> Absent | Unknown | None:
    """Absent or Unknown where ``given`` says so, None where it is a value."""
    if given == "absent":
        return ABSENT
    if isinstance(given, Mapping) and "unknown" in given:
        fields = dict(given)
        return _value(Unknown, {"why": fields.pop("unknown"), **fields}, key)
    return None


def _image(given: Any) -> ImageFact | Unknown:
    if (nothing := _nothing(given, "image")) is not None:
        return nothing
    words = _mapping(given, "image")
    if len(words) != 1 or not set(words) <= set(_IMAGES):
        raise Rejected('seen: image: give one of "absent", {"ready": …}, {"pulling": …}, '
                       '{"failed": …}, {"unknown": WHY}')  # fmt: skip
    (word,) = words
    found: ImageFact | Unknown = _fact(_IMAGES[word], words, word)
    return found


def _kernel(given: Any) -> str | Absent | Unknown:
    nothing = _nothing(given, "kernel")
    return _value(str, given, "kernel") if nothing is None else nothing


def _truth(facts: Mapping[str, Any], key: str) -> bool | Unknown:
    given = facts.get(key, False)
    nothing = _nothing(given, key)
    if isinstance(nothing, Unknown):
        return nothing
    return False if nothing is not None else _value(bool, given, key)


def _value(kind: type[T], given: Any, key: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        where = ".".join([key, *(to_camel(str(part)) for part in first["loc"])])
        raise Rejected(f"seen: {where}: {first['msg']}, found {first['input']!r:.60}") from err


def _known(fields: Mapping[str, Any], names: set[str], key: str) -> None:
    for name in fields:
        if name not in names:
            known = ", ".join(sorted(map(to_camel, names)))
            raise Rejected(f"seen: {key} has no {to_camel(name)!r}; it has: {known}")


_SNAPSHOT = dict.fromkeys(("taken_at", "hypervisor"), "") | dict.fromkeys(
    ("base_bytes", "delta_bytes", "state_bytes"), 0
)


def _mapping(given: Any, key: str) -> dict[str, Any]:
    """``given`` with the names our values have, at every depth."""
    if not isinstance(given, Mapping):
        raise Rejected(f'seen: {key}: an object is expected, or "absent", or {{"unknown": WHY}}')
    return {
        to_snake(str(name)): _mapping(value, key) if isinstance(value, Mapping) else value
        for name, value in given.items()
    }


def _plain(value: Any) -> Any:
    match value:
        case Absent():
            return "absent"
        case Unknown(why=why, reason=reason, stalled=stalled):
            return {"unknown": why, "reason": reason, "stalled": stalled}
        case Enum():
            return value.value
        case tuple():
            return [_plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {
                to_camel(field.name): _plain(getattr(value, field.name))
                for field in dataclasses.fields(value)
            }
        case _:
            return value
