"""Reservations that go, nodes that fall silent, Instances that are deleted."""

import pytest

from controller.core.names import FINALIZER, UID_LABEL
from controller.kube.client import Client
from controller.kube.errors import Conflict
from controller.operator import instances as module
from controller.settings import OperatorSettings
from tests.fake_apiserver import FakeApiServer
from tests.unit.operator.rig import NAMESPACE, NODE, Rig, condition, renew, running
from tests.waiting import until

GONE_AT = "2026-01-01T00:00:00Z"


def terminate(rig: Rig) -> None:
    """A drain or a preemption: the Pod is asked to go."""
    pod = rig.pods[0]
    meta = {**pod["metadata"], "deletionTimestamp": GONE_AT}
    rig.change("pods", pod["metadata"]["name"], metadata=meta)


def agent_says(rig: Rig, state: str, *more: dict[str, object]) -> None:
    said = [rig.said("Scheduled"), condition("Ready", "True", state), *more]
    kinds = {each["type"]: each for each in said}
    rig.say(state=state, conditions=list(kinds.values()))


async def test_terminating_reservation_is_an_eviction(rig: Rig) -> None:
    await rig.placed()
    agent_says(rig, "Running")
    terminate(rig)
    await until(lambda: rig.said("Scheduled")["reason"] == "Evicting")
    await rig.settled()
    assert rig.said("Scheduled")["status"] == "False"
    assert rig.writes("/pods/") == [], "it goes when the node has released it"


async def test_evicted_instance_waits_for_its_own_node_again(rig: Rig) -> None:
    await rig.placed()
    agent_says(rig, "Running")
    terminate(rig)
    await until(lambda: rig.said("Scheduled")["reason"] == "Evicting")
    first = rig.pods[0]["metadata"]["uid"]
    agent_says(rig, "Stopped", condition("Scheduled", "False", "Released"))
    await until(lambda: rig.pods and rig.pods[0]["metadata"]["uid"] != first)
    (deletion,) = [seen for seen in rig.writes("/pods/") if seen.method == "DELETE"]
    assert deletion.body["gracePeriodSeconds"] == 0
    assert deletion.body["preconditions"] == {"uid": first}
    terms = rig.pods[0]["spec"]["affinity"]["nodeAffinity"]
    assert NODE in str(terms["requiredDuringSchedulingIgnoredDuringExecution"])


async def test_vanished_reservation_is_made_again_on_the_same_node(rig: Rig) -> None:
    placed = await rig.placed()
    agent_says(rig, "Running")
    rig.server.remove("pods", rig.pods[0]["metadata"]["name"], NAMESPACE)
    pod = await rig.bind()
    await until(lambda: rig.get()["status"]["reservation"] == pod["metadata"]["uid"])
    status = rig.get()["status"]
    assert (status["state"], status["epoch"]) == ("Running", placed["status"]["epoch"])
    assert rig.said("Ready")["status"] == "True", "the guest was never touched"
    assert rig.said("Scheduled")["status"] == "True"


async def test_stopped_instance_gives_its_reservation_back(rig: Rig) -> None:
    placed = await rig.placed()
    rig.change("instances", "web", spec={**placed["spec"], "operatingMode": "Stopped"})
    await rig.settled()
    assert len(rig.pods) == 1, "only the node knows when the guest has ended"
    agent_says(rig, "Stopped", condition("Scheduled", "False", "Released"))
    await until(lambda: not rig.pods)
    await rig.settled()
    assert rig.get()["status"]["nodeName"] == NODE


async def test_silent_node_is_said_once(server: FakeApiServer, client: Client) -> None:
    now = [0.0]
    settings = OperatorSettings(node_lease_seconds=40)
    async with running(server, client, settings, lambda: now[0]) as rig:
        await rig.placed()
        agent_says(rig, "Running")
        await rig.settled()
        now[0] = 41.0
        rig.cluster.tell_silence()
        await until(lambda: rig.said("Ready")["reason"] == "NodeUnreachable")
        await rig.look_again()
        assert rig.said("Ready")["status"] == "Unknown"
        assert rig.get()["status"]["state"] == "Running"
        assert len(rig.writes("/instances/web/status")) == 2, "placed, silent"
        assert len(rig.pods) == 1


async def test_agent_that_lost_only_its_lease_is_not_fought(
    server: FakeApiServer, client: Client
) -> None:
    now = [0.0]
    settings = OperatorSettings(node_lease_seconds=40)
    async with running(server, client, settings, lambda: now[0]) as rig:
        await rig.placed()
        agent_says(rig, "Running")
        await rig.settled()
        now[0] = 41.0
        rig.cluster.tell_silence()
        await until(lambda: rig.said("Ready")["reason"] == "NodeUnreachable")
        agent_says(rig, "Running")  # it writes still
        await rig.settled()
        await rig.look_again()
        assert rig.said("Ready")["status"] == "True"


async def test_silence_is_told_once_each_time(server: FakeApiServer, client: Client) -> None:
    now = [0.0]
    settings = OperatorSettings(node_lease_seconds=40)
    async with running(server, client, settings, lambda: now[0]) as rig:
        told: list[str] = []
        rig.cluster._look_at_node = told.append
        for later in (39.0, 41.0, 42.0):
            now[0] = later
            rig.cluster.tell_silence()
        assert told == [NODE]
        renew(server, "second")
        await until(lambda: told == [NODE, NODE])
        now[0] = 83.0
        rig.cluster.tell_silence()
        assert told == [NODE, NODE, NODE]


async def test_node_that_speaks_again_is_looked_at(server: FakeApiServer, client: Client) -> None:
    now = [0.0]
    settings = OperatorSettings(node_lease_seconds=40)
    async with running(server, client, settings, lambda: now[0]) as rig:
        uid = (await rig.placed())["metadata"]["uid"]
        await rig.settled()
        now[0] = 41.0
        looked: list[str] = []
        rig.instances.look = looked.append
        renew(server, "second")
        await until(lambda: looked == [uid])


async def test_instance_without_a_node_is_let_go_by_the_operator(rig: Rig) -> None:
    rig.create()
    await rig.one_pod()
    rig.delete()
    await until(lambda: not rig.has())
    await until(lambda: not rig.pods)


async def test_placed_instance_is_let_go_by_its_node_only(rig: Rig) -> None:
    await rig.placed()
    rig.delete()
    await rig.look_again()
    assert rig.get()["metadata"]["finalizers"] == [FINALIZER]
    assert len(rig.pods) == 1


async def test_instance_of_a_removed_node_is_let_go(rig: Rig, server: FakeApiServer) -> None:
    await rig.placed()
    server.remove("nodes", NODE)
    rig.delete()
    await until(lambda: not rig.has())
    await until(lambda: not rig.pods)


async def test_reservation_goes_once_the_node_let_go(rig: Rig) -> None:
    await rig.placed()
    rig.delete()
    await rig.settled()
    rig.server.remove("instances", "web", NAMESPACE)  # as when its node takes the finalizer off
    await until(lambda: not rig.pods)


async def test_foreign_finalizer_keeps_the_object_without_a_pod(rig: Rig) -> None:
    placed = await rig.placed()
    meta = {**placed["metadata"], "finalizers": ["example.com/other"], "deletionTimestamp": GONE_AT}
    rig.change("instances", "web", metadata=meta)
    await until(lambda: not rig.pods)
    await rig.settled()
    assert rig.has()


async def test_pod_whose_instance_the_watch_missed_is_kept(rig: Rig) -> None:
    uid = (await rig.placed())["metadata"]["uid"]
    await rig.settled()
    rig.instances.lost(uid)  # a watch that says so wrongly
    await rig.settled()
    assert len(rig.pods) == 1
    assert uid in rig.instances.known


async def test_pod_with_our_label_and_another_owner_is_not_ours(rig: Rig) -> None:
    meta = {"name": "theirs", "namespace": NAMESPACE, "labels": {UID_LABEL: "somebody"}}
    rig.server.put("pods", {"metadata": meta, "spec": {}})
    await rig.settled()
    assert rig.cluster.instances_with_pods() == []
    assert len(rig.pods) == 1


async def test_watch_that_does_not_bring_back_our_writes_is_dead(
    rig: Rig, server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.placed()
    await rig.settled()
    assert rig.instances.watch_lives
    server.mute()
    obj = rig.get()
    await rig.instances._write(obj, {"message": "unseen"})
    assert rig.instances.watch_lives, "it may be on its way"
    later = module.time.monotonic() + 2 * module.WATCH_DEAD_SECONDS
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    assert not rig.instances.watch_lives


@pytest.mark.parametrize("label", [None, "somebody-else"])
async def test_reservation_whose_label_was_changed_is_made_anew(
    rig: Rig, label: str | None
) -> None:
    placed = await rig.placed()
    agent_says(rig, "Running")
    pod = rig.pods[0]
    labels = {UID_LABEL: label} if label else {}
    if not label:  # for a watch by label that is a deletion
        rig.server._tell("pods", "DELETED", pod)
    rig.change("pods", pod["metadata"]["name"], metadata={**pod["metadata"], "labels": labels})
    await until(lambda: rig.pods and rig.pods[0]["metadata"]["uid"] != pod["metadata"]["uid"])
    assert rig.pods[0]["metadata"]["labels"][UID_LABEL] == placed["metadata"]["uid"]


async def test_object_whose_name_is_another_ones_by_now_is_forgotten(rig: Rig) -> None:
    old = await rig.placed()
    await rig.settled()
    new = {**old["metadata"], "uid": "new", "resourceVersion": None}
    rig.server.objects["instances"][(NAMESPACE, "web")] = {**old, "metadata": new}  # unseen
    rig.server.put("instances", rig.server.objects["instances"][(NAMESPACE, "web")])
    with pytest.raises(Conflict):
        await rig.instances._write(old, {"message": "too late"})
    assert old["metadata"]["uid"] not in rig.instances.known


async def test_answer_that_comes_after_the_deletion_leaves_no_ghost(rig: Rig) -> None:
    obj = await rig.placed()
    await rig.settled()
    uid = obj["metadata"]["uid"]
    rig.instances.known.drop(uid)  # the watch was faster than the answer
    await rig.instances._write(rig.get(), {"message": "late"})
    assert uid not in rig.instances._unseen
