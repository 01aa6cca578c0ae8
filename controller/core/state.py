"""The one state graph. Two rules hold here:

1. Everything that says which state may follow which lives in this file, as tables.
2. It knows nothing of how a transition is made: no VMM, no disk, no clock.

Theory of operation
-------------------
An Instance on a node is in one of seven states, or ``Absent``: nothing of it is on this host. The
state is never stored. It is derived on every look (``Observed.state``): the run lock says whether a
VMM lives; a living VMM says what it does; without one a committed snapshot makes it Standby, else
it is Stopped. Who cannot tell says Unknown, which has no way out but to look again.

``TRANSITIONS`` is the graph of single hops. ``OUTER`` adds how an Instance comes to a host and
leaves it. A driver may offer fewer hops than the graph has (``Shutdown -> Running`` would boot a
guest again inside an old process; no driver of ours does). ``path`` finds the fewest hops; where
two ways are equally long, the one that does not pass through Standby wins.

The graph, generated from the table (``diagram``); a test fails when it is stale::

    Absent   -> Stopped, Standby
    Stopped  -> Created, Absent
    Created  -> Running, Shutdown
    Running  -> Paused, Shutdown
    Paused   -> Running, Shutdown, Standby
    Shutdown -> Running, Stopped
    Standby  -> Paused, Stopped, Absent
    Unknown  -> (look again)
"""

from collections import deque
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache


class State(Enum):
    """What is. The values are the words of ``status.state``."""

    ABSENT = "Absent"
    STOPPED = "Stopped"
    CREATED = "Created"
    RUNNING = "Running"
    PAUSED = "Paused"
    SHUTDOWN = "Shutdown"
    STANDBY = "Standby"
    UNKNOWN = "Unknown"


TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    State.STOPPED: (State.CREATED,),
    State.CREATED: (State.RUNNING, State.SHUTDOWN),
    State.RUNNING: (State.PAUSED, State.SHUTDOWN),
    State.PAUSED: (State.RUNNING, State.SHUTDOWN, State.STANDBY),
    State.SHUTDOWN: (State.RUNNING, State.STOPPED),
    State.STANDBY: (State.PAUSED, State.STOPPED),
    State.UNKNOWN: (),
}

# Absent is outside the graph of a living Instance: provision and fork lead in, release leads out.
OUTER: Mapping[State, tuple[State, ...]] = {
    State.ABSENT: (State.STOPPED, State.STANDBY),
    State.STOPPED: (State.ABSENT,),
    State.STANDBY: (State.ABSENT,),
}

# A VMM process exists in these, so its run lock is held and nothing of it may be released.
_WITH_VMM = frozenset({State.CREATED, State.RUNNING, State.PAUSED, State.SHUTDOWN})

# Where an Instance may rest for ever without a VMM.
_TERMINAL = frozenset({State.STOPPED, State.STANDBY})

Edge = tuple[State, State]


def can_transition(origin: State, target: State) -> bool:
    """Whether ``origin -> target`` is a single legal hop of the graph, Absent included."""
    return target in successors(origin)


def is_terminal(state: State) -> bool:
    """Whether an Instance may stay in ``state`` with no VMM and no memory in use."""
    return state in _TERMINAL


def requires_vmm(state: State) -> bool:
    """Whether a VMM process exists in ``state``."""
    return state in _WITH_VMM


def successors(state: State) -> tuple[State, ...]:
    """The states one legal hop away, in the order of the tables."""
    return TRANSITIONS.get(state, ()) + OUTER.get(state, ())


def all_edges() -> frozenset[Edge]:
    """Every legal hop."""
    return frozenset((origin, target) for origin in State for target in successors(origin))


@lru_cache(maxsize=1024)  # few pairs, few drivers, asked on every look
def path(origin: State, target: State, offered: frozenset[Edge]) -> tuple[State, ...] | None:
    """The fewest hops from ``origin`` to ``target`` over the ``offered`` edges of the graph.

    The result starts with ``origin`` and ends with ``target`` (``(origin,)`` when they are the
    same); None when there is no way. Among equally short ways, one without Standby between its
    ends is taken: sleeping is asked for, never a means.
    """
    without_standby = frozenset(
        edge for edge in offered if State.STANDBY not in edge or _touches_ends(edge, origin, target)
    )
    direct = _shortest(origin, target, without_standby)
    anyhow = _shortest(origin, target, offered)
    if direct is not None and anyhow is not None and len(direct) <= len(anyhow):
        return direct
    return anyhow


def diagram() -> str:
    """The graph as the text that stands in this module's docstring."""
    order = (
        State.ABSENT, State.STOPPED, State.CREATED, State.RUNNING,
        State.PAUSED, State.SHUTDOWN, State.STANDBY, State.UNKNOWN,
    )  # fmt: skip
    lines = []
    for state in order:
        following = ", ".join(s.value for s in successors(state)) or "(look again)"
        lines.append(f"    {state.value:<8} -> {following}")
    return "\n".join(lines)


def _touches_ends(edge: Edge, origin: State, target: State) -> bool:
    return (edge[0] is State.STANDBY and origin is State.STANDBY) or (
        edge[1] is State.STANDBY and target is State.STANDBY
    )


def _shortest(origin: State, target: State, offered: frozenset[Edge]) -> tuple[State, ...] | None:
    queue: deque[tuple[State, ...]] = deque([(origin,)])
    seen = {origin}
    while queue:
        way = queue.popleft()
        if way[-1] is target:
            return way
        for following in successors(way[-1]):
            if following not in seen and (way[-1], following) in offered:
                seen.add(following)
                queue.append((*way, following))
    return None
