"""The state graph: its table, its text, its shortest ways."""

from itertools import combinations, pairwise, product

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from controller.core import state as module
from controller.core.state import (
    TRANSITIONS,
    Edge,
    State,
    all_edges,
    can_transition,
    diagram,
    is_terminal,
    path,
    requires_vmm,
    successors,
)
from controller.vmm.driver import BOOT_EDGES

ORIGINAL = {
    "Created": {"Running", "Shutdown"},
    "Running": {"Paused", "Shutdown"},
    "Paused": {"Running", "Shutdown", "Standby"},
    "Shutdown": {"Running", "Stopped"},
    "Stopped": {"Created"},
    "Standby": {"Paused", "Stopped"},
    "Unknown": set(),
}
ALL = all_edges()
WITHOUT_REBOOT = ALL - {(State.SHUTDOWN, State.RUNNING)}
OFFERS = {"all": ALL, "no reboot in place": WITHOUT_REBOOT, "boot only": BOOT_EDGES}


def test_table_is_the_originals() -> None:
    table = {
        origin.value: {s.value for s in following} for origin, following in TRANSITIONS.items()
    }
    assert table == ORIGINAL


def test_diagram_in_the_docstring_is_the_tables() -> None:
    assert module.__doc__ is not None
    assert diagram() in module.__doc__


def test_absent_is_entered_and_left_only_at_rest() -> None:
    assert set(successors(State.ABSENT)) == {State.STOPPED, State.STANDBY}
    leads_out = {origin for origin in State if can_transition(origin, State.ABSENT)}
    assert leads_out == {State.STOPPED, State.STANDBY}


@pytest.mark.parametrize("state", State)
def test_unknown_has_no_way_in_or_out(state: State) -> None:
    assert not can_transition(state, State.UNKNOWN)
    assert not can_transition(State.UNKNOWN, state)


@pytest.mark.parametrize(("origin", "target"), list(product(State, State)))
def test_hop_is_legal_exactly_when_the_table_has_it(origin: State, target: State) -> None:
    assert can_transition(origin, target) == ((origin, target) in ALL)


@pytest.mark.parametrize(
    ("state", "terminal", "vmm"),
    [
        (State.ABSENT, False, False),
        (State.STOPPED, True, False),
        (State.CREATED, False, True),
        (State.RUNNING, False, True),
        (State.PAUSED, False, True),
        (State.SHUTDOWN, False, True),
        (State.STANDBY, True, False),
        (State.UNKNOWN, False, False),
    ],
)
def test_state_rests_or_needs_a_vmm(state: State, terminal: bool, vmm: bool) -> None:
    assert (is_terminal(state), requires_vmm(state)) == (terminal, vmm)


def ways(origin: State, target: State, offered: frozenset[Edge]) -> list[tuple[State, ...]]:
    """Every way without a state twice: the brute force."""
    found: list[tuple[State, ...]] = []
    open_ways: list[tuple[State, ...]] = [(origin,)]
    while open_ways:
        way = open_ways.pop()
        if way[-1] is target:
            found.append(way)
            continue
        open_ways += [(*way, b) for a, b in offered if a is way[-1] and b not in way]
    return found


def agrees_with_brute_force(origin: State, target: State, offered: frozenset[Edge]) -> None:
    way, every = path(origin, target, offered), ways(origin, target, offered)
    if way is None:
        assert every == []
        return
    fewest = min(map(len, every))
    assert way in every
    assert len(way) == fewest
    shortest = [other for other in every if len(other) == fewest]
    if any(State.STANDBY not in other[1:-1] for other in shortest):
        assert State.STANDBY not in way[1:-1]


@pytest.mark.parametrize(("origin", "target"), list(product(State, State)))
@pytest.mark.parametrize("offer", OFFERS)
def test_way_is_minimal_for_every_pair(origin: State, target: State, offer: str) -> None:
    agrees_with_brute_force(origin, target, OFFERS[offer])


@given(st.frozensets(st.sampled_from(sorted(ALL, key=str))), *[st.sampled_from(State)] * 2)
@settings(max_examples=150, deadline=None, database=None)
def test_way_is_minimal_over_any_edges(offered: frozenset[Edge], origin: State, to: State) -> None:
    agrees_with_brute_force(origin, to, offered)


def test_edges_outside_the_graph_are_never_taken() -> None:
    everything = frozenset(product(State, State))
    for origin, target in combinations(State, 2):
        way = path(origin, target, everything) or ()
        assert all(can_transition(a, b) for a, b in pairwise(way))


@pytest.mark.parametrize(
    ("origin", "target", "way"),
    [
        ("Stopped", "Running", "Stopped Created Running"),
        ("Stopped", "Paused", "Stopped Created Running Paused"),
        ("Running", "Stopped", "Running Shutdown Stopped"),
        ("Paused", "Stopped", "Paused Shutdown Stopped"),
        ("Running", "Standby", "Running Paused Standby"),
        ("Standby", "Running", "Standby Paused Running"),
        ("Shutdown", "Running", "Shutdown Stopped Created Running"),
        ("Created", "Stopped", "Created Shutdown Stopped"),
    ],
)
def test_way_is_the_one_that_people_expect(origin: str, target: str, way: str) -> None:
    found = path(State(origin), State(target), WITHOUT_REBOOT)
    assert found == tuple(map(State, way.split()))


def test_state_that_is_there_is_reached_without_a_hop() -> None:
    assert path(State.RUNNING, State.RUNNING, frozenset()) == (State.RUNNING,)


def test_no_way_is_none() -> None:
    assert path(State.RUNNING, State.STANDBY, BOOT_EDGES) is None
    assert path(State.UNKNOWN, State.STOPPED, ALL) is None
