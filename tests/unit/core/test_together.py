"""Operator and node agent on one object: they agree, write little and never fight."""

import contextlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from controller.core.ownership import condition, is_true, needs_memory
from controller.core.placement import NodeState
from controller.node.worker import PROGRESS_AFTER
from tests import faults
from tests.clusterworld import Cluster, Conflict, an_instance
from tests.world import World, breathe


def settled(**spec: Any) -> Cluster:
    cluster = Cluster(an_instance(**spec))
    cluster.quiet()
    return cluster


def check(cluster: Cluster) -> None:
    """At rest the object says what is, one Pod is there if memory is needed, else none."""
    if cluster.obj is None:
        assert cluster.pods == []
        assert (cluster.host.record, cluster.host.vmm) == (None, None)
        assert not cluster.host.overlay
        assert cluster.host.run_dirs == frozenset()
        return
    obj = cluster.view()
    asked, status = obj["spec"]["operatingMode"], obj["status"]
    if needs_memory(obj):
        assert [pod["metadata"]["uid"] for pod in cluster.pods] == [status["reservation"]]
        assert is_true(obj, "Scheduled")
    else:
        assert cluster.pods == []
        assert not is_true(obj, "Scheduled")
    if is_true(obj, "Exited"):
        assert cluster.ready() in {("False", "Completed"), ("False", "Failed")}
        assert status["state"] == "Stopped"
        assert "exit" in status
    else:
        assert cluster.ready() == ("True", asked)
        assert status["state"] == asked
    assert not is_true(obj, "Reconciling")
    assert not is_true(obj, "Stalled")
    assert "plan" not in status


def test_creation_takes_three_writes() -> None:
    cluster = Cluster(an_instance())
    assert cluster.quiet() == 3
    assert [who for who, _ in cluster.writes] == ["operator", "operator", "agent"]
    check(cluster)


def test_creation_as_stopped_takes_two_writes_and_no_pod() -> None:
    cluster = Cluster(an_instance(operatingMode="Stopped"))
    assert cluster.quiet() == 2
    assert cluster.made == 0
    assert "nodeName" not in cluster.view()["status"]
    check(cluster)


@pytest.mark.parametrize(
    ("origin", "target", "writes"),
    [
        ("Running", "Paused", 1),
        ("Paused", "Running", 1),
        ("Running", "Stopped", 1),
        ("Paused", "Stopped", 1),
        ("Stopped", "Running", 2),
        ("Stopped", "Paused", 2),
        ("Running", "Standby", 1),
        ("Paused", "Standby", 1),
        ("Stopped", "Standby", 2),
        ("Standby", "Running", 2),
        ("Standby", "Paused", 2),
        ("Standby", "Stopped", 1),
    ],
)
def test_transition_takes_few_writes(origin: str, target: str, writes: int) -> None:
    cluster = settled()
    cluster.user({"operatingMode": origin})
    cluster.quiet()
    cluster.user({"operatingMode": target})
    assert cluster.quiet() == writes
    check(cluster)


@pytest.mark.parametrize("mode", ["Running", "Paused", "Standby", "Stopped"])
def test_idle_instance_is_never_written(mode: str) -> None:
    cluster = settled()
    cluster.user({"operatingMode": mode})
    cluster.quiet()
    for _ in range(5):
        assert cluster.quiet() == 0


@pytest.mark.parametrize("mode", ["Running", "Paused", "Standby", "Stopped"])
def test_deletion_leaves_nothing(mode: str) -> None:
    cluster = settled()
    cluster.user({"operatingMode": mode})
    cluster.quiet()
    cluster.delete()
    assert cluster.quiet() == 1  # the finalizer
    assert cluster.obj is None
    check(cluster)


def test_deletion_before_it_was_placed_is_the_operators() -> None:
    cluster = Cluster(an_instance(), fits=False)
    cluster.quiet()
    cluster.delete()
    cluster.quiet()
    assert cluster.obj is None
    check(cluster)


def test_deletion_without_its_node_is_the_operators() -> None:
    cluster = settled()
    cluster.node = NodeState.GONE
    cluster.delete()
    cluster.operator()
    assert cluster.obj is None


def test_eviction_is_two_transitions_of_two_writes() -> None:
    cluster = settled()
    cluster.evict()
    assert cluster.quiet() == 4
    check(cluster)
    assert cluster.view()["status"]["reservation"] == "pod-2"


def test_evicted_instance_waits_for_room_in_the_schedulers_words() -> None:
    cluster = settled()
    cluster.fits = False
    cluster.evict()
    assert cluster.quiet() <= 4
    assert cluster.ready() == ("False", "WaitingForNode")
    assert condition(cluster.view(), "Scheduled")["message"] == "0/1 nodes fit"
    assert cluster.host.vmm is None
    cluster.fits = True
    assert cluster.quiet() == 2
    check(cluster)


@pytest.mark.parametrize("how", [Cluster.lose, Cluster.force, Cluster.finish])
def test_lost_reservation_leaves_the_guest_alone(how: Callable[[Cluster], None]) -> None:
    cluster = settled()
    run = cluster.host.record
    how(cluster)
    assert cluster.quiet() == 2
    assert cluster.host.record == run
    check(cluster)


def test_exit_that_policy_leaves_so_is_one_write() -> None:
    cluster = settled()
    cluster.host = faults.workload_exits(cluster.host)
    assert cluster.quiet() == 1
    assert cluster.ready() == ("False", "Failed")
    assert cluster.view()["status"]["exit"]["code"] == 3
    check(cluster)
    cluster.user({"operatingMode": "Stopped"})
    assert cluster.quiet() == 1
    check(cluster)
    cluster.user({"operatingMode": "Running"})
    assert cluster.quiet() == 2
    check(cluster)


def test_restart_after_a_failure_is_two_writes() -> None:
    cluster = settled(restartPolicy="OnFailure")
    cluster.host = faults.vmm_dies(cluster.host)
    assert cluster.quiet() == 2  # the back-off, and that it runs
    check(cluster)


def test_namespace_that_goes_stops_the_guest_and_makes_nothing_new() -> None:
    cluster = settled()
    cluster.terminating = True
    cluster.evict()
    cluster.lose()
    cluster.quiet()
    assert cluster.host.vmm is None
    assert cluster.made == 1
    cluster.delete()
    cluster.quiet()
    check(cluster)


def test_silent_node_is_said_once_and_taken_back() -> None:
    cluster = settled()
    cluster.silence()
    cluster.operator()
    cluster.operator()
    assert cluster.writes[-1][0] == "operator"
    assert condition(cluster.view(), "Ready")["reason"] == "NodeUnreachable"
    cluster.silence(NodeState.ALIVE)
    assert cluster.quiet() == 1
    check(cluster)


def test_agent_that_lost_only_its_lease_is_contradicted_once() -> None:
    cluster = settled()
    cluster.silence()
    assert cluster.quiet() == 2
    assert cluster.ready() == ("True", "Running")
    assert cluster.quiet() == 0


def test_silent_node_of_a_waiting_instance_is_taken_back() -> None:
    cluster = settled(operatingMode="Running")
    cluster.fits = False
    cluster.evict()
    cluster.quiet()
    cluster.silence()
    cluster.operator()
    assert condition(cluster.view(), "Ready")["reason"] == "NodeUnreachable"
    cluster.silence(NodeState.ALIVE)
    cluster.quiet()
    assert cluster.ready() == ("False", "WaitingForNode")


EVENTS: dict[str, Callable[[Cluster], object]] = {
    "run": lambda c: c.user({"operatingMode": "Running"}),
    "pause": lambda c: c.user({"operatingMode": "Paused"}),
    "stop": lambda c: c.user({"operatingMode": "Stopped"}),
    "edit": lambda c: c.user({"args": [str(c.view()["metadata"]["generation"])]}),
    "always": lambda c: c.user({"restartPolicy": "Always"}),
    "evict": lambda c: c.evict(),
    "lose": lambda c: c.lose(),
    "force": lambda c: c.force(),
    "finish": lambda c: c.finish(),
    "full": lambda c: setattr(c, "fits", False),
    "room": lambda c: setattr(c, "fits", True),
    "exit": lambda c: setattr(c, "host", faults.workload_exits(c.host)),
    "die": lambda c: setattr(c, "host", faults.vmm_dies(c.host)),
    "reboot": lambda c: setattr(c, "host", faults.host_reboots(c.host)),
    "crash": lambda c: setattr(c, "host", faults.agent_dies(c.host)),
    "delete": lambda c: c.delete(),
    "namespace": lambda c: setattr(c, "terminating", True),
    "silent": lambda c: c.silence(),
    "heard": lambda c: c.silence(NodeState.ALIVE),
    "schedule": lambda c: c.scheduler(),
    "operator": lambda c: c.operator(),
    "agent": lambda c: c.agent(),
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 3)), max_size=25),
    st.sampled_from(["Never", "OnFailure", "Always"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_order_of_events_and_stale_views_comes_to_rest(
    events: list[tuple[str, int]], policy: str, gone: bool
) -> None:
    cluster = Cluster(an_instance(restartPolicy=policy), World())
    views = [cluster.view()]
    for name, age in events:
        if cluster.obj is None:
            break
        # operator and agent may act on a view that is some writes old
        old = views[max(0, len(views) - 1 - age)]
        try:
            if name == "operator":
                cluster.operator(old)
            elif name == "agent":
                cluster.agent(old)
            else:
                EVENTS[name](cluster)
        except Conflict:
            pass
        if cluster.obj is not None and cluster.obj != views[-1]:
            views.append(cluster.view())
    cluster.fits = True
    if cluster.node is NodeState.SILENT:
        cluster.silence(NodeState.ALIVE)
    if (gone or cluster.terminating) and cluster.obj is not None:
        cluster.delete()
    cluster.quiet()
    check(cluster)
    assert cluster.quiet() == 0


def test_stopped_that_was_seen_but_not_told_is_told_at_once() -> None:
    cluster = settled()
    cluster.host = faults.workload_exits(cluster.host)
    cluster.quiet()
    cluster.user({"operatingMode": "Stopped"})
    view = cluster.view()
    cluster.user({"operatingMode": "Running"})
    with pytest.raises(Conflict):  # it has forgotten the exit, and cannot say so
        cluster.agent(view)
    began = cluster.host.now
    assert cluster.quiet() <= 3
    check(cluster)
    assert cluster.host.now - began < PROGRESS_AFTER


def test_reservation_given_back_but_not_told_is_told_at_once() -> None:
    cluster = settled()
    cluster.user({"operatingMode": "Stopped"})
    cluster.agent()
    view = cluster.view()
    for _ in range(10):
        cluster.host = breathe(cluster.host)
        cluster.user({"operatingMode": "Running"})
        cluster.user({"operatingMode": "Stopped"})
        with contextlib.suppress(Conflict):
            cluster.agent(view)
    assert "pod-1" in cluster.host.given_back
    cluster.user({"operatingMode": "Running"})
    began = cluster.host.now
    assert cluster.quiet() <= 3
    check(cluster)
    assert cluster.host.now - began < PROGRESS_AFTER
