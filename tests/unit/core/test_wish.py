"""From a stored object to what a node is asked for."""

from typing import Any

import pytest

from controller.core.desired import Hardware, Mode, RestartPolicy, Workload
from controller.core.wish import desired
from controller.errors import Rejected

OBJECT: dict[str, Any] = {
    "metadata": {"uid": "u", "namespace": "team", "name": "web", "generation": 4},
    "spec": {
        "image": "app:1",
        "operatingMode": "Paused",
        "restartPolicy": "OnFailure",
        "stopTimeoutSeconds": 9,
        "command": [],
        "args": ["-v", ""],
        "env": [{"name": "A", "value": ""}],
    },
    "status": {
        "id": "c0ffee",
        "epoch": 2,
        "nodeName": "n1",
        "reservation": "pod",
        "image": {"digest": "sha256:" + "0" * 64},
        "resources": {"hypervisor": "qemu", "vcpus": 2, "memory": "1Gi", "overlay": 2**30},
        "conditions": [{"type": "Scheduled", "status": "True"}],
    },
}


def with_spec(**fields: Any) -> dict[str, Any]:
    return OBJECT | {"spec": {**OBJECT["spec"], **fields}}


def test_object_becomes_a_wish() -> None:
    found = desired(OBJECT)
    assert (found.mode, found.restart, found.stop_timeout) == (
        Mode.PAUSED,
        RestartPolicy.ON_FAILURE,
        9,
    )
    assert found.hardware == Hardware("qemu", 2, 2**30, 2**30, 0)
    assert found.workload == Workload(command=None, args=("-v", ""), env=(("A", ""),))
    assert (found.epoch, found.generation, found.reservation, found.id) == (2, 4, "pod", "c0ffee")
    assert found.pinned == "sha256:" + "0" * 64


def test_deletion_is_a_wish_like_any_other() -> None:
    meta = OBJECT["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert desired(OBJECT | {"metadata": meta}).mode is Mode.GONE


def test_fresh_object_has_no_hardware_yet() -> None:
    fresh = {key: value for key, value in OBJECT.items() if key != "status"}
    found = desired(fresh)
    assert found.hardware is None
    assert found.epoch == 0


def test_field_of_a_later_release_is_no_error() -> None:
    assert desired(with_spec(snapshotOf={"name": "x"})) == desired(OBJECT)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"image": None}, "exactly one of image and forkFrom"),
        ({"operatingMode": "Hibernated"}, "Hibernated"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        ({"stopTimeoutSeconds": -1}, "spec.stopTimeoutSeconds"),
        ({"env": [{"value": "x"}]}, "spec.env.0.name"),
        ({"args": "-v"}, "spec.args"),
    ],
)
def test_stored_object_that_breaks_the_rules_is_named_with_its_field(
    spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(Rejected) as refused:
        desired(with_spec(**spec))
    assert refused.value.reason == "SpecInvalid"
    assert "team/web" in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_resources_that_are_no_quantity_are_refused() -> None:
    status = OBJECT["status"] | {"resources": OBJECT["status"]["resources"] | {"memory": "much"}}
    with pytest.raises(Rejected, match="team/web") as refused:
        desired(OBJECT | {"status": status})
    assert refused.value.reason == "SpecInvalid"
