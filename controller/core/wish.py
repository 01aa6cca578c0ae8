"""From an Instance object, as the API server stores it, to the frozen ``Desired`` of this pass."""

from typing import Any

from controller.api.meta import parse_quantity
from controller.api.parse import parse_spec
from controller.api.spec import InstanceSpec
from controller.core.desired import Desired, Fork, Hardware, RestartPolicy, Workload
from controller.core.ownership import Object, mode, permit
from controller.errors import Rejected


def desired(obj: Object) -> Desired:
    """What ``obj`` asks for. Raises Rejected (SpecInvalid) for an object no schema of ours allows.

    Reads tolerantly: a field of a later version is no error, an object of an earlier one neither.
    """
    meta, status = obj["metadata"], obj.get("status") or {}
    try:
        spec = parse_spec(obj.get("spec") or {})
        return Desired(
            uid=meta["uid"],
            namespace=meta["namespace"],
            name=meta["name"],
            generation=meta.get("generation", 0),
            mode=mode(obj),
            epoch=status.get("epoch", 0),
            image=spec.image or "",
            hardware=hardware(status.get("resources")),
            workload=workload(spec),
            pinned=(status.get("image") or {}).get("digest"),
            stop_timeout=spec.stop_timeout_seconds,
            restart=RestartPolicy(spec.restart_policy),
            permit=permit(obj),
            reservation=status.get("reservation"),
            id=status.get("id", ""),
            ran_before=_has_lived(status),
            fork=_fork(spec, status.get("lineage") or {}),
        )
    except Rejected as err:
        raise Rejected(f"instance {_name(meta)}: {err}", reason="SpecInvalid") from err
    except (KeyError, TypeError, ValueError) as err:
        raise Rejected(
            f"instance {_name(meta)}: the stored object cannot be read ({err!r}); correct its spec",
            reason="SpecInvalid",
        ) from err


def _has_lived(status: Object) -> bool:
    """Whether it has a disk to lose: it ran, or has what it was forked from."""
    forked = (status.get("lineage") or {}).get("forkedAt")
    return bool(status.get("startedAt") or status.get("snapshot") or forked)


def _fork(spec: InstanceSpec, lineage: Object) -> Fork | None:
    if spec.fork_from is None or not lineage.get("parent"):
        return None
    parent, root, depth = lineage["parent"], lineage.get("root"), lineage.get("depth")
    return Fork(parent, root or parent, depth or 1, spec.fork_from.from_running)


def hardware(resources: Any) -> Hardware | None:
    """``status.resources`` as bytes and counts; None before the operator settled it."""
    if not resources:
        return None
    return Hardware(
        hypervisor=resources["hypervisor"],
        vcpus=int(resources["vcpus"]),
        memory=parse_quantity(resources["memory"]),
        overlay=parse_quantity(resources["overlay"]),
        disk_bandwidth=parse_quantity(resources.get("diskBandwidth") or 0),
    )


def workload(spec: InstanceSpec) -> Workload:
    """What the user says about the program; empty lists mean what the image says."""
    return Workload(
        command=spec.command or None,
        args=spec.args or None,
        env=tuple((entry.name, entry.value) for entry in spec.env or ()),
    )


def _name(meta: Object) -> str:
    return f"{meta.get('namespace')}/{meta.get('name')}"
