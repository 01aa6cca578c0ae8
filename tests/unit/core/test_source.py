"""What a fork takes from its source, and each reason for which it has to wait."""

from typing import Any

import pytest

from controller.core.source import CIRCLE_MAX, Birth, NoSource, birth, circle, waits_for

Object = dict[str, Any]
RESOURCES = {"hypervisor": "qemu", "vcpus": 2, "memory": "1Gi", "overlay": "10Gi"}


def a_fork(name: str = "copy", of: str = "web", mode: str = "Running", **source: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}"},
        "spec": {"forkFrom": {"name": of, **source}, "operatingMode": mode},
        "status": {},
    }


def a_source(state: str = "Stopped", **status: Any) -> Object:
    placed = {"nodeName": "n1", "epoch": 1, "resources": RESOURCES, "state": state}
    return {
        "metadata": {"name": "web", "namespace": "team", "uid": "uid-web"},
        "spec": {"image": "app:1"},
        "status": placed | status,
    }


def lineage(depth: int = 1, **done: str) -> Object:
    return {"parent": "uid-b", "root": "uid-a", "depth": depth, **done}


def going(obj: Object) -> Object:
    meta = obj["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    return obj | {"metadata": meta}


def without(obj: Object, *keys: str) -> Object:
    kept = {key: value for key, value in obj["status"].items() if key not in keys}
    return obj | {"status": kept}


PLACED_FORK = a_fork("web", "other") | {"status": a_source()["status"] | {"lineage": lineage()}}


@pytest.mark.parametrize(
    ("situation", "source", "reason", "words"),
    [
        ("missing", None, "SourceNotFound", "no Instance web in namespace team"),
        ("being deleted", going(a_source()), "SourceDeleting", "web is being deleted"),
        ("fresh", without(a_source(), "nodeName", "epoch", "resources"), "SourceNotReady",
         "let it run once"),
        ("node but no hardware yet", without(a_source(), "resources"), "SourceNotReady",
         "never placed"),
        ("no status", {**a_source(), "status": None}, "SourceNotReady", "never placed"),
        ("fork without a node", a_fork("web", "other"), "SourceNotReady", "not finished"),
        ("fork that is placed, not done", PLACED_FORK, "SourceNotReady", "not finished"),
        ("fork that goes", going(PLACED_FORK), "SourceDeleting", "web is being deleted"),
    ],
)  # fmt: skip
def test_source_that_cannot_be_forked_says_why(
    situation: str, source: Object | None, reason: str, words: str
) -> None:
    found = birth(a_fork(), source)
    assert isinstance(found, NoSource), situation
    assert (found.reason, found.stalled) == (reason, False)
    assert words in found.message


@pytest.mark.parametrize(
    ("mode", "state", "saved", "from_running", "needed"),
    [
        ("Running", "Stopped", False, False, True),
        ("Running", "Standby", True, False, True),
        ("Running", "Running", False, True, True),
        ("Paused", "Standby", True, False, True),
        ("Stopped", "Stopped", False, False, False),
        ("Stopped", "Standby", True, False, False),
        ("Stopped", "Running", False, True, False),
        ("Standby", "Standby", True, False, False),
        ("Standby", "Running", False, True, False),
        ("Standby", "Paused", False, True, False),
        ("Standby", "Stopped", False, False, True),  # it boots, then sleeps
        ("Standby", "Stopped", False, True, True),
        ("Standby", "Running", False, False, True),  # its node refuses or waits
        ("Standby", "Standby", False, False, True),  # its memory was given up
    ],
)
def test_memory_is_needed_unless_it_is_only_shared(
    mode: str, state: str, saved: bool, from_running: bool, needed: bool
) -> None:
    source = a_source(state, **({"snapshot": {"bytes": 1}} if saved else {}))
    found = birth(a_fork(mode=mode, fromRunning=from_running), source)
    assert isinstance(found, Birth)
    assert found.memory is needed


def test_everything_that_must_equal_the_source_is_its_own() -> None:
    found = birth(a_fork(), a_source())
    assert isinstance(found, Birth)
    assert (found.parent, found.node, found.resources) == ("uid-web", "n1", RESOURCES)
    assert found.lineage == {"parent": "uid-web", "root": "uid-web", "depth": 1}


def test_fork_of_a_fork_keeps_the_root_and_counts() -> None:
    source = a_source(lineage=lineage(4, forkedAt="2026-01-01T00:00:00Z"))
    source["spec"] = {"forkFrom": {"name": "gone"}}
    found = birth(a_fork(), source)
    assert isinstance(found, Birth)
    assert found.lineage == {"parent": "uid-web", "root": "uid-a", "depth": 5}


def test_only_a_fork_without_a_node_waits_for_a_name() -> None:
    assert waits_for(a_fork()) == "web"
    assert waits_for(a_source()) is None
    assert waits_for(PLACED_FORK) is None
    assert waits_for(going(a_fork())) is None
    assert waits_for({"metadata": {}}) is None


def family(*pairs: tuple[str, str]) -> dict[str, Object]:
    return {name: a_fork(name, of) for name, of in pairs}


@pytest.mark.parametrize(
    ("known", "found"),
    [
        (family(("a", "b"), ("b", "a")), ("a", "b")),
        (family(("a", "b"), ("b", "c"), ("c", "a")), ("a", "b", "c")),
        (family(("a", "a")), ("a",)),
        (family(("a", "b"), ("b", "c"), ("c", "b")), ()),  # waits for a circle, is not in it
        (family(("a", "b"), ("b", "c")), ()),
        (family(("a", "b")) | {"b": a_source()}, ()),
        (family(("a", "b")) | {"b": going(a_fork("b", "a"))}, ()),
        (family(("a", "b")) | {"b": PLACED_FORK}, ()),
    ],
)
def test_circle_is_found_from_its_members_only(
    known: dict[str, Object], found: tuple[str, ...]
) -> None:
    assert circle(known["a"], known.get) == found


def test_long_row_of_forks_is_looked_through_within_bounds() -> None:
    size = 3 * CIRCLE_MAX
    known = family(*((f"f{n}", f"f{(n + 1) % size}") for n in range(size)))
    asked: list[str] = []

    def find(name: str) -> Object | None:
        asked.append(name)
        return known.get(name)

    assert circle(known["f0"], find) == ()
    assert len(asked) <= CIRCLE_MAX


@pytest.mark.parametrize("size", [1, 2, 40])
def test_circle_is_no_matter_of_waiting(size: int) -> None:
    found = birth(a_fork("f0"), a_fork("f1"), tuple(f"f{n}" for n in range(size)))
    assert isinstance(found, NoSource)
    assert (found.reason, found.stalled) == ("ForkCycle", True)
    assert found.message.startswith("f0")
    assert "delete" in found.message
    assert len(found.message) < 200
