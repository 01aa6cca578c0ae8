"""``Instance.status``: what Torpor says about one microVM. Nobody else writes it.

Which of the two processes writes which field is not said here (``core.ownership``); that an agent
writes only its own is enforced by the admission policies.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from controller.api.meta import (
    Condition,
    Digest,
    DnsSubdomain,
    Int32,
    Model,
    Quantity,
    Rule,
    Timestamp,
    listed_by,
    rules,
)
from controller.api.reasons import TYPES

StateName = Literal["Stopped", "Created", "Running", "Paused", "Shutdown", "Standby", "Unknown"]


class PlanStatus(Model):
    """What is about to be done; absent when nothing is."""

    origin: Annotated[
        str, Field(max_length=32, alias="from", serialization_alias="from", validation_alias="from")
    ]
    """The state it starts from."""
    to: Annotated[str, Field(max_length=32)]
    """The state it leads to."""
    steps: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]
    """The steps still to be done, in order."""
    because: Annotated[str, Field(max_length=1024)]
    """Why, in one sentence."""


class ExitStatus(Model):
    """How the workload's last run ended by itself."""

    code: Int32 | None = None
    """Its exit code; absent when there is none, because the VMM died or the kernel panicked."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """For example: exited 3; killed by signal 9; out of memory."""


class HypervisorStatus(Model):
    """The VMM that runs the guest; absent when none does."""

    type: Annotated[str, Field(max_length=32)]
    """Which kind of VMM."""
    version: Annotated[str, Field(max_length=64)] | None = None
    """Its version."""
    pid: int | None = None
    """Its process id on the Node."""
    accelerator: Annotated[str, Field(max_length=32)] | None = None
    """kvm, or tcg where the Node's KVM does not work: much slower."""


class ImageStatus(Model):
    """The image in use."""

    digest: Digest
    """What spec.image meant when it was first resolved; every boot takes this."""


class KernelStatus(Model):
    """The guest's kernel, as of its last boot."""

    version: Annotated[str, Field(max_length=128)]
    """Its version."""
    digest: Digest | None = None
    """Digest of its file."""


class ResourcesStatus(Model):
    """The hardware in force: what spec says, and the cluster's settings where it is silent."""

    hypervisor: Annotated[str, Field(max_length=32)]
    """Which VMM runs the guest."""
    vcpus: Annotated[Int32, Field(ge=1)]
    """Virtual CPUs."""
    memory: Quantity
    """Memory of the guest."""
    overlay: Quantity
    """Size of the writable disk."""
    disk_bandwidth: Quantity | None = None
    """Disk limit in bytes per second; absent or 0: none."""


class SnapshotStatus(Model):
    """The memory on disk that the Instance wakes from; absent when there is none."""

    taken_at: Timestamp
    """When the guest was stopped for it."""
    size: Annotated[str, Field(max_length=32)]
    """What it takes on the Node's disk, for people: 3.9Mi."""
    bytes: Annotated[int, Field(ge=0)]
    """What it takes on the Node's disk, shared parts included."""
    base_bytes: Annotated[int, Field(ge=0)]
    """Of these, the memory image, which forks share."""
    delta_bytes: Annotated[int, Field(ge=0)]
    """Of these, what differs from the memory image."""
    hypervisor: Annotated[str, Field(max_length=96)]
    """The VMM that took it and must load it, with its version."""


class LineageStatus(Model):
    """Where a fork comes from; absent for an Instance that was made of an image."""

    parent: Annotated[str, Field(min_length=1, max_length=64)]
    """UID of the Instance that it was forked from."""
    root: Annotated[str, Field(min_length=1, max_length=64)]
    """UID of the Instance that the family began with."""
    depth: Annotated[Int32, Field(ge=1)]
    """How many forks it is away from the root."""
    forked_at: Timestamp | None = None
    """When it had its own copy of everything; from then on its source may go."""


class InstanceStatus(Model):
    """What is. Written by Torpor only."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.nodeName) || has(self.epoch)",
                "status.nodeName needs a status.epoch: a placement is counted",
            ),
        )
    )

    id: Annotated[str, Field(max_length=32, pattern="^[a-z][a-z0-9]{1,31}$")] | None = None
    """A short identifier that no other Instance has; commands take it, or its beginning."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this status speaks of."""
    state: StateName | None = None
    """What the Instance is doing. Unknown: stateError says why nobody can tell."""
    state_error: Annotated[str, Field(max_length=1024)] | None = None
    """Why the state is Unknown."""
    node_name: DnsSubdomain | None = None
    """The Node that has its disk and runs it."""
    epoch: Annotated[int, Field(ge=1)] | None = None
    """How many times it was placed. Goes up whenever it may run somewhere new."""
    conditions: (
        Annotated[
            tuple[Condition, ...],
            Field(
                max_length=16,
                description=". ".join(f"{word}: {means}" for word, means in TYPES.items()) + ".",
                json_schema_extra=listed_by("type"),
            ),
        ]
        | None
    ) = None
    plan: PlanStatus | None = None
    """What is about to be done; absent when nothing is."""
    started_at: Timestamp | None = None
    """When the workload last started."""
    stopped_at: Timestamp | None = None
    """When the guest last came to its end."""
    exit: ExitStatus | None = None
    """How the workload's last run ended by itself; absent after a stop that was asked for."""
    hypervisor: HypervisorStatus | None = None
    """The VMM that runs the guest; absent when none does."""
    image: ImageStatus | None = None
    """The image in use."""
    kernel: KernelStatus | None = None
    """The guest's kernel, as of its last boot."""
    resources: ResourcesStatus | None = None
    """The hardware in force."""
    snapshot: SnapshotStatus | None = None
    """The memory on disk that it wakes from; absent when there is none."""
    lineage: LineageStatus | None = None
    """Where a fork comes from."""
    reservation: Annotated[str, Field(max_length=64)] | None = None
    """UID of the Pod that holds its CPU and memory on the Node."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of type ``kind``, or None."""
        return next((c for c in self.conditions or () if c.type == kind), None)
