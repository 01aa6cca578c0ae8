"""What the API server makes of the Instance definition: defaults, columns, rules of status."""

import json
import secrets
from typing import Any

import pytest

from controller.local.admin import Admin, Refused
from controller.local.controlplane import ControlPlane
from tests.clusterkit import Kubectl
from tests.identities import INSTANCES, Object

READY: Object = {
    "type": "Ready",
    "status": "True",
    "reason": "Stopped",
    "message": "as asked",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "observedGeneration": 1,
}
SCHEDULED: Object = READY | {"type": "Scheduled", "reason": "Scheduled"}


def instance(name: str = "web", **spec: Any) -> Object:
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {"name": name},
        "spec": {"image": "registry:5000/app:1", **spec},
    }


@pytest.fixture
def admin(control_plane: ControlPlane) -> Admin:
    return control_plane.admin


@pytest.fixture
def instances(namespace: str) -> str:
    """Where this test's Instances are in the API."""
    return f"{INSTANCES}/namespaces/{namespace}/instances"


def write_status(admin: Admin, path: str, **status: Any) -> Object:
    return admin.patch(f"{path}/status", {"status": status})


def test_fresh_instance_has_modes_and_no_hardware(admin: Admin, instances: str) -> None:
    assert admin.create(instances, instance())["spec"] == {
        "image": "registry:5000/app:1",
        "operatingMode": "Running",
        "restartPolicy": "Never",
        "stopTimeoutSeconds": 5,
    }


def test_fresh_instance_never_reads_as_done(admin: Admin, instances: str) -> None:
    admin.create(instances, instance())
    found = admin.get(f"{instances}/web")
    (ready,) = found["status"]["conditions"]
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", "Unknown", "Pending")
    assert found["status"]["observedGeneration"] == 0
    assert found["metadata"]["generation"] == 1


def test_status_in_a_create_request_is_dropped(admin: Admin, instances: str) -> None:
    forged = instance() | {"status": {"nodeName": "n1", "epoch": 9, "state": "Running"}}
    admin.create(instances, forged)
    assert "nodeName" not in admin.get(f"{instances}/web")["status"]
    assert "epoch" not in admin.get(f"{instances}/web")["status"]


def test_spec_and_status_are_written_apart(admin: Admin, instances: str) -> None:
    admin.create(instances, instance())
    answer = write_status(admin, f"{instances}/web", state="Stopped")
    assert answer["metadata"]["generation"] == 1
    both = {"spec": {"operatingMode": "Stopped"}, "status": {"state": "Running"}}
    answer = admin.patch(f"{instances}/web", both)
    assert answer["metadata"]["generation"] == 2
    assert answer["status"]["state"] == "Stopped"
    answer = admin.patch(f"{instances}/web/status", {"spec": {"operatingMode": "Running"}})
    assert answer["spec"]["operatingMode"] == "Stopped"


def test_columns_show_what_is_asked_and_what_is(
    admin: Admin, instances: str, kubectl: Kubectl
) -> None:
    admin.create(instances, instance())
    assert kubectl("get", "inst").stdout.split("\n")[0].split() == [
        "NAME", "MODE", "STATE", "READY", "NODE", "AGE",
    ]  # fmt: skip
    write_status(
        admin,
        f"{instances}/web",
        state="Stopped",
        nodeName="n1",
        epoch=1,
        conditions=[READY],
        hypervisor={"type": "qemu"},
    )
    shown = kubectl("get", "inst", "-o", "wide").stdout.split("\n")
    assert shown[0].split() == [
        "NAME", "MODE", "STATE", "READY", "NODE", "AGE", "REASON", "IMAGE", "VMM",
        "FORK-OF", "SNAPSHOT",
    ]  # fmt: skip
    values = shown[1].split()
    assert values[:5] == ["web", "Running", "Stopped", "True", "n1"]
    assert values[6:] == ["Stopped", "registry:5000/app:1", "qemu"]


@pytest.mark.parametrize("category", ["all", "torpor", "inst", "instances.torpor.dev"])
def test_instances_are_found_by_every_name(
    admin: Admin, instances: str, kubectl: Kubectl, category: str
) -> None:
    admin.create(instances, instance())
    assert "web" in kubectl("get", category, "-o", "name").stdout


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("status.nodeName=n1", ["asleep"]),
        ("status.nodeName!=n1", ["awake"]),
        ("status.state=Running", ["awake"]),
        ("spec.operatingMode=Stopped", ["asleep"]),
        ("status.nodeName=n1,status.state=Running", []),
    ],
)
def test_instances_are_selected_by_field(
    admin: Admin, instances: str, kubectl: Kubectl, selector: str, names: list[str]
) -> None:
    admin.create(instances, instance("asleep", operatingMode="Stopped"))
    admin.create(instances, instance("awake"))
    write_status(admin, f"{instances}/asleep", nodeName="n1", epoch=1, state="Stopped")
    write_status(admin, f"{instances}/awake", nodeName="n2", epoch=1, state="Running")
    found = kubectl.json("get", "inst", f"--field-selector={selector}")["items"]
    assert [item["metadata"]["name"] for item in found] == names


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("", "microVM"),
        (
            ".spec.operatingMode",
            "Running Paused Standby Stopped DESCRIPTION: What the Instance should",
        ),
        (".spec.memory.size", "multiple of"),
        (".spec.env.value", "secret"),
        (".spec.affinity.podAntiAffinity", "What must hold"),
        (".status.exit.message", "killed by signal 9"),
    ],
)
def test_explain_says_what_a_field_means(kubectl: Kubectl, field: str, words: str) -> None:
    shown = " ".join(kubectl("explain", f"inst{field}").stdout.split())
    assert words in shown


def test_explain_lists_the_whole_spec(kubectl: Kubectl) -> None:
    shown = kubectl("explain", "inst.spec", "--recursive").stdout
    for field in ("image", "memory", "topologyKey", "tolerationSeconds", "stopTimeoutSeconds"):
        assert f"{field}\t<" in shown


def test_applying_the_same_twice_changes_nothing(
    admin: Admin, instances: str, kubectl: Kubectl
) -> None:
    wanted = instance(memory={"size": "1Gi"}, env=[{"name": "A", "value": "b"}])
    kubectl.apply(wanted)
    before = admin.get(f"{instances}/web")["metadata"]["resourceVersion"]
    done = kubectl("apply", "-f", "-", stdin=json.dumps(wanted))
    assert "unchanged" in done.stdout
    assert kubectl("diff", "-f", "-", stdin=json.dumps(wanted)).stdout == ""
    assert admin.get(f"{instances}/web")["metadata"]["resourceVersion"] == before


def test_kubectl_refuses_an_unknown_field_by_its_name(kubectl: Kubectl) -> None:
    assert 'unknown field "memroy"' in kubectl.refusal(instance(memroy={"size": "1Gi"}))


def test_two_appliers_share_env_by_name(admin: Admin, instances: str) -> None:
    def apply(manager: str, spec: Object) -> Object:
        path = f"{instances}/web?fieldManager={manager}"
        return admin.patch(path, instance() | {"spec": spec}, "apply-patch+yaml")

    image = "registry:5000/app:1"
    apply("git", {"image": image, "env": [{"name": "A", "value": "1"}]})
    apply("team", {"env": [{"name": "B", "value": "2"}]})
    answer = apply("git", {"image": image, "env": [{"name": "A", "value": "3"}]})
    assert answer["spec"]["env"] == [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]
    with pytest.raises(Refused, match="git") as refused:
        apply("team", {"env": [{"name": "A", "value": "4"}]})
    assert refused.value.code == 409


def test_status_writers_merge_conditions_by_type(admin: Admin, instances: str) -> None:
    admin.create(instances, instance())
    for manager, condition in (("operator", SCHEDULED), ("agent", READY)):
        body = instance() | {"status": {"conditions": [condition]}}
        del body["spec"]
        path = f"{instances}/web/status?fieldManager={manager}&force=true"
        answer = admin.patch(path, body, "apply-patch+yaml")
    assert {c["type"] for c in answer["status"]["conditions"]} == {"Ready", "Scheduled"}


def test_two_conditions_of_one_type_are_refused(admin: Admin, instances: str) -> None:
    admin.create(instances, instance())
    with pytest.raises(Refused, match="Duplicate value"):
        write_status(admin, f"{instances}/web", conditions=[READY, READY])


@pytest.mark.parametrize("missing", ["reason", "message", "lastTransitionTime", "status"])
def test_condition_is_complete_or_refused(admin: Admin, instances: str, missing: str) -> None:
    admin.create(instances, instance())
    partial = {key: value for key, value in READY.items() if key != missing}
    with pytest.raises(Refused, match=f"conditions.*{missing}.*Required"):
        write_status(admin, f"{instances}/web", conditions=[partial])


def test_wait_for_ready_ends_when_ready_is_true(
    admin: Admin, instances: str, kubectl: Kubectl
) -> None:
    admin.create(instances, instance())
    waiting = ("wait", "--for=condition=Ready", "inst/web")
    assert kubectl(*waiting, "--timeout=0s", check=False).returncode != 0
    write_status(admin, f"{instances}/web", conditions=[READY], observedGeneration=1)
    kubectl(*waiting, "--timeout=5s")


@pytest.fixture
def placed(admin: Admin, instances: str) -> str:
    """The path of an Instance that was placed: n1, epoch 3."""
    name = f"placed-{secrets.token_hex(2)}"
    admin.create(instances, instance(name))
    write_status(admin, f"{instances}/{name}", id="c0ffee", state="Stopped", nodeName="n1", epoch=3)
    return f"{instances}/{name}"


@pytest.mark.parametrize(
    ("status", "field", "words"),
    [
        ({"epoch": 2}, "status.epoch", "never decreases"),
        ({"epoch": None}, "status.epoch", "never disappears"),
        ({"epoch": None, "nodeName": None}, "status.epoch", "never disappears"),
        ({"epoch": 0}, "status.epoch", "greater than or equal to 1"),
        ({"nodeName": "n2"}, "status.nodeName", "only together with a higher status.epoch"),
        ({"nodeName": None}, "status.nodeName", "only together with a higher status.epoch"),
        ({"nodeName": "n2", "epoch": 3}, "status.nodeName", "higher status.epoch"),
        ({"nodeName": "n2", "epoch": 2}, "status.epoch", "never decreases"),
        ({"id": "other"}, "status.id", "never changes"),
        ({"id": None}, "status.id", "never changes"),
        ({"state": "Absent"}, "status.state", "supported values"),
        ({"image": {"digest": "sha256:abc"}}, "status.image.digest", "should match"),
    ],
)
def test_status_rule_refuses(
    admin: Admin, placed: str, status: Object, field: str, words: str
) -> None:
    before = admin.get(placed)
    with pytest.raises(Refused) as refused:
        write_status(admin, placed, **status)
    assert field in str(refused.value)
    assert words in str(refused.value)
    assert admin.get(placed) == before


def test_status_that_was_written_cannot_be_removed(admin: Admin, placed: str) -> None:
    with pytest.raises(Refused, match="never disappears"):
        admin.patch(f"{placed}/status", {"status": None})


def test_node_name_without_an_epoch_is_refused(admin: Admin, instances: str) -> None:
    admin.create(instances, instance())
    with pytest.raises(Refused, match=r"needs a status\.epoch"):
        write_status(admin, f"{instances}/web", nodeName="n1")


@pytest.mark.parametrize(
    "status",
    [
        {"epoch": 4},
        {"epoch": 4, "nodeName": "n2"},
        {"epoch": 4, "nodeName": None},
        {"state": "Running", "startedAt": "2026-01-01T00:00:00Z"},
        {"state": "Standby"},
        {"resources": {"hypervisor": "qemu", "vcpus": 2, "memory": "1Gi", "overlay": 1048576}},
        {"exit": {"code": 3, "message": "exited 3"}},
        {"plan": {"from": "Stopped", "to": "Running", "steps": ["StartVmm"], "because": "asked"}},
    ],
)
def test_status_rule_allows(admin: Admin, placed: str, status: Object) -> None:
    answer = write_status(admin, placed, **status)["status"]
    assert {key: answer.get(key) for key in status} == status


def test_definition_is_valid_for_the_api_server(admin: Admin) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/instances.torpor.dev"
    conditions = {c["type"]: c["status"] for c in admin.get(path)["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
