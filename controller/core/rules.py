"""What the planner has to know that is the same for every Instance of a node."""

from dataclasses import dataclass, field

from controller.core.backoff import Backoff
from controller.core.state import Edge


@dataclass(frozen=True)
class Rules:
    """The driver's edges, the restart back-off, deadlines (seconds) and limits of one node."""

    edges: frozenset[Edge]
    backoff: Backoff = field(default_factory=Backoff)
    boot_deadline: float = 120.0  # from boot to the workload's start
    max_vcpus: int = 0  # of one Instance on this node; 0: no limit
    max_memory: int = 0  # bytes
