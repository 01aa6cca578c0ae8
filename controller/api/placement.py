"""Where an Instance may run, in the words of a Pod: affinity and tolerations.

These are core/v1's own shapes, with bounds. They are written out so that the API server refuses a
typo here as it does anywhere else; they reach the reservation Pod unchanged.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from controller.api.meta import Int32, Model, Rule, rules

Key = Annotated[str, Field(min_length=1, max_length=317)]
Value = Annotated[str, Field(max_length=63)]
Values = Annotated[tuple[Value, ...], Field(max_length=64)]
LabelValue = Annotated[str, Field(max_length=63)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=32)]
Namespaces = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], Field(max_length=32)
]
LabelKeys = Annotated[tuple[Key, ...], Field(max_length=16)]
Weight = Annotated[Int32, Field(ge=1, le=100)]

_ATOMIC: dict[str, Any] = {"x-kubernetes-map-type": "atomic"}


class NodeSelectorRequirement(Model):
    """One demand on a Node's labels or fields."""

    key: Key
    """The label or field."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How key and values relate."""
    values: (
        Annotated[
            tuple[Annotated[str, Field(max_length=253)], ...],
            Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
        ]
        | None
    ) = None
    """Needed for In and NotIn, one whole number for Gt and Lt, none for Exists and DoesNotExist."""


Requirements = Annotated[tuple[NodeSelectorRequirement, ...], Field(max_length=16)]


class NodeSelectorTerm(Model):
    """Demands that must all hold."""

    model_config = ConfigDict(json_schema_extra=_ATOMIC)

    match_expressions: Requirements | None = None
    """Demands on the Node's labels."""
    match_fields: Requirements | None = None
    """Demands on the Node's fields, such as metadata.name."""


class NodeSelector(Model):
    """Terms of which one must hold."""

    model_config = ConfigDict(json_schema_extra=_ATOMIC)

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16)]
    """At least one term; any of them will do."""


class PreferredNodeTerm(Model):
    """A wish about the Node, and how much it weighs."""

    weight: Weight
    """1 to 100."""
    preference: NodeSelectorTerm
    """What is wished for."""


class NodeAffinity(Model):
    """Demands and wishes about the Node itself."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What the Node must be."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodeTerm, ...], Field(max_length=16)] | None
    ) = None
    """What the Node had better be."""


class LabelSelectorRequirement(Model):
    """One demand on labels."""

    key: Key
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How key and values relate."""
    values: Values | None = None
    """Needed for In and NotIn, none for Exists and DoesNotExist."""


class LabelSelector(Model):
    """Demands on labels that must all hold; an empty one selects everything."""

    model_config = ConfigDict(json_schema_extra=_ATOMIC)

    match_labels: Labels | None = None
    """Labels that must have exactly these values."""
    match_expressions: (
        Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] | None
    ) = None
    """Further demands."""


class PodAffinityTerm(Model):
    """Which Pods to be near to, or far from, and what near means."""

    topology_key: Key
    """The Node label whose value says what is one place, such as kubernetes.io/hostname."""
    label_selector: LabelSelector | None = None
    """Which Pods, by label. Reservation Pods of Instances are Pods too."""
    namespace_selector: LabelSelector | None = None
    """In which namespaces, by label; empty: all of them; absent: this one."""
    namespaces: Namespaces | None = None
    """In which namespaces, by name."""
    match_label_keys: LabelKeys | None = None
    """Labels whose values must be those of this reservation Pod."""
    mismatch_label_keys: LabelKeys | None = None
    """Labels whose values must not be those of this reservation Pod."""


class WeightedPodTerm(Model):
    """A wish about Pods, and how much it weighs."""

    weight: Weight
    """1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """What is wished for."""


class PodAffinity(Model):
    """Demands and wishes about the Pods of a place."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodAffinityTerm, ...], Field(max_length=16)] | None
    ) = None
    """What must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[WeightedPodTerm, ...], Field(max_length=16)] | None
    ) = None
    """What had better hold."""


class Affinity(Model):
    """Where the Instance may, must or had better run, as a Pod says it."""

    node_affinity: NodeAffinity | None = None
    """By properties of the Node."""
    pod_affinity: PodAffinity | None = None
    """Near which Pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which Pods."""


class Toleration(Model):
    """A taint that the Instance's reservation tolerates, as a Pod says it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "a toleration without a key tolerates every taint and needs operator: Exists",
            ),
            Rule(
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
                "operator Exists takes no value; remove value or use operator: Equal",
            ),
            Rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect: NoExecute",
            ),
        )
    )

    key: Key | None = None
    """The taint's key; absent, with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal (when absent) or Exists."""
    value: Value | None = None
    """The taint's value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; absent: all of them."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated; absent: for ever."""
