"""Stored objects become values; what breaks the rules is refused by field."""

from typing import Any

import pytest

from controller.api.instance import Instance
from controller.api.parse import parse_instance, parse_spec, parse_status, to_wire
from controller.errors import Rejected

RAW: dict[str, Any] = {
    "apiVersion": "torpor.dev/v1alpha1",
    "kind": "Instance",
    "metadata": {
        "name": "web",
        "namespace": "team",
        "uid": "u-1",
        "generation": 3,
        "resourceVersion": "17",
        "finalizers": ["torpor.dev/instance"],
        "managedFields": [{"manager": "kubectl"}],
    },
    "spec": {
        "image": "registry:5000/app:1",
        "operatingMode": "Paused",
        "vcpus": 4,
        "memory": {"size": "1Gi"},
        "disk": {"bandwidth": 1048576},
        "args": ["a", ""],
        "env": [{"name": "A", "value": "é\n"}],
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"app": "web"}},
                        },
                    }
                ]
            }
        },
    },
    "status": {
        "epoch": 2,
        "nodeName": "n1",
        "plan": {"from": "Stopped", "to": "Running", "steps": ["StartVmm"], "because": "asked"},
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Reconciling",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    },
}


def test_fields_arrive_under_their_names() -> None:
    found = parse_instance(RAW)
    assert found.metadata.finalizers == ("torpor.dev/instance",)
    assert found.spec.operating_mode == "Paused"
    assert found.spec.memory is not None
    assert found.spec.memory.size == "1Gi"
    assert found.spec.args == ("a", "")
    assert found.status.plan is not None
    assert found.status.plan.origin == "Stopped"
    ready = found.status.condition("Ready")
    assert ready is not None
    assert ready.reason == "Reconciling"
    assert found.status.condition("Scheduled") is None


def test_what_was_read_is_written_back_unchanged() -> None:
    found = parse_instance(RAW)
    defaults = {"restartPolicy": "Never", "stopTimeoutSeconds": 5}
    assert to_wire(found.spec) == RAW["spec"] | defaults
    assert to_wire(found.status) == RAW["status"] | {"observedGeneration": 0}


def test_values_are_frozen() -> None:
    found: Any = parse_instance(RAW)
    with pytest.raises(ValueError, match="frozen"):
        found.spec.image = "other"


def test_fields_of_a_newer_release_are_ignored() -> None:
    newer = RAW | {"spec": RAW["spec"] | {"gpu": {"profile": "x"}}, "later": 1}
    assert parse_instance(newer) == parse_instance(RAW)


def test_object_without_status_has_an_empty_one() -> None:
    fresh = {key: value for key, value in RAW.items() if key != "status"}
    found: Instance = parse_instance(fresh)
    assert found.status.observed_generation == 0
    assert found.status.state is None
    assert found.status.conditions is None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec"),
        ({"image": "a", "forkFrom": {"name": "b"}}, "spec"),
        ({"forkFrom": {}}, "spec.forkFrom.name"),
        ({"forkFrom": {"name": "b", "fromRunning": "perhaps"}}, "spec.forkFrom.fromRunning"),
        ({"image": "a", "operatingMode": "Hibernating"}, "spec.operatingMode"),
        ({"image": "a", "vcpus": 0}, "spec.vcpus"),
        ({"image": "a", "memory": {}}, "spec.memory.size"),
        ({"image": "a", "env": [{"name": "A"}]}, "spec.env.0.value"),
        ({"image": "a", "stopTimeoutSeconds": 10**9}, "spec.stopTimeoutSeconds"),
        ({"image": "a" * 513}, "spec.image"),
    ],
)
def test_stored_spec_that_breaks_the_rules_is_refused_by_field(
    spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(Rejected) as refused:
        parse_spec(spec)
    assert refused.value.reason == "SpecInvalid"
    assert str(refused.value).startswith(f"{field}:")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_fork_says_its_source_and_nothing_of_its_hardware() -> None:
    found = parse_spec({"forkFrom": {"name": "web"}, "operatingMode": "Standby"})
    assert found.fork_from is not None
    assert (found.fork_from.name, found.fork_from.from_running) == ("web", False)
    assert (found.image, found.vcpus, found.memory) == (None, None, None)
    assert to_wire(found)["forkFrom"] == {"name": "web", "fromRunning": False}


def test_snapshot_and_lineage_arrive_under_their_names() -> None:
    raw = {
        "observedGeneration": 0,
        "snapshot": {
            "takenAt": "2026-01-01T00:00:00Z", "size": "3.9Mi", "bytes": 4089446,
            "baseBytes": 4000000, "deltaBytes": 9446, "hypervisor": "qemu 7.2.22",
        },
        "lineage": {"parent": "u-1", "root": "u-0", "depth": 2},
    }  # fmt: skip
    found = parse_status(raw)
    assert found.snapshot is not None
    assert found.snapshot.delta_bytes == 9446
    assert found.lineage is not None
    assert (found.lineage.depth, found.lineage.forked_at) == (2, None)
    assert to_wire(found) == raw


def test_broken_status_is_refused_by_field() -> None:
    with pytest.raises(Rejected, match=r"^status\.epoch:"):
        parse_status({"epoch": 0})
