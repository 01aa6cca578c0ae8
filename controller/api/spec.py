"""``Instance.spec``: what a user says about one microVM.

Fields that nothing acts on yet are not here: an object that names one is refused, so nothing is
accepted and ignored. Hardware has no schema defaults: what is in force stands in
``status.resources``. Bounds are there so that no object can cost the API server or a node much.
What does not live here: placement in a Pod's words (``placement``), and ``status``.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from controller.api.meta import (
    DnsLabel,
    DnsSubdomain,
    Int32,
    Model,
    Quantity,
    Rule,
    listed_by,
    rules,
)
from controller.api.placement import Affinity, LabelValue, Toleration

OperatingMode = Literal["Running", "Paused", "Standby", "Stopped"]
RestartPolicy = Literal["Never", "OnFailure", "Always"]
Hypervisor = Literal["qemu"]

WORKLOAD_BYTES: Final = 128 * 1024  # env in all; command and args together

_BORN = "a guest keeps what it was born with; create a new Instance"
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_HOST = rf"({_LABEL}(\\.{_LABEL})*|\\[[0-9a-f:]+\\])"
_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_PATH = r"[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = (
    f"^({_HOST}(:{_PORT})?/)?{_PATH}(/{_PATH})*"
    r"(:[a-zA-Z0-9_][-a-zA-Z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
_TRANSPORT = "^(file|dir|oci|oci-archive|docker-archive|docker-daemon|containers-storage|sif):"
_NO_NUL = Rule("!self.contains('\\u0000')", "a NUL byte cannot be part of it; remove it")


def _fixed(field: str) -> Rule:
    """The optional ``field`` of the spec never changes, is not added and not removed."""
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field})"
        f" && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"{field} is immutable: {_BORN} to change it",
        path=f".{field}",
    )


def _kept(field: str) -> Rule:
    """The optional ``field`` is not added and not removed; rules inside say the rest."""
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field})",
        f"{field} is immutable, so it can be neither added nor removed: {_BORN} to change it",
        path=f".{field}",
    )


def _inherited(field: str) -> Rule:
    """A fork does not say the optional ``field``: it is as its source's."""
    return Rule(
        f"!has(self.forkFrom) || !has(self.{field})",
        f"a fork takes {field} from its source: remove it; status.resources shows what is in force",
        path=f".{field}",
    )


def _size(field: str, least: str, most: str) -> dict[str, Any]:
    """Rules of a quantity of bytes: whole MiB, bounded, the same for ever."""
    number = "quantity(string(self))"
    return rules(
        Rule(
            f"isQuantity(string(self)) && {number}.isInteger()"
            f" && {number}.asInteger() % 1048576 == 0"
            f" && {number}.compareTo(quantity('{least}')) >= 0"
            f" && {number}.compareTo(quantity('{most}')) <= 0",
            f"{field} must be a whole multiple of 1Mi from {least} to {most},"
            " for example 1536Mi or 2Gi, without fractions",
        ),
        Rule(
            f"!isQuantity(string(self)) || {number}.compareTo(quantity(string(oldSelf))) == 0",
            f"{field} is immutable: {_BORN} to change it",
        ),
    )


class Memory(Model):
    """The guest's memory."""

    size: Annotated[
        Quantity, Field(json_schema_extra=_size("memory.size", least="64Mi", most="4Ti"))
    ]
    """How much memory the guest has: a whole multiple of 1Mi, at least 64Mi, for example 1Gi."""


class Overlay(Model):
    """The guest's writable disk. What the workload writes to its root filesystem lands here."""

    size: Annotated[
        Quantity, Field(json_schema_extra=_size("overlay.size", least="64Mi", most="16Ti"))
    ]
    """How large it may grow: a whole multiple of 1Mi, at least 64Mi. It takes space as it fills."""


class Disk(Model):
    """What the guest's disks may take from the node."""

    bandwidth: Annotated[
        Quantity,
        Field(
            json_schema_extra=rules(
                Rule(
                    "isQuantity(string(self)) && quantity(string(self)).isInteger()"
                    " && (quantity(string(self)).asInteger() == 0"
                    " || (quantity(string(self)).compareTo(quantity('64Ki')) >= 0"
                    " && quantity(string(self)).compareTo(quantity('1Ti')) <= 0))",
                    "disk.bandwidth is in bytes per second: 0 (automatic) or from 64Ki to 1Ti,"
                    " for example 100Mi",
                ),
                Rule(
                    "!isQuantity(string(self)) || "
                    "quantity(string(self)).compareTo(quantity(string(oldSelf))) == 0",
                    f"disk.bandwidth is immutable: {_BORN} to change it",
                ),
            )
        ),
    ]
    """Reads and writes together, in bytes per second, for example 100Mi. 0: automatic."""


class ForkFrom(Model):
    """The Instance whose disk, and memory where it has one, a new one starts with."""

    name: DnsLabel
    """Its name, in the same namespace. What it is when the fork is placed counts: Stopped gives its
    disk, Standby its disk and memory."""
    from_running: bool = False
    """Whether it may be forked while it is Running or Paused: it stands still for the time of a
    copy of its memory, then goes on. Otherwise the fork waits until it is Standby or Stopped."""


class EnvVar(Model):
    """One environment variable of the workload."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            json_schema_extra=rules(
                Rule(
                    "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
                    "an env name consists of letters, digits and _ and does not start with a digit",
                ),
                Rule(
                    "!self.startsWith('TORPOR_')",
                    "env names that start with TORPOR_ are reserved; choose another name",
                ),
            ),
        ),
    ]
    """Letters, digits and _, not starting with a digit."""
    value: Annotated[str, Field(max_length=32768, json_schema_extra=rules(_NO_NUL))]
    """The literal value; nothing in it is expanded. Everybody who may read the Instance reads it:
    no place for a secret."""


Word = Annotated[str, Field(max_length=32768, json_schema_extra=rules(_NO_NUL))]
Words = Annotated[
    tuple[Word, ...],
    Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]


class InstanceSpec(Model):
    """What should be."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *map(_fixed, ("hypervisor", "vcpus", "nodeName", "priorityClassName")),
            *map(_fixed, ("nodeSelector", "affinity", "tolerations", "forkFrom")),
            *map(_kept, ("memory", "overlay", "disk")),
            Rule(
                "has(self.image) != has(self.forkFrom)",
                "give exactly one of image and forkFrom: image makes a new guest, forkFrom one that"
                " goes on from another Instance's disk and memory; neither can replace the other"
                " later: create a new Instance",
            ),
            *map(_inherited, ("hypervisor", "vcpus", "memory", "overlay", "disk")),
            Rule(
                "!has(self.forkFrom) || !has(self.nodeName)",
                "a fork lives on its source's node: remove nodeName",
                path=".nodeName",
            ),
            Rule(
                "!has(self.env)"
                " || self.env.map(e, bytes(e.name).size() + bytes(e.value).size()).sum()"
                f" <= {WORKLOAD_BYTES}",
                "env may have 128 KiB in all; put larger data into the image",
                path=".env",
            ),
            Rule(
                "(has(self.command) ? self.command.map(a, bytes(a).size()).sum() : 0)"
                " + (has(self.args) ? self.args.map(a, bytes(a).size()).sum() : 0)"
                f" <= {WORKLOAD_BYTES}",
                "command and args may have 128 KiB together; put larger data into the image",
            ),
            Rule(
                "!has(self.command) || size(self.command) == 0 || size(self.command[0]) > 0",
                "command[0] is the program to run and must not be empty;"
                " leave command out to run the image's entrypoint",
                path=".command",
            ),
        )
    )

    image: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=512,
                json_schema_extra=rules(
                    Rule(
                        f"self.matches('{_IMAGE}')",
                        "image is not a valid OCI reference; write it as registry:5000/team/app:1"
                        " or app@sha256:<64 hex digits>, without scheme, user name or spaces",
                    ),
                    Rule(
                        f"!self.matches('{_TRANSPORT}')",
                        "image must come from a registry, not from a file, an archive or a daemon;"
                        " push it and write registry:5000/team/app:1",
                    ),
                    Rule("self == oldSelf", f"image is immutable: {_BORN} to change it"),
                ),
            ),
        ]
        | None
    ) = None
    """OCI image that the guest's root filesystem is made of, for example registry:5000/app:1. A tag
    is resolved once; the digest then stands in status.image. Exactly one of image and forkFrom."""
    fork_from: ForkFrom | None = None
    """The Instance that this one starts as a copy of, instead of an image. Its image, hypervisor,
    vcpus, memory, overlay, disk and node are taken over. Immutable."""
    operating_mode: OperatingMode = "Running"
    """What the Instance should be doing. Running: the workload runs. Paused: it stands still, in
    memory. Standby: it sleeps, its memory is kept on disk and takes no room on the Node. Stopped:
    it is shut down, its disk is kept. May be changed at any time."""
    restart_policy: RestartPolicy = "Never"
    """Whether the guest boots again after its workload ended by itself: Never, OnFailure (exit code
    other than 0, or the VMM died) or Always. May be changed at any time."""
    stop_timeout_seconds: Annotated[Int32, Field(ge=0, le=3600)] = 5
    """How long the workload may take to end when the Instance is stopped, before it is killed. May
    be changed at any time."""

    command: Words | None = None
    """Program to run, with its first arguments, instead of the image's entrypoint. Absent or empty:
    the image's. A change acts at the next boot."""
    args: Words | None = None
    """Arguments, instead of the image's cmd. Absent or empty: the image's, unless command is given.
    A change acts at the next boot."""
    env: (
        Annotated[tuple[EnvVar, ...], Field(max_length=256, json_schema_extra=listed_by("name"))]
        | None
    ) = None
    """Environment variables, added to the image's. A change acts at the next boot."""

    hypervisor: Hypervisor | None = None
    """Which VMM runs the guest. Absent: the cluster's setting. Immutable."""
    vcpus: Annotated[Int32, Field(ge=1, le=64)] | None = None
    """How many virtual CPUs the guest has. Absent: the cluster's setting, usually 2. Immutable."""
    memory: Memory | None = None
    """The guest's memory. Absent: the cluster's setting, usually 1Gi. Immutable."""
    overlay: Overlay | None = None
    """The guest's writable disk. Absent: the cluster's setting, usually 10Gi. Immutable."""
    disk: Disk | None = None
    """What the guest's disks may take from the node. Absent: automatic. Immutable."""

    node_name: DnsSubdomain | None = None
    """The Node to run on; its room and taints are respected. Absent: the scheduler chooses.
    Immutable."""
    node_selector: (
        Annotated[
            dict[str, LabelValue],
            Field(
                max_length=32,
                json_schema_extra=rules(
                    Rule(
                        "self.all(key, size(key) >= 1 && size(key) <= 317)",
                        "a nodeSelector key is a label name of 1 to 317 characters",
                    ),
                    **{"x-kubernetes-map-type": "atomic"},
                ),
            ),
        ]
        | None
    ) = None
    """Labels that the Node must have. Immutable."""
    affinity: Affinity | None = None
    """Where the Instance may, must or had better run, as for a Pod. Immutable."""
    tolerations: (
        Annotated[
            tuple[Toleration, ...],
            Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
        ]
        | None
    ) = None
    """Taints that the Instance tolerates, as for a Pod. Immutable."""
    priority_class_name: DnsSubdomain | None = None
    """PriorityClass of the reservation: who yields when there is no room. Immutable."""

    @model_validator(mode="after")
    def _one_origin(self) -> "InstanceSpec":
        if (self.image is None) == (self.fork_from is None):
            raise ValueError("exactly one of image and forkFrom is needed")
        return self
