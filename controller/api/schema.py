"""Models to CustomResourceDefinitions: the structural schema that the API server enforces.

The text is deterministic, so that the committed files can be compared with it byte for byte. What
does not live here: any field, bound or sentence of a kind (those are in its model), and files
(``cli.crds`` writes them).
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import yaml

from controller.api import GROUP, VERSION
from controller.api.instance import INSTANCE
from controller.api.kind import Column, Kind
from controller.api.meta import Model
from controller.errors import Bug

KINDS: Final = (INSTANCE,)

_HEADER: Final = (
    "# Generated from controller/api by `torpor crds`. Do not edit: change the model.\n"
)

# In the order they stand in the YAML. A keyword that is not here has no place in a structural
# schema, and is a mistake in a model.
_KEYWORDS: Final = (
    "description", "type", "format", "default", "enum", "pattern", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "anyOf", "required", "properties", "additionalProperties", "items",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type", "x-kubernetes-validations",
)  # fmt: skip
_NULL: Final = {"type": "null"}

Schema = dict[str, Any]


def file_name(kind: Kind) -> str:
    """The file under ``crds/`` that holds ``kind``."""
    return f"{GROUP}_{kind.plural}.yaml"


def crd_yaml(kind: Kind) -> str:
    """The whole file, ready to be written."""
    text = yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return _HEADER + text


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of ``kind`` as the API server takes it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "selectableFields": [{"jsonPath": path} for path in kind.selectable],
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                }
            ],
        },
    }


def root_schema(kind: Kind) -> Schema:
    """The structural schema of a whole object of ``kind``."""
    parts = structural(kind.model)
    status = parts["properties"]["status"]
    return {
        "description": parts["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": parts["properties"]["spec"],
            "status": _ordered({**status, "default": kind.status_default}),
        },
        "x-kubernetes-validations": [rule.keywords() for rule in kind.rules],
    }


def structural(model: type[Model]) -> Schema:
    """The structural schema of ``model``: no references, no unions, only keywords of Kubernetes.

    Raises Bug naming the keyword for a model that cannot be said that way.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _resolve(schema, schema.get("$defs", {}))


def _resolve(node: Schema, defs: Mapping[str, Schema]) -> Schema:
    node = _without_null(node)
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return _resolve(node, defs)
    if "properties" in node:
        fields = {name: _resolve(field, defs) for name, field in node["properties"].items()}
        node = {**node, "properties": fields}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node = {**node, key: _resolve(node[key], defs)}
    return _ordered(_leaf(node))


def _without_null(node: Schema) -> Schema:
    """``X | None`` is an optional X: Kubernetes drops nulls, so the union goes."""
    branches = node.get("anyOf")
    if branches is None or _NULL not in branches:
        return node
    rest = [branch for branch in branches if branch != _NULL]
    plain = {key: value for key, value in node.items() if key != "anyOf"}
    if plain.get("default", ...) is None:
        del plain["default"]
    return {**(rest[0] if len(rest) == 1 else {"anyOf": rest}), **plain}


def _leaf(node: Schema) -> Schema:
    node = {key: value for key, value in node.items() if key not in ("title", "$defs")}
    if isinstance(node.get("default"), dict):
        del node["default"]  # only leaves have defaults; a kind's status has its own
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if node.get("type") == "integer":
        node.setdefault("format", "int64")
    if rules := node.get("x-kubernetes-validations"):
        node["x-kubernetes-validations"] = [_sorted_rule(rule) for rule in rules]
    if "description" in node:
        node["description"] = " ".join(inspect.cleandoc(node["description"]).split())
    return node


def _ordered(node: Schema) -> Schema:
    if unknown := node.keys() - set(_KEYWORDS):
        raise Bug(f"not in a structural schema: {sorted(unknown)} of {str(node)[:80]}")
    if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        raise Bug(f"not in a structural schema: a union of types: {str(node)[:80]}")
    return {key: node[key] for key in _KEYWORDS if key in node}


def _sorted_rule(rule: dict[str, str]) -> dict[str, str]:
    return {key: rule[key] for key in ("rule", "message", "fieldPath") if key in rule}


def _column(column: Column) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        shown["description"] = column.description
    if column.wide:
        shown["priority"] = 1
    return shown


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: two equal parts are written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True
