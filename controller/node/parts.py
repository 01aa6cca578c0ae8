"""What the agent is made of, in one value that is handed down: adapters, settings, memory.

Wired once in ``app``. ``Memory`` is what the agent may forget at any time (a crash does): nothing
in it is truth, all of it can be looked up again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.core.backoff import Backoff
from controller.core.desired import Mode
from controller.core.rules import Rules
from controller.guest.artifacts import GuestArtifacts
from controller.guest.kernel import KernelStore
from controller.images.store import ImageStore
from controller.kube.client import Client
from controller.kube.events import EventRecorder
from controller.memory.store import MemoryStore
from controller.node.guests import Guests
from controller.node.places import Places
from controller.node.record import Record, Records
from controller.settings import NodeSettings
from controller.vmm.driver import Driver, Version


@dataclass
class Memory:
    """What this process knows by itself. All of it may be lost."""

    adopted: set[str] = field(default_factory=set)  # UIDs whose VMM the driver is connected to
    fetching: set[str] = field(default_factory=set)  # UIDs whose image was asked for
    ended: dict[str, float] = field(default_factory=dict)  # UID -> when its guest was seen ended
    draining: bool = False  # every guest is to be stopped, specs untouched
    # one at a time works on an Instance: its own pass, or a fork that is made from it
    alone: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    # by source: the forks that are being made of it, and when each came (boot time)
    forks: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    litter: asyncio.Event = field(default_factory=asyncio.Event)  # the memory store may have some


@dataclass
class Parts:
    """The agent's adapters."""

    settings: NodeSettings
    places: Places
    records: Records
    drivers: Mapping[str, Driver]
    versions: Mapping[str, Version]
    images: ImageStore
    guests: Guests
    client: Client
    events: EventRecorder
    keeper: Path  # the log keeper's binary
    accelerator: str  # "kvm" when proven by a boot, else "tcg"
    threads_per_core: int
    cluster: str  # UID of the cluster's kube-system namespace
    kernels: KernelStore
    snapshots: MemoryStore
    artifacts: GuestArtifacts | None = None  # the kernel a boot takes; None: not here yet
    no_artifacts: str = "the node is still preparing it"
    memory: Memory = field(default_factory=Memory)
    asked: Callable[[str], Mode | None] = lambda _uid: None  # what the object of a UID asks for

    def driver(self, hypervisor: str) -> Driver:
        """The driver for that word of the spec. Raises KeyError (the worker checks first)."""
        return self.drivers[hypervisor]

    def rules(self, hypervisor: str) -> Rules:
        """What the planner has to know about that driver on this node."""
        settings = self.settings
        driver = self.drivers.get(hypervisor)
        return Rules(
            edges=driver.capabilities.edges if driver else frozenset(),
            backoff=Backoff(
                settings.restart_backoff_seconds,
                settings.restart_backoff_cap_seconds,
                settings.restart_reset_seconds,
            ),
            boot_deadline=settings.boot_deadline_seconds,
            max_vcpus=settings.max_vcpus,
            max_memory=settings.max_memory_bytes,
        )

    def vmm_uid(self, record: Record) -> int:
        """The unprivileged uid (and gid) that this Instance's VMM runs as."""
        return self.settings.uid_base + record.index
