"""From a new Instance to its node: the writes that it takes, and no others."""

import pytest

from controller.core.names import FINALIZER, UID_LABEL
from tests.fake_apiserver import FakeApiServer
from tests.unit.operator.rig import NAMESPACE, NODE, Object, Rig, condition
from tests.waiting import until

INSTANCE = "/instances/web"


def scheduler_says(rig: Rig, pod: Object, message: str) -> None:
    said = {**condition("PodScheduled", "False", "Unschedulable"), "message": message}
    rig.change("pods", pod["metadata"]["name"], status={"phase": "Pending", "conditions": [said]})


async def test_instance_is_placed_by_two_writes_to_it(rig: Rig) -> None:
    placed = await rig.placed()
    await rig.settled()
    assert [seen.path.rpartition("/")[2] for seen in rig.writes(INSTANCE)] == ["web", "status"]
    assert placed["metadata"]["finalizers"] == [FINALIZER]
    status = placed["status"]
    assert (status["nodeName"], status["epoch"], status["state"]) == (NODE, 1, "Stopped")
    assert status["resources"]["vcpus"] == 2
    assert status["id"].startswith("id")
    assert status["reservation"] == rig.pods[0]["metadata"]["uid"]


async def test_ready_is_said_for_the_generation_that_was_placed(rig: Rig) -> None:
    await rig.placed()
    ready = rig.said("Ready")
    assert (ready["status"], ready["observedGeneration"]) == ("False", 1)
    assert rig.get()["status"]["observedGeneration"] == 1


async def test_finalizer_comes_before_the_reservation(rig: Rig) -> None:
    rig.create()
    await rig.one_pod()
    first, second = [seen for seen in rig.server.requests if seen.method in ("PATCH", "POST")][:2]
    assert first.body["metadata"]["finalizers"] == [FINALIZER]
    assert second.path.endswith("/pods")


async def test_reservation_is_owned_by_its_instance(rig: Rig) -> None:
    uid = rig.create()["metadata"]["uid"]
    pod = await rig.one_pod()
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["kind"]) == (uid, True, "Instance")
    assert pod["metadata"]["labels"][UID_LABEL] == uid


async def test_stopped_instance_is_ready_without_a_pod(rig: Rig) -> None:
    rig.create(operatingMode="Stopped")
    await until(lambda: rig.said("Ready").get("status") == "True")
    await rig.settled()
    assert rig.pods == []
    assert rig.get()["status"]["state"] == "Stopped"
    assert len(rig.writes(INSTANCE)) == 2


async def test_event_that_changes_nothing_writes_nothing(rig: Rig) -> None:
    placed = await rig.placed()
    await rig.settled()
    before = len(rig.writes(""))
    rig.change("instances", "web", metadata={**placed["metadata"], "annotations": {"a": "b"}})
    await rig.look_again()
    # Events are said in their own time and are no answer to this
    assert [seen.path for seen in rig.writes("")[before:] if "/events" not in seen.path] == []


async def test_schedulers_words_are_passed_on(rig: Rig) -> None:
    rig.create()
    scheduler_says(rig, await rig.one_pod(), "0/1 nodes are available: 1 Insufficient memory.")
    await until(lambda: rig.said("Scheduled").get("reason") == "Unschedulable")
    for kind in ("Scheduled", "Ready"):
        assert rig.said(kind)["status"] == "False"
        assert rig.said(kind)["message"] == "0/1 nodes are available: 1 Insufficient memory."


async def test_schedulers_words_are_passed_on_once(rig: Rig) -> None:
    rig.create()
    pod = await rig.one_pod()
    scheduler_says(rig, pod, "no room")
    await until(lambda: rig.said("Scheduled").get("message") == "no room")
    scheduler_says(rig, pod, "no room")
    await rig.look_again()
    assert len(rig.writes("/instances/web/status")) == 1


async def test_refused_reservation_is_said_and_tried_again_later(
    rig: Rig, server: FakeApiServer
) -> None:
    quota = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "exceeded quota: q"}
    server.fail(403, method="POST", path="/pods", body=quota, times=1)
    uid = rig.create()["metadata"]["uid"]
    await until(lambda: rig.said("Scheduled").get("reason") == "ReservationRefused")
    assert "exceeded quota: q" in rig.said("Scheduled")["message"]
    assert "exceeded quota: q" in rig.said("Ready")["message"]
    await rig.settled()
    rig.queue.add(uid)
    await rig.bind()
    await until(lambda: rig.said("Scheduled")["status"] == "True")


async def test_pod_of_somebody_else_in_the_way_is_named(rig: Rig, server: FakeApiServer) -> None:
    rig.leading = False
    obj = rig.create()
    name = f"web-{obj['metadata']['uid'][:8]}"
    server.put("pods", {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {}})
    rig.leading = True
    rig.instances.look_at_all()
    await until(lambda: rig.said("Scheduled").get("reason") == "ReservationRefused")
    assert name in rig.said("Scheduled")["message"]
    assert len(rig.pods) == 1


async def test_lost_answer_to_a_create_makes_no_second_pod(rig: Rig, server: FakeApiServer) -> None:
    server.fail(0, method="POST", path="/pods", act=True)
    await rig.placed()
    assert len(rig.pods) == 1


async def test_stale_write_is_refused_and_decided_again(rig: Rig, server: FakeApiServer) -> None:
    server.fail(409, method="PATCH", path="/instances/web", times=3)
    placed = await rig.placed()
    assert placed["metadata"]["finalizers"] == [FINALIZER]
    assert placed["status"]["nodeName"] == NODE


async def test_nothing_is_done_until_it_leads(rig: Rig) -> None:
    rig.leading = False
    rig.create()
    await rig.settled()
    assert rig.writes("") == []
    rig.leading = True
    rig.instances.look_at_all()
    await rig.one_pod()


async def test_nothing_is_made_in_a_terminating_namespace(rig: Rig, server: FakeApiServer) -> None:
    meta = {"name": NAMESPACE, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    server.put("namespaces", {"metadata": meta})
    await until(lambda: rig.cluster.namespace_terminating(NAMESPACE))
    rig.create()
    await rig.settled()
    assert rig.writes("") == []


async def test_placement_is_told_by_one_event(rig: Rig, server: FakeApiServer) -> None:
    await rig.placed()
    await until(lambda: server.objects.get("events"))
    await rig.look_again()
    (event,) = server.objects["events"].values()
    assert (event["type"], event["reason"]) == ("Normal", "Scheduled")
    assert event["involvedObject"]["uid"] == rig.get()["metadata"]["uid"]


@pytest.mark.parametrize("selector", [{"disk": "fast"}])
async def test_users_selectors_reach_the_pod(rig: Rig, selector: dict[str, str]) -> None:
    rig.create(nodeSelector=selector)
    pod = await rig.one_pod()
    assert pod["spec"]["nodeSelector"].items() >= selector.items()
