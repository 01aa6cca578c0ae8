"""The rights of each process are exactly these: a right more is a decision, not an accident."""

from pathlib import Path
from typing import Any

import yaml

from controller import settings
from controller.cli.main import COMMANDS

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
        | expand("Role", "coordination.k8s.io/leases", "get list watch create update patch")
        | EVENTS
    )


def test_node_agent_has_these_rights_and_no_other() -> None:
    assert rights("node-rbac.yaml") == (
        expand("ClusterRole", "torpor.dev/instances", "get list watch patch")
        | expand("ClusterRole", "torpor.dev/instances/status", "get patch")
        | expand("ClusterRole", "nodes", "get")
        | expand("ClusterRole", "namespaces", "get")
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


DEFAULT = BASE.parent / "default"


def container(name: str) -> dict[str, Any]:
    """The one container of a workload of manifests/default."""
    (workload,) = yaml.safe_load_all((DEFAULT / name).read_text())
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_operator_settings_of_the_manifests_are_valid_and_reach_its_probes() -> None:
    found = settings.load(
        settings.OperatorSettings, DEFAULT / "operator-settings" / "operator.yaml"
    )
    (port,) = container("operator.yaml")["ports"]
    assert found.probe_address == "0.0.0.0"  # the kubelet asks from outside the Pod
    assert found.probe_port == port["containerPort"]


def test_node_settings_of_the_manifests_are_valid_once_the_node_is_named(tmp_path: Path) -> None:
    text = (DEFAULT / "node-settings" / "node.yaml").read_text()
    (tmp_path / "node.yaml").write_text(text.replace("@NODE_NAME@", "worker-1"))
    found = settings.load(settings.NodeSettings, tmp_path / "node.yaml")
    agent = container("node.yaml")
    assert found.node_name == "worker-1"
    assert {str(found.state_dir), str(found.run_dir)} <= {
        mount["mountPath"] for mount in agent["volumeMounts"]
    }
    for probe in ("livenessProbe", "readinessProbe"):
        assert f"127.0.0.1:{found.metrics_port}/" in agent[probe]["exec"]["command"][-1]


def test_workloads_run_commands_that_exist() -> None:
    commands = (
        container("operator.yaml")["command"][:2],
        container("node.yaml")["args"][0].split("exec ")[1].split()[:2],
    )
    for program, command in commands:
        assert program == "torpor"
        assert command in COMMANDS


def test_operator_runs_without_privileges() -> None:
    context = container("operator.yaml")["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
