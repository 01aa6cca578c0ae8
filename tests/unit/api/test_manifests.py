"""The rights of each process are exactly these: a right more is a decision, not an accident."""

from pathlib import Path
from typing import Any

import yaml

BASE = Path(__file__).resolve().parents[3] / "manifests" / "base"


def documents(name: str) -> list[dict[str, Any]]:
    return [doc for doc in yaml.safe_load_all((BASE / name).read_text()) if doc]


def rights(name: str) -> set[tuple[str, str, str]]:
    """(kind of role, group/resource, verb) of everything that a file grants."""
    return {
        (doc["kind"], f"{group}/{resource}".lstrip("/"), verb)
        for doc in documents(name)
        if doc["kind"] in ("Role", "ClusterRole")
        for rule in doc["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def expand(kind: str, resource: str, verbs: str) -> set[tuple[str, str, str]]:
    return {(kind, resource, verb) for verb in verbs.split()}


EVENTS = expand("ClusterRole", "events", "create patch") | expand(
    "ClusterRole", "events.k8s.io/events", "create patch"
)


def test_operator_has_these_rights_and_no_other() -> None:
    assert rights("operator-rbac.yaml") == (
        expand("ClusterRole", "torpor.dev/instances", "get list watch patch")
        | expand("ClusterRole", "torpor.dev/instances/status", "get patch")
        | expand("ClusterRole", "torpor.dev/instances/finalizers", "update")
        | expand("ClusterRole", "pods", "get list watch create patch delete")
        | expand("ClusterRole", "nodes", "get list watch")
        | expand("ClusterRole", "namespaces", "get list watch")
        | expand("ClusterRole", "apiextensions.k8s.io/customresourcedefinitions", "get list watch")
        | expand("Role", "coordination.k8s.io/leases", "get list watch create update patch")
        | EVENTS
    )


def test_node_agent_has_these_rights_and_no_other() -> None:
    assert rights("node-rbac.yaml") == (
        expand("ClusterRole", "torpor.dev/instances", "get list watch patch")
        | expand("ClusterRole", "torpor.dev/instances/status", "get patch")
        | expand("ClusterRole", "nodes", "get")
        | expand("ClusterRole", "namespaces", "get")
        | expand("ClusterRole", "nodes/status", "get patch")
        | expand("ClusterRole", "pods", "get list watch")
        | expand("Role", "coordination.k8s.io/leases", "get create update patch")
        | EVENTS
    )


def test_users_may_not_write_status() -> None:
    assert not {
        right for right in rights("user-roles.yaml")
        if right[1].endswith("/status") and right[2] not in ("get", "list", "watch")
    }  # fmt: skip


def test_every_policy_fails_closed_and_is_bound_to_deny() -> None:
    files = sorted(path.name for path in BASE.glob("policy-*.yaml"))
    assert len(files) == 4
    for name in files:
        policy, binding = documents(name)
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert binding["spec"]["policyName"] == policy["metadata"]["name"]
        assert binding["spec"]["validationActions"] == ["Deny"]


def test_base_lists_every_file() -> None:
    (listed,) = documents("kustomization.yaml")
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed["resources"]) == files | {"../../crds"}
