"""What the API server takes and refuses of forks: each rule once allowed, once denied, in words.

The refusals must name the field and hold the remedy. What an agent may write of a fork's status is
in ``test_policy``.
"""

import secrets
from typing import Any

import pytest

from controller.local.admin import Admin, Refused
from controller.local.controlplane import ControlPlane
from tests.clusterkit import Kubectl
from tests.identities import INSTANCES, Object

FORK: Object = {"forkFrom": {"name": "web"}}
LINEAGE: Object = {"parent": "uid-1", "root": "uid-0", "depth": 2}
SNAPSHOT: Object = {
    "takenAt": "2026-01-01T00:00:00Z",
    "size": "3.9Mi",
    "bytes": 4089446,
    "baseBytes": 4000000,
    "deltaBytes": 9446,
    "hypervisor": "qemu 7.2.22",
}


def instance(spec: Object, name: str = "copy") -> Object:
    meta = {"name": name}
    return {
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Instance", "metadata": meta, "spec": spec,
    }  # fmt: skip


@pytest.fixture
def admin(control_plane: ControlPlane) -> Admin:
    return control_plane.admin


@pytest.fixture
def instances(namespace: str) -> str:
    return f"{INSTANCES}/namespaces/{namespace}/instances"


def refusal(admin: Admin, path: str, body: Object) -> str:
    with pytest.raises(Refused) as refused:
        admin.create(f"{path}?fieldValidation=Strict", body)
    assert refused.value.code in (400, 422)
    return str(refused.value)


@pytest.mark.parametrize(
    "spec",
    [
        FORK,
        {"forkFrom": {"name": "web", "fromRunning": True}},
        *(FORK | {"operatingMode": mode} for mode in ("Running", "Paused", "Standby", "Stopped")),
        FORK | {"env": [{"name": "A", "value": "b"}], "command": ["/bin/app"], "args": ["x"]},
        FORK | {"nodeSelector": {"zone": "a"}, "tolerations": [{"operator": "Exists"}]},
        FORK | {"restartPolicy": "Always", "stopTimeoutSeconds": 9, "priorityClassName": "high"},
        {"forkFrom": {"name": "a" * 63}},
    ],
)
def test_fork_is_accepted(admin: Admin, instances: str, spec: Object) -> None:
    stored = admin.create(f"{instances}?fieldValidation=Strict", instance(spec))
    assert stored["spec"]["forkFrom"] == {"fromRunning": False} | spec["forkFrom"]
    assert "image" not in stored["spec"]


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({}, "spec", "exactly one of image and forkFrom"),
        (FORK | {"image": "app:1"}, "spec", "exactly one of image and forkFrom"),
        (FORK | {"hypervisor": "qemu"}, "spec.hypervisor", "from its source: remove it"),
        (FORK | {"vcpus": 2}, "spec.vcpus", "from its source: remove it"),
        (FORK | {"memory": {"size": "1Gi"}}, "spec.memory", "from its source: remove it"),
        (FORK | {"overlay": {"size": "1Gi"}}, "spec.overlay", "from its source: remove it"),
        (FORK | {"disk": {"bandwidth": 0}}, "spec.disk", "from its source: remove it"),
        (FORK | {"nodeName": "n1"}, "spec.nodeName", "its source's node: remove nodeName"),
        ({"forkFrom": {"name": "copy"}}, "spec.forkFrom.name", "this Instance's own name"),
        ({"forkFrom": {}}, "spec.forkFrom.name", "Required"),
        ({"forkFrom": {"name": ""}}, "spec.forkFrom.name", "at least 1"),
        ({"forkFrom": {"name": "other/web"}}, "spec.forkFrom.name", "should match"),
        ({"forkFrom": {"name": "a" * 64}}, "spec.forkFrom.name", "63"),
        ({"forkFrom": {"name": "web", "namespace": "x"}}, "spec.forkFrom", "unknown field"),
        ({"forkFrom": {"name": "web", "fromRunning": "no"}}, "spec.forkFrom.fromRunning",
         "boolean"),
        ({"forkFrom": "web"}, "spec.forkFrom", "object"),
    ],
)  # fmt: skip
def test_fork_is_refused(
    admin: Admin, instances: str, spec: Object, field: str, words: str
) -> None:
    message = refusal(admin, instances, instance(spec))
    assert field in message
    assert words in message


@pytest.mark.parametrize(
    "change",
    [
        {"forkFrom": {"name": "other"}},
        {"forkFrom": {"fromRunning": True}},
        {"forkFrom": None},
        {"forkFrom": None, "image": "app:1"},
    ],
    ids=["another source", "from running", "removed", "replaced by an image"],
)
def test_source_of_a_fork_never_changes(admin: Admin, instances: str, change: Object) -> None:
    admin.create(instances, instance(FORK))
    with pytest.raises(Refused, match=r"forkFrom is immutable: .* create a new Instance"):
        admin.patch(f"{instances}/copy", {"spec": change})


@pytest.mark.parametrize("image", [None, "app:1"], ids=["replaced", "added"])
def test_instance_of_an_image_never_becomes_a_fork(
    admin: Admin, instances: str, image: str | None
) -> None:
    admin.create(instances, instance({"image": "app:1"}))
    with pytest.raises(Refused, match=r"forkFrom is immutable: .* create a new Instance"):
        admin.patch(f"{instances}/copy", {"spec": FORK | {"image": image}})


def test_fork_changes_its_mode_like_any_other(admin: Admin, instances: str) -> None:
    admin.create(instances, instance(FORK))
    for mode in ("Standby", "Stopped", "Paused", "Running"):
        answer = admin.patch(f"{instances}/copy", {"spec": {"operatingMode": mode}})
        assert answer["spec"]["operatingMode"] == mode


def test_applying_a_fork_twice_changes_nothing(
    admin: Admin, instances: str, kubectl: Kubectl
) -> None:
    kubectl.apply(instance(FORK))
    before = admin.get(f"{instances}/copy")["metadata"]["resourceVersion"]
    kubectl.apply(instance(FORK))
    assert admin.get(f"{instances}/copy")["metadata"]["resourceVersion"] == before


@pytest.fixture
def placed(admin: Admin, instances: str) -> str:
    """The path of a fork that the operator has placed."""
    name = f"fork-{secrets.token_hex(2)}"
    admin.create(instances, instance(FORK, name))
    status = {"id": "c0ffee", "nodeName": "n1", "epoch": 1, "lineage": LINEAGE}
    admin.patch(f"{instances}/{name}/status", {"status": status})
    return f"{instances}/{name}"


@pytest.mark.parametrize(
    "lineage",
    [
        {"parent": "uid-2"},
        {"root": "uid-2"},
        {"depth": 1},
        {"depth": 3},
        {"parent": None},
        None,
    ],
    ids=["parent", "root", "nearer", "farther", "without a parent", "removed"],
)
def test_lineage_that_was_written_never_changes(admin: Admin, placed: str, lineage: Any) -> None:
    before = admin.get(placed)
    with pytest.raises(Refused, match=r"status\.lineage"):
        admin.patch(f"{placed}/status", {"status": {"lineage": lineage}})
    with pytest.raises(Refused, match=r"never disappear"):
        admin.patch(f"{placed}/status", {"status": None})
    assert admin.get(placed) == before


def test_fork_is_said_to_be_done(admin: Admin, placed: str) -> None:
    done = {"lineage": {"forkedAt": "2026-01-01T00:00:00Z"}, "snapshot": SNAPSHOT}
    status = admin.patch(f"{placed}/status", {"status": done})["status"]
    assert status["lineage"] == LINEAGE | done["lineage"]
    assert status["snapshot"] == SNAPSHOT
    answer = admin.patch(f"{placed}/status", {"status": {"snapshot": None}})
    assert "snapshot" not in answer["status"]


@pytest.mark.parametrize("missing", sorted(SNAPSHOT))
def test_snapshot_is_complete_or_refused(admin: Admin, placed: str, missing: str) -> None:
    partial = {key: value for key, value in SNAPSHOT.items() if key != missing}
    with pytest.raises(Refused, match=f"snapshot.{missing}.*Required"):
        admin.patch(f"{placed}/status", {"status": {"snapshot": partial}})


def test_fork_and_sleep_are_seen_in_the_wide_table(
    admin: Admin, placed: str, kubectl: Kubectl
) -> None:
    admin.patch(f"{placed}/status", {"status": {"state": "Standby", "snapshot": SNAPSHOT}})
    header, line = kubectl("get", "inst", "-o", "wide").stdout.splitlines()
    assert line[header.index("FORK-OF") :].split() == ["web", "3.9Mi"]
    assert "FORK-OF" not in kubectl("get", "inst").stdout
