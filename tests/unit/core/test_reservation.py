"""The reservation Pod's manifest."""

from typing import Any

import pytest

from controller.core.capacity import memory_request
from controller.core.names import NODE_LABEL, SOURCE_LABEL, UID_LABEL
from controller.core.reservation import manifest
from tests.clusterworld import POD_SETTINGS, an_instance
from tests.values import HARDWARE, UID

PIN = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
ZONE = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
FIELD = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n9"]}]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def pod(node: str | None = None, **spec: Any) -> dict[str, Any]:
    return manifest(an_instance(**spec), HARDWARE, node, POD_SETTINGS)


def terms(found: dict[str, Any]) -> Any:
    return found["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]


def affinity(*alternatives: dict[str, Any]) -> dict[str, Any]:
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(alternatives)}}}


@pytest.mark.parametrize(
    ("given", "pinned"),
    [
        (None, [{"matchFields": [PIN]}]),
        ({}, [{"matchFields": [PIN]}]),
        ({"nodeAffinity": {}}, [{"matchFields": [PIN]}]),
        (affinity(ZONE), [{**ZONE, "matchFields": [PIN]}]),
        (affinity(ZONE, FIELD),
         [{**ZONE, "matchFields": [PIN]}, {"matchFields": [*FIELD["matchFields"], PIN]}]),
    ],
)  # fmt: skip
def test_pin_is_anded_into_every_alternative(given: Any, pinned: Any) -> None:
    assert terms(pod("n1", affinity=given)) == pinned
    assert terms(pod(nodeName="n1", affinity=given)) == pinned


def test_first_pod_of_a_fork_names_the_source_it_was_made_for() -> None:
    plain = pod("n1")["metadata"]["labels"]
    assert SOURCE_LABEL not in plain
    found = manifest(an_instance(), HARDWARE, "n1", POD_SETTINGS, "uid-web")
    assert found["metadata"]["labels"] == plain | {SOURCE_LABEL: "uid-web"}
    assert terms(found) == [{"matchFields": [PIN]}]


def test_rest_of_the_affinity_is_passed_through() -> None:
    given: dict[str, Any] = {
        "podAntiAffinity": {PREFERRED: []},
        "nodeAffinity": {PREFERRED: [{"weight": 1, "preference": ZONE}]},
    }
    found = pod("n1", affinity=given)["spec"]["affinity"]
    assert found["podAntiAffinity"] == given["podAntiAffinity"]
    assert found["nodeAffinity"][PREFERRED] == given["nodeAffinity"][PREFERRED]
    assert pod(affinity=given)["spec"]["affinity"] == given


def test_users_object_is_not_changed() -> None:
    obj = an_instance(affinity=affinity(ZONE), nodeSelector={"disk": "fast"})
    before = repr(obj)
    manifest(obj, HARDWARE, "n1", POD_SETTINGS)
    assert repr(obj) == before


def test_node_that_has_the_disk_wins_over_the_one_asked_for() -> None:
    assert terms(pod("n2", nodeName="n1")) == [{"matchFields": [{**PIN, "values": ["n2"]}]}]


def test_pod_is_never_bound_by_us() -> None:
    assert "nodeName" not in pod("n1", nodeName="n1")["spec"]
    assert "affinity" not in pod()["spec"]


def test_pod_passes_pod_security_restricted() -> None:
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "volumes" not in spec
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_pod_asks_for_memory_with_overhead_and_a_share_of_cpu() -> None:
    resources = pod()["spec"]["containers"][0]["resources"]
    memory = str(memory_request(HARDWARE))
    assert resources == {
        "requests": {"cpu": "200m", "memory": memory},
        "limits": {"memory": memory},
    }


def test_pod_needs_our_label_whatever_the_user_selects() -> None:
    selected = {"disk": "fast", NODE_LABEL: "false"}
    assert pod(nodeSelector=selected)["spec"]["nodeSelector"] == {
        "disk": "fast",
        NODE_LABEL: "true",
    }


def test_tolerations_are_the_users_and_for_ever_for_a_silent_node() -> None:
    mine = {"key": "gpu", "operator": "Exists"}
    found = pod(tolerations=[mine])["spec"]["tolerations"]
    assert found[0] == mine
    assert {(t["key"], t["effect"], "tolerationSeconds" in t) for t in found[1:]} == {
        ("node.kubernetes.io/not-ready", "NoExecute", False),
        ("node.kubernetes.io/unreachable", "NoExecute", False),
    }


def test_priority_and_grace_follow_the_spec() -> None:
    spec = pod(priorityClassName="high", stopTimeoutSeconds=60)["spec"]
    assert spec["priorityClassName"] == "high"
    assert spec["terminationGracePeriodSeconds"] > 60
    assert "priorityClassName" not in pod()["spec"]


def test_pod_belongs_to_its_instance() -> None:
    meta = pod()["metadata"]
    assert meta["name"] == "web-6f1b9a2e"
    assert meta["labels"][UID_LABEL] == UID
    (owner,) = meta["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["kind"]) == (UID, True, "Instance")
