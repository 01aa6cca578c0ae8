"""The committed CRD is the models', and stays inside what Kubernetes can check."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ConfigDict

from controller.api.instance import INSTANCE
from controller.api.meta import Model
from controller.api.schema import KINDS, crd, crd_yaml, file_name, structural
from controller.api.status import ResourcesStatus
from controller.cli.crds import crds
from controller.core.desired import Hardware
from controller.core.state import State
from controller.errors import Bug, Rejected

CRDS = Path(__file__).resolve().parents[3] / "crds"
Node = dict[str, Any]


def nodes(schema: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every schema node under ``schema``, itself included, with its path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + mark)


def fields(part: str) -> list[tuple[str, Node]]:
    """The fields of ``spec`` or ``status``."""
    root = crd(INSTANCE)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return list(nodes(root["properties"][part], part))


ALL = fields("spec") + fields("status")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_committed_file_is_what_the_models_say(kind: Any) -> None:
    assert (CRDS / file_name(kind)).read_text() == crd_yaml(kind), "run `torpor crds`"


def test_no_other_definition_is_committed() -> None:
    assert {p.name for p in CRDS.glob("*.yaml")} == {file_name(kind) for kind in KINDS}


def test_text_reads_back_as_the_definition() -> None:
    assert yaml.safe_load(crd_yaml(INSTANCE)) == crd(INSTANCE)


def test_check_fails_on_drift_and_names_the_file(tmp_path: Path) -> None:
    run = CliRunner().invoke(crds, ["--dir", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert CliRunner().invoke(crds, ["--check", "--dir", str(tmp_path)]).exit_code == 0
    (tmp_path / file_name(INSTANCE)).write_text("changed")
    run = CliRunner().invoke(crds, ["--check", "--dir", str(tmp_path)])
    assert isinstance(run.exception, Rejected)
    assert file_name(INSTANCE) in str(run.exception)
    assert (tmp_path / file_name(INSTANCE)).read_text() == "changed"


@pytest.mark.parametrize(("path", "node"), ALL, ids=[path for path, _ in ALL])
def test_field_is_described_and_bounded(path: str, node: Node) -> None:
    if not path.endswith(("[]", "{}")):
        assert node.get("description"), "kubectl explain would say nothing"
    kind = node.get("type")
    if kind == "string":
        assert node.keys() & {"maxLength", "enum", "format"}, "CEL costs need a bound"
    elif kind == "array":
        assert "maxItems" in node
        assert "items" in node
    elif kind == "object":
        assert "properties" in node or "maxProperties" in node
    elif kind is None:
        assert node["x-kubernetes-int-or-string"] is True
        assert "maxLength" in node


def test_hardware_has_no_schema_default() -> None:
    defaults = {path: node["default"] for path, node in fields("spec") if "default" in node}
    assert defaults == {
        "spec.forkFrom.fromRunning": False,
        "spec.operatingMode": "Running",
        "spec.restartPolicy": "Never",
        "spec.stopTimeoutSeconds": 5,
    }


def test_every_rule_says_what_to_do() -> None:
    rules = [r for _, node in ALL for r in node.get("x-kubernetes-validations", [])]
    rules += crd(INSTANCE)["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
        "x-kubernetes-validations"
    ]
    assert len(rules) > 20
    for rule in rules:
        assert rule["message"], rule
        assert "\n" not in rule["message"]
        assert "\n" not in rule["rule"]


def test_later_parts_are_not_in_the_schema_yet() -> None:
    spec = structural(INSTANCE.model)["properties"]["spec"]["properties"]
    later = {"network", "volumes", "devices", "gpu", "guest", "eviction"}
    assert not later & spec.keys()


def test_status_resources_carry_all_of_the_hardware() -> None:
    assert set(ResourcesStatus.model_fields) == {f.name for f in dataclasses.fields(Hardware)}


def test_status_state_has_every_state_but_absent() -> None:
    known = dict(ALL)["status.state"]["enum"]
    assert set(known) == {state.value for state in State} - {State.ABSENT.value}


class Union(Model):
    """A field of two types, which no structural schema can hold."""

    either: int | bool


class Exotic(Model):
    """A keyword that Kubernetes refuses."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {}})

    number: int


@pytest.mark.parametrize("model", [Union, Exotic])
def test_what_kubernetes_cannot_say_is_refused_while_generating(model: type[Model]) -> None:
    with pytest.raises(Bug, match="structural"):
        structural(model)
