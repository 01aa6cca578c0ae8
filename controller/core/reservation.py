"""The reservation Pod: what holds an Instance's CPU and memory in the scheduler's eyes.

Pure: from an Instance object to the Pod's manifest. The Pod runs nothing; it passes Pod Security
"restricted" and has no volumes, so that a drain may evict it and an autoscaler may count it.
"""

from dataclasses import dataclass
from typing import Any

from controller.core.capacity import cpu_request, memory_request
from controller.core.desired import Hardware
from controller.core.names import NODE_LABEL, SOURCE_LABEL, UID_LABEL, reservation_name
from controller.core.ownership import Object

_FOREVER = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True)
class PodSettings:
    """What the operator's settings say about every reservation Pod."""

    image: str
    scheduler: str
    cpu_allocation_ratio: float


def manifest(
    obj: Object,
    hardware: Hardware,
    node: str | None,
    settings: PodSettings,
    source: str | None = None,
) -> dict[str, Any]:
    """The Pod for ``obj``. ``node``: where it has to be, because its disk lies there.

    ``source``: UID of the Instance that a fork's first Pod was made for.
    """
    meta, spec = obj["metadata"], obj.get("spec") or {}
    pod: dict[str, Any] = {
        "restartPolicy": "Always",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "schedulerName": settings.scheduler,
        # Long enough for the guest to end properly when the Pod is evicted.
        "terminationGracePeriodSeconds": spec.get("stopTimeoutSeconds", 5) + 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65535,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {**(spec.get("nodeSelector") or {}), NODE_LABEL: "true"},
        "tolerations": [*(spec.get("tolerations") or ()), *map(_forever, _FOREVER)],
        "containers": [_container(hardware, settings)],
    }
    if affinity := _affinity(spec.get("affinity"), node or spec.get("nodeName")):
        pod["affinity"] = affinity
    if priority := spec.get("priorityClassName"):
        pod["priorityClassName"] = priority
    return {
        "metadata": {
            "name": reservation_name(meta["name"], meta["uid"]),
            "namespace": meta["namespace"],
            "labels": {
                UID_LABEL: meta["uid"],
                "app.kubernetes.io/managed-by": "torpor",
                **({SOURCE_LABEL: source} if source else {}),
            },
            "ownerReferences": [
                {
                    "apiVersion": obj["apiVersion"],
                    "kind": obj["kind"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": pod,
    }


def _container(hardware: Hardware, settings: PodSettings) -> dict[str, Any]:
    memory = str(memory_request(hardware))
    cpu = f"{cpu_request(hardware, settings.cpu_allocation_ratio)}m"
    return {
        "name": "reservation",
        "image": settings.image,
        "resources": {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _forever(taint: str) -> dict[str, str]:
    return {"key": taint, "operator": "Exists", "effect": "NoExecute"}


def _affinity(given: Any, node: str | None) -> dict[str, Any]:
    """The user's affinity with the pin ANDed into every alternative of it."""
    affinity: dict[str, Any] = dict(given or {})
    if node is None:
        return affinity
    pin = {"key": "metadata.name", "operator": "In", "values": [node]}
    on_node = dict(affinity.get("nodeAffinity") or {})
    required = dict(on_node.get("requiredDuringSchedulingIgnoredDuringExecution") or {})
    terms = required.get("nodeSelectorTerms") or [{}]  # terms are alternatives: pin each of them
    required["nodeSelectorTerms"] = [
        {**term, "matchFields": [*(term.get("matchFields") or ()), pin]} for term in terms
    ]
    on_node["requiredDuringSchedulingIgnoredDuringExecution"] = required
    return {**affinity, "nodeAffinity": on_node}
