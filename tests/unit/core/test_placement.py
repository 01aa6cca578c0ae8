"""The operator's table: what it does about one Instance, row by row."""

from dataclasses import replace
from typing import Any

import pytest

from controller.core.names import FINALIZER, SOURCE_LABEL
from controller.core.ownership import condition
from controller.core.placement import (
    Action,
    AddFinalizer,
    CreatePod,
    DeletePod,
    DropFinalizer,
    NodeState,
    World,
    WriteStatus,
    decide,
    orphaned,
    refused,
)
from tests.clusterworld import a_pod, an_instance
from tests.values import HARDWARE

NOW = "2026-01-01T00:00:00Z"
NO_ROOM = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}  # fmt: skip
BOUND = a_pod(node="n1")
OPEN = a_pod()
WAITING = a_pod(said=NO_ROOM)
LEAVING = a_pod(node="n1", deleting=True)
FAILED = a_pod(node="n1")
FAILED["status"]["phase"] = "Failed"
LEFT = a_pod(node="n1", deleting=True)
LEFT["status"]["phase"] = "Failed"
FORCED = a_pod(node="n1", deleting=True)
FORCED["metadata"]["deletionGracePeriodSeconds"] = 0
GIVE_UP = DeletePod("web-6f1b9a2e", "pod-1")


def an_object(
    mode: str = "Running",
    scheduled: tuple[str, str] | None = None,
    placed: bool = True,
    state: str | None = "Stopped",
    ready: tuple[str, str] | None = None,
    said_of: int = 1,
    deleted: bool = False,
    finalizer: bool = True,
    exited: bool = False,
    asleep: bool = False,
) -> dict[str, Any]:
    obj = an_instance(operatingMode=mode)
    obj["metadata"]["finalizers"] = [FINALIZER] if finalizer else []
    if deleted:
        obj["metadata"]["deletionTimestamp"] = NOW
    status = obj["status"]
    if placed:
        status |= {"nodeName": "n1", "epoch": 1, "id": "c1", "reservation": "pod-1"}
        status["resources"] = {"hypervisor": "qemu", "vcpus": 2, "memory": "1Gi", "overlay": "10Gi"}
    if state and placed:
        status["state"] = state
    for kind, said in (("Scheduled", scheduled), ("Ready", ready)):
        if said:
            status["conditions"] = [c for c in status["conditions"] if c["type"] != kind]
            status["conditions"].append(
                {"type": kind, "status": said[0], "reason": said[1], "message": "m",
                 "lastTransitionTime": NOW, "observedGeneration": said_of}
            )  # fmt: skip
    if asleep:
        status["snapshot"] = {"bytes": 1}
    if exited:
        status["conditions"].append({"type": "Exited", "status": "True", "reason": "Failed"})
    return obj


def world(
    *pods: dict[str, Any], node: NodeState = NodeState.ALIVE, terminating: bool = False
) -> World:
    return World(pods, node, terminating, HARDWARE, NOW)


TRUE, EVICTING, RELEASED = ("True", "Scheduled"), ("False", "Evicting"), ("False", "Released")
ENDING = ("False", "NamespaceTerminating")
LOST, UNSCHEDULABLE = ("False", "ReservationLost"), ("False", "Unschedulable")
SILENT, GONE, UNKNOWN = NodeState.SILENT, NodeState.GONE, NodeState.UNKNOWN
UNREACHABLE = ("Unknown", "NodeUnreachable")


@pytest.mark.parametrize(
    ("situation", "obj", "facts", "actions"),
    [
        # deleting
        ("deleted, never placed", an_object(placed=False, deleted=True), world(OPEN),
         (DropFinalizer(), GIVE_UP)),
        ("deleted, on a living node", an_object(deleted=True, scheduled=TRUE), world(BOUND), ()),
        ("deleted, node silent", an_object(deleted=True), world(BOUND, node=SILENT), ()),
        ("deleted, node unknown", an_object(deleted=True), world(BOUND, node=UNKNOWN), ()),
        ("deleted, node gone", an_object(deleted=True), world(BOUND, node=GONE),
         (DropFinalizer(), GIVE_UP)),
        ("deleted, ours is off, another's finalizer stays",
         an_object(deleted=True, finalizer=False), world(LEAVING), (GIVE_UP,)),
        ("deleted, Pod Terminating", an_object(deleted=True, scheduled=TRUE), world(LEAVING), ()),
        # creation
        ("fresh", an_object(placed=False, finalizer=False), world(), (AddFinalizer(),)),
        ("fresh, namespace goes", an_object(placed=False, finalizer=False),
         world(terminating=True), ()),
        ("no Pod yet", an_object(placed=False), world(), (CreatePod(None),)),
        ("Pod not looked at", an_object(placed=False), world(OPEN), ()),
        ("namespace goes before its Pod", an_object(placed=False), world(terminating=True), ()),
        ("Pod Terminating before it was used", an_object(placed=False), world(LEAVING),
         (GIVE_UP,)),
        ("Pod refused by the node's kubelet", an_object(placed=False), world(FAILED),
         (GIVE_UP,)),
        ("lost, what is left of the Pod", an_object(scheduled=LOST, state="Running"),
         world(FAILED), (GIVE_UP,)),
        # it has a reservation
        ("runs", an_object(scheduled=TRUE, state="Running"), world(BOUND), ()),
        ("paused", an_object("Paused", scheduled=TRUE, state="Paused"), world(BOUND), ()),
        ("evicting", an_object(scheduled=EVICTING, state="Running"), world(LEAVING), ()),
        ("evicting, its Pod went meanwhile", an_object(scheduled=EVICTING, state="Running"),
         world(), ()),
        ("namespace ends, guest still there", an_object(scheduled=ENDING, state="Running"),
         world(LEAVING, terminating=True), ()),
        ("stopped while its namespace ends", an_object("Stopped", scheduled=ENDING),
         world(LEAVING, terminating=True), ()),
        ("asleep, given back", an_object("Standby", scheduled=RELEASED, state="Standby",
         asleep=True), world(BOUND), (GIVE_UP,)),
        ("asleep, all done", an_object("Standby", scheduled=RELEASED, state="Standby",
         asleep=True), world(), ()),
        ("asleep, to wake", an_object(scheduled=RELEASED, state="Standby", asleep=True), world(),
         (CreatePod("n1"),)),
        ("to be pre-warmed", an_object("Standby", placed=False), world(), (CreatePod(None),)),
        ("evicted into sleep, wakes again", an_object(scheduled=RELEASED, state="Standby",
         asleep=True), world(LEAVING), (GIVE_UP,)),
        ("node gave it back", an_object(scheduled=RELEASED), world(LEAVING), (GIVE_UP,)),
        ("given back, a new one is due", an_object(scheduled=RELEASED), world(),
         (CreatePod("n1"),)),
        ("given back, namespace goes", an_object(scheduled=RELEASED), world(terminating=True), ()),
        ("lost", an_object(scheduled=LOST, state="Running"), world(), (CreatePod("n1"),)),
        ("lost, node silent, said", an_object(scheduled=LOST, ready=UNREACHABLE),
         world(node=SILENT), (CreatePod("n1"),)),
        # it needs no memory
        ("stopped, not given back yet", an_object("Stopped", scheduled=TRUE), world(BOUND), ()),
        ("stopped, given back", an_object("Stopped", scheduled=RELEASED), world(BOUND),
         (GIVE_UP,)),
        ("stopped, all done", an_object("Stopped", scheduled=RELEASED), world(), ()),
        ("exited, given back", an_object(scheduled=RELEASED, exited=True), world(BOUND),
         (GIVE_UP,)),
        ("exited, not given back yet", an_object(scheduled=TRUE, exited=True), world(BOUND), ()),
        ("stopped while evicting", an_object("Stopped", scheduled=EVICTING), world(LEAVING), ()),
        ("stopped, a Pod it never used", an_object("Stopped", scheduled=RELEASED),
         world(a_pod(uid="pod-2")), (DeletePod("web-6f1b9a2e", "pod-2"),)),
        ("stopped without a node, said", an_object("Stopped", placed=False,
         ready=("True", "Stopped")), world(), ()),
        # node
        ("silent, said once", an_object(scheduled=TRUE, ready=UNREACHABLE, state="Running"),
         world(BOUND, node=SILENT), ()),
        ("silent, said and contradicted", an_object(scheduled=TRUE, state="Running"),
         replace(world(BOUND, node=SILENT), silence_told=True), ()),
        ("Pod taken away by force", an_object(scheduled=TRUE, state="Running"), world(FORCED), ()),
        ("node unknown", an_object(scheduled=TRUE, state="Running"), world(BOUND, node=UNKNOWN),
         ()),
    ],
)  # fmt: skip
def test_row_takes_exactly_these_actions(
    situation: str, obj: dict[str, Any], facts: World, actions: tuple[Action, ...]
) -> None:
    assert decide(obj, facts) == actions, situation


@pytest.mark.parametrize(
    ("situation", "obj", "facts", "scheduled", "ready"),
    [
        ("bound", an_object(placed=False), world(BOUND), TRUE, ("False", "Pending")),
        ("bound again after a release", an_object(scheduled=RELEASED),
         world(a_pod(uid="pod-2", node="n1")), TRUE, ("False", "Pending")),
        ("lost while it runs, bound again",
         an_object(scheduled=LOST, state="Running", ready=("True", "Running")),
         world(a_pod(uid="pod-2", node="n1")), TRUE, ("True", "Running")),
        ("refused by the scheduler", an_object(placed=False), world(WAITING), UNSCHEDULABLE,
         ("False", "WaitingForNode")),
        ("lost, no room, it runs",
         an_object(scheduled=LOST, state="Running", ready=("True", "Running")), world(WAITING),
         UNSCHEDULABLE, ("True", "Running")),
        ("Pod Terminating", an_object(scheduled=TRUE, state="Running"), world(LEAVING), EVICTING,
         ("Unknown", "Pending")),
        ("Pod Terminating and ended", an_object(scheduled=TRUE, state="Running"), world(LEFT),
         EVICTING, ("Unknown", "Pending")),
        ("Pod gone at once", an_object(scheduled=TRUE, state="Running"), world(), LOST,
         ("Unknown", "Pending")),
        ("Pod failed, as an evicted one", an_object(scheduled=TRUE, state="Running"),
         world(FAILED), LOST, ("Unknown", "Pending")),
        ("Pod gone, namespace goes", an_object(scheduled=TRUE, state="Running"),
         world(terminating=True), ENDING, ("Unknown", "Pending")),
        ("Pod Terminating, namespace goes", an_object(scheduled=TRUE, state="Running"),
         world(LEAVING, terminating=True), ENDING, ("Unknown", "Pending")),
        ("asleep, to wake, no room",
         an_object(scheduled=RELEASED, state="Standby", ready=("True", "Standby"), said_of=0),
         world(a_pod(uid="pod-2", said=NO_ROOM)), UNSCHEDULABLE, ("False", "WaitingForNode")),
        ("asleep, to wake, bound", an_object(scheduled=RELEASED, state="Standby"),
         world(a_pod(uid="pod-2", node="n1")), TRUE, ("False", "Pending")),
        ("another's Pod is no reservation", an_object(scheduled=TRUE, state="Running"),
         world(a_pod(uid="pod-9", node="n1")), LOST, ("Unknown", "Pending")),
        ("silent", an_object(scheduled=TRUE, state="Running", ready=("True", "Running")),
         world(BOUND, node=SILENT), TRUE, ("Unknown", "NodeUnreachable")),
        ("heard again while it waits", an_object(scheduled=UNSCHEDULABLE, ready=UNREACHABLE),
         world(WAITING), UNSCHEDULABLE, ("False", "WaitingForNode")),
        ("created Stopped", an_object("Stopped", placed=False), world(),
         ("False", "NotNeeded"), ("True", "Stopped")),
        ("edited without a node",
         an_object("Stopped", placed=False, ready=("True", "Stopped"), said_of=0), world(),
         ("False", "NotNeeded"), ("True", "Stopped")),
        ("no memory needed any more", an_object("Stopped", scheduled=UNSCHEDULABLE), world(),
         ("False", "NotNeeded"), ("Unknown", "Pending")),
    ],
)  # fmt: skip
def test_row_is_said_in_one_write(
    situation: str, obj: dict[str, Any], facts: World, scheduled: Any, ready: Any
) -> None:
    (action,) = decide(obj, facts)
    assert isinstance(action, WriteStatus), situation
    after = {"status": action.status}
    for kind, said in (("Scheduled", scheduled), ("Ready", ready)):
        found = condition(after, kind)
        assert (found["status"], found["reason"]) == said, situation
    if "observedGeneration" in action.status:
        assert condition(after, "Ready")["observedGeneration"] == 1


def test_first_binding_says_everything_in_one_write() -> None:
    (action,) = decide(an_object(placed=False), world(BOUND))
    assert isinstance(action, WriteStatus)
    assert action.assign_id
    assert {key: value for key, value in action.status.items() if key != "conditions"} == {
        "nodeName": "n1", "epoch": 1, "reservation": "pod-1", "state": "Stopped",
        "observedGeneration": 1,
        "resources": {"hypervisor": "qemu", "vcpus": 2, "memory": "1Gi", "overlay": "10Gi",
                      "diskBandwidth": 0},
    }  # fmt: skip


def test_later_binding_keeps_node_epoch_and_hardware() -> None:
    (action,) = decide(an_object(scheduled=RELEASED), world(a_pod(uid="pod-2", node="n1")))
    assert isinstance(action, WriteStatus)
    assert not action.assign_id
    assert {"nodeName", "epoch", "resources"}.isdisjoint(action.status)
    assert action.status["reservation"] == "pod-2"


def test_reservation_of_a_living_guest_comes_back_without_a_word_on_ready() -> None:
    obj = an_object(scheduled=LOST, state="Running", ready=("True", "Running"))
    (action,) = decide(obj, world(a_pod(uid="pod-2", node="n1")))
    assert isinstance(action, WriteStatus)
    assert set(action.status) == {"conditions", "reservation"}


def test_schedulers_words_are_passed_on_verbatim_and_once() -> None:
    obj = an_object(placed=False)
    (action,) = decide(obj, world(WAITING))
    assert isinstance(action, WriteStatus)
    assert condition({"status": action.status}, "Scheduled")["message"] == NO_ROOM["message"]
    assert condition({"status": action.status}, "Ready")["message"] == NO_ROOM["message"]
    obj["status"] |= action.status
    assert decide(obj, world(WAITING)) == ()


def test_refused_pod_is_said_in_the_api_servers_words_and_once() -> None:
    obj = an_object(placed=False)
    (action,) = refused(obj, world(), "exceeded quota: team")
    assert isinstance(action, WriteStatus)
    said = condition({"status": action.status}, "Scheduled")
    assert (said["reason"], said["message"]) == ("ReservationRefused", "exceeded quota: team")
    obj["status"] |= action.status
    assert refused(obj, world(), "exceeded quota: team") == ()


def test_pods_of_an_instance_that_is_gone_go() -> None:
    pods = [BOUND, a_pod("web-2", "pod-2")]
    assert orphaned(pods) == (GIVE_UP, DeletePod("web-2", "pod-2"))


def test_at_most_one_write_to_the_instance_in_a_pass() -> None:
    writes = (AddFinalizer, DropFinalizer, WriteStatus)
    for pods in ((), (BOUND,), (OPEN,), (WAITING,), (LEAVING,)):
        for mode in ("Running", "Paused", "Stopped"):
            for scheduled in (None, TRUE, EVICTING, RELEASED, LOST, UNSCHEDULABLE):
                for node in NodeState:
                    for placed in (True, False):
                        obj = an_object(mode, scheduled, placed)
                        actions = decide(obj, world(*pods, node=node))
                        assert sum(isinstance(a, writes) for a in actions) <= 1


# --- forks without a node ------------------------------------------------------------------------

SOURCE_RESOURCES = {"hypervisor": "qemu", "vcpus": 4, "memory": "2Gi", "overlay": "3Gi"}


def a_source(state: str = "Standby", uid: str = "uid-web", node: str = "n1") -> dict[str, Any]:
    source = an_instance()
    source["metadata"] |= {"name": "source", "uid": uid}
    source["status"] |= {
        "nodeName": node, "epoch": 1, "state": state, "resources": SOURCE_RESOURCES,
    }  # fmt: skip
    if state == "Standby":
        source["status"]["snapshot"] = {"bytes": 1}
    return source


def a_fork(mode: str = "Running", placed: bool = False, **changes: Any) -> dict[str, Any]:
    fork = an_object(mode, placed=placed, **changes)
    del fork["spec"]["image"]
    fork["spec"]["forkFrom"] = {"name": "source", "fromRunning": False}
    if placed:
        fork["status"]["lineage"] = {"parent": "uid-web", "root": "uid-web", "depth": 1}
    return fork


def fork_pod(source: str = "uid-web", **changes: Any) -> dict[str, Any]:
    pod = a_pod(**changes)
    pod["metadata"]["labels"][SOURCE_LABEL] = source
    return pod


def beside(
    source: dict[str, Any] | None, *pods: dict[str, Any], circle: tuple[str, ...] = (), **facts: Any
) -> World:
    return replace(world(*pods, node=NodeState.NONE, **facts), source=source, circle=circle)


ASLEEP, AWAKE = a_source(), a_source("Running")
NOT_NEEDED = ("False", "NotNeeded")


@pytest.mark.parametrize(
    ("situation", "obj", "facts", "actions"),
    [
        ("fresh", a_fork(finalizer=False), beside(ASLEEP), (AddFinalizer(),)),
        ("deleted", a_fork(deleted=True), beside(ASLEEP, fork_pod()),
         (DropFinalizer(), GIVE_UP)),
        ("to run", a_fork(), beside(ASLEEP), (CreatePod("n1", "uid-web"),)),
        ("to pause", a_fork("Paused"), beside(AWAKE), (CreatePod("n1", "uid-web"),)),
        ("to boot and sleep", a_fork("Standby"), beside(a_source("Stopped")),
         (CreatePod("n1", "uid-web"),)),
        ("namespace goes", a_fork(), beside(ASLEEP, terminating=True), ()),
        ("namespace goes, no memory", a_fork("Stopped"), beside(ASLEEP, terminating=True), ()),
        ("Pod not looked at", a_fork(), beside(ASLEEP, fork_pod()), ()),
        ("Pod Terminating before it was used", a_fork(), beside(ASLEEP, fork_pod(deleting=True)),
         (GIVE_UP,)),
        ("Pod made for a source of before", a_fork(), beside(ASLEEP, fork_pod("uid-old")),
         (GIVE_UP,)),
        ("Pod bound for a source of before", a_fork(),
         beside(ASLEEP, fork_pod("uid-old", node="n1")), (GIVE_UP,)),
        ("Pod on a node that the source left", a_fork(),
         beside(a_source(node="n2"), fork_pod(node="n1")), (GIVE_UP,)),
        ("Pod without our word of its source", a_fork(), beside(ASLEEP, a_pod(node="n1")),
         (GIVE_UP,)),
        ("placed without memory, nothing to do", a_fork("Standby", placed=True,
         scheduled=NOT_NEEDED), world(), ()),
        ("placed without memory, to run", a_fork(placed=True, scheduled=NOT_NEEDED), world(),
         (CreatePod("n1"),)),
        ("placed with memory", a_fork(placed=True, scheduled=TRUE), world(BOUND), ()),
    ],
)  # fmt: skip
def test_fork_row_takes_exactly_these_actions(
    situation: str, obj: dict[str, Any], facts: World, actions: tuple[Action, ...]
) -> None:
    assert decide(obj, facts) == actions, situation


@pytest.mark.parametrize(
    ("situation", "facts", "reason", "stalled"),
    [
        ("missing", beside(None), "SourceNotFound", False),
        ("going", beside({**ASLEEP, "metadata": {**ASLEEP["metadata"], "deletionTimestamp": NOW}}),
         "SourceDeleting", False),
        ("not placed", beside(an_object(placed=False)), "SourceNotReady", False),
        ("a fork that is not done", beside(a_fork(placed=True)), "SourceNotReady", False),
        ("circle", beside(a_fork(), circle=("web", "source")), "ForkCycle", True),
    ],
)  # fmt: skip
def test_fork_that_cannot_be_placed_says_why_once(
    situation: str, facts: World, reason: str, stalled: bool
) -> None:
    obj = a_fork(scheduled=UNSCHEDULABLE)  # of a source that it had before
    gone, action = decide(obj, replace(facts, pods=[fork_pod()]))
    assert gone == GIVE_UP, situation
    assert isinstance(action, WriteStatus)
    assert action.assign_id
    assert {"nodeName", "epoch", "resources", "lineage"}.isdisjoint(action.status)
    said = {c["type"]: (c["status"], c["reason"]) for c in action.status["conditions"]}
    assert said == {"Ready": ("False", reason)} | ({"Stalled": ("True", reason)} if stalled else {})
    assert (action.status["state"], action.status["observedGeneration"]) == ("Stopped", 1)
    obj["status"] |= action.status
    assert decide(obj, facts) == (), situation


@pytest.mark.parametrize(
    ("mode", "source"),
    [("Stopped", ASLEEP), ("Stopped", AWAKE), ("Stopped", a_source("Stopped")),
     ("Standby", ASLEEP)],
)  # fmt: skip
def test_fork_that_needs_no_memory_is_placed_by_one_write(
    mode: str, source: dict[str, Any]
) -> None:
    gone, action = decide(a_fork(mode), beside(source, fork_pod()))  # it was to run before
    assert gone == GIVE_UP
    assert isinstance(action, WriteStatus)
    assert action.assign_id
    after = {"status": action.status}
    assert {key: value for key, value in action.status.items() if key != "conditions"} == {
        "nodeName": "n1", "epoch": 1, "state": "Stopped", "observedGeneration": 1,
        "resources": SOURCE_RESOURCES,
        "lineage": {"parent": "uid-web", "root": "uid-web", "depth": 1},
    }  # fmt: skip
    for kind, said in (("Scheduled", NOT_NEEDED), ("Ready", ("False", "Pending"))):
        found = condition(after, kind)
        assert (found["status"], found["reason"]) == said


def test_bound_fork_is_placed_by_one_write() -> None:
    obj = a_fork()
    stalled = {"type": "Stalled", "status": "True", "reason": "ForkCycle"}
    obj["status"]["conditions"].append(stalled)  # the circle was broken since
    (action,) = decide(obj, beside(ASLEEP, fork_pod(node="n1")))
    assert isinstance(action, WriteStatus)
    assert action.assign_id
    assert {key: value for key, value in action.status.items() if key != "conditions"} == {
        "nodeName": "n1", "epoch": 1, "reservation": "pod-1", "state": "Stopped",
        "observedGeneration": 1, "resources": SOURCE_RESOURCES,
        "lineage": {"parent": "uid-web", "root": "uid-web", "depth": 1},
    }  # fmt: skip
    said = {c["type"]: (c["status"], c["reason"]) for c in action.status["conditions"]}
    assert said == {"Ready": ("False", "Pending"), "Scheduled": TRUE}


def test_fork_that_waits_for_room_is_no_longer_stalled() -> None:
    obj = a_fork()
    obj["status"]["conditions"].append({"type": "Stalled", "status": "True", "reason": "ForkCycle"})
    (action,) = decide(obj, beside(ASLEEP, fork_pod(said=NO_ROOM)))
    assert isinstance(action, WriteStatus)
    said = {c["type"]: (c["status"], c["reason"]) for c in action.status["conditions"]}
    assert said == {"Ready": ("False", "WaitingForNode"), "Scheduled": UNSCHEDULABLE}


def test_operator_leaves_stalled_to_the_agent_where_there_is_one() -> None:
    obj = an_object(scheduled=RELEASED)
    stalled = {"type": "Stalled", "status": "True", "reason": "SnapshotCorrupt"}
    obj["status"]["conditions"].append(stalled)
    (action,) = decide(obj, world(a_pod(uid="pod-2", said=NO_ROOM)))
    assert isinstance(action, WriteStatus)
    assert stalled in action.status["conditions"]
