"""``Instance``: the whole object, the rules between its parts, and how it shows itself.

What does not live here: the fields (``spec``, ``status``).
"""

from typing import Final

from pydantic import Field

from controller.api.kind import Column, Kind
from controller.api.meta import Model, Rule
from controller.api.spec import InstanceSpec
from controller.api.status import InstanceStatus


class Metadata(Model):
    """The part of ObjectMeta that we read."""

    namespace: str = ""
    name: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Instance(Model):
    """A microVM: an OCI image, or a fork of another Instance, that runs as a guest of its own; is
    paused, put to sleep, stopped and started by spec.operatingMode; keeps its disk until it is
    deleted."""

    metadata: Metadata
    spec: InstanceSpec
    status: InstanceStatus = InstanceStatus()


_RULES: Final = (
    Rule(
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"
        " && size(self.metadata.name) <= 63",
        "metadata.name must be a DNS label: at most 63 lower-case letters, digits and -,"
        " starting and ending with a letter or digit",
        path=".metadata",
    ),
    Rule(
        "!has(self.spec.forkFrom) || self.spec.forkFrom.name != self.metadata.name",
        "forkFrom.name is this Instance's own name; name the Instance to fork from",
        path=".spec.forkFrom.name",
    ),
    # A removed status comes back as its default, without what these four rules protect: so whoever
    # removes a status that was written is refused by them.
    Rule(
        "!has(oldSelf.status) || !has(oldSelf.status.id) || (has(self.status)"
        " && has(self.status.id) && self.status.id == oldSelf.status.id)",
        "status.id never changes",
        path=".status.id",
    ),
    Rule(
        "!has(oldSelf.status) || !has(oldSelf.status.epoch) || (has(self.status)"
        " && has(self.status.epoch) && self.status.epoch >= oldSelf.status.epoch)",
        "status.epoch never decreases and never disappears",
        path=".status.epoch",
    ),
    Rule(
        "!has(oldSelf.status) || !has(oldSelf.status.lineage) || (has(self.status)"
        " && has(self.status.lineage)"
        " && self.status.lineage.parent == oldSelf.status.lineage.parent"
        " && self.status.lineage.root == oldSelf.status.lineage.root"
        " && self.status.lineage.depth == oldSelf.status.lineage.depth)",
        "status.lineage: parent, root and depth never change and never disappear",
        path=".status.lineage",
    ),
    Rule(
        "(has(self.status) && has(self.status.nodeName) ? self.status.nodeName : '') =="
        " (has(oldSelf.status) && has(oldSelf.status.nodeName) ? oldSelf.status.nodeName : '')"
        " || (has(self.status) && has(self.status.epoch) ? self.status.epoch : 0) >"
        " (has(oldSelf.status) && has(oldSelf.status.epoch) ? oldSelf.status.epoch : 0)",
        "status.nodeName changes only together with a higher status.epoch",
        path=".status.nodeName",
    ),
)

_READY: Final = '.status.conditions[?(@.type=="Ready")]'

INSTANCE: Final = Kind(
    model=Instance,
    kind="Instance",
    plural="instances",
    short_names=("inst",),
    columns=(
        Column("Mode", ".spec.operatingMode", description="what is asked"),
        Column("State", ".status.state", description="what is"),
        Column("Ready", f"{_READY}.status", description="what is matches what is asked"),
        Column("Node", ".status.nodeName", description="where it is"),
        Column("Age", ".metadata.creationTimestamp", type="date"),
        Column("Reason", f"{_READY}.reason", wide=True, description="why it is ready or not"),
        Column("Image", ".spec.image", wide=True, description="what it runs"),
        Column("VMM", ".status.hypervisor.type", wide=True, description="what runs it"),
        Column("Fork-of", ".spec.forkFrom.name", wide=True, description="what it was forked from"),
        Column("Snapshot", ".status.snapshot.size", wide=True, description="memory on disk"),
    ),
    selectable=(".status.nodeName", ".status.state", ".spec.operatingMode"),
    status_default={
        "observedGeneration": 0,
        "conditions": [
            {
                "type": "Ready",
                "status": "Unknown",
                "reason": "Pending",
                "message": "Waiting for the operator",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
                "observedGeneration": 0,
            }
        ],
    },
    rules=_RULES,
)
