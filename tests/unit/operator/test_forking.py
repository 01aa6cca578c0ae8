"""Forks before they have a node: placed beside their source, or told why not; never twice."""

from collections.abc import Callable
from typing import Any

import pytest

from controller.core.names import FINALIZER, SOURCE_LABEL
from tests.fake_apiserver import FakeApiServer
from tests.unit.operator.rig import NAMESPACE, NODE, Object, Rig, condition
from tests.waiting import until

RESOURCES = {"hypervisor": "qemu", "vcpus": 4, "memory": "2Gi", "overlay": "3Gi"}
SNAPSHOT = {"bytes": 1, "size": "1"}
RELEASED = condition("Scheduled", "False", "Released")
GOING = "2026-01-01T00:00:00Z"


def a_source(rig: Rig, name: str = "web", state: str = "Standby", **status: Any) -> Object:
    """An Instance at rest on NODE, as its agent left it."""
    obj = rig.create(name, operatingMode=state)
    said = {"status": "True", "reason": state, "observedGeneration": 1, "message": ""}
    placed: Object = {
        "id": f"id-{name}", "nodeName": NODE, "epoch": 1, "state": state, "resources": RESOURCES,
        "observedGeneration": 1, "conditions": [{"type": "Ready", **said}, RELEASED],
    }  # fmt: skip
    if state == "Standby":
        placed["snapshot"] = SNAPSHOT
    meta = obj["metadata"] | {"finalizers": [FINALIZER]}
    return rig.change("instances", name, metadata=meta, status=placed | status)


def a_fork(rig: Rig, name: str = "copy", of: str = "web", **spec: Any) -> Object:
    return rig.create(name, image=None, forkFrom={"name": of, "fromRunning": False}, **spec)


def reason(rig: Rig, name: str = "copy") -> str | None:
    return rig.said("Ready", name).get("reason")


async def pod_of(rig: Rig, fork: Object, source: Object) -> Object:
    """The fork's Pod, once it is there and made for that source."""

    def find() -> list[Object]:
        uids = (fork["metadata"]["uid"], source["metadata"]["uid"])
        return [
            pod
            for pod in rig.pods
            if (pod["metadata"]["ownerReferences"][0]["uid"],
                pod["metadata"]["labels"].get(SOURCE_LABEL)) == uids
        ]  # fmt: skip

    await until(find)
    return find()[0]


def bind(rig: Rig, pod: Object, node: str = NODE) -> None:
    rig.change("pods", pod["metadata"]["name"], spec={**pod["spec"], "nodeName": node})


async def placed(rig: Rig, name: str = "copy") -> Object:
    await until(lambda: rig.get(name).get("status", {}).get("nodeName"))
    await rig.settled()
    return rig.get(name)


async def test_fork_that_needs_memory_is_reserved_on_its_sources_node(rig: Rig) -> None:
    source = a_source(rig)
    fork = a_fork(rig)
    pod = await pod_of(rig, fork, source)
    terms = pod["spec"]["affinity"]["nodeAffinity"]
    assert NODE in str(terms["requiredDuringSchedulingIgnoredDuringExecution"])
    requests = pod["spec"]["containers"][0]["resources"]["requests"]
    assert requests["cpu"] == "400m", "the source's hardware counts, not the settings"
    assert int(requests["memory"]) > 2 * 2**30
    bind(rig, pod)
    status = (await placed(rig))["status"]
    uid = source["metadata"]["uid"]
    assert status["lineage"] == {"parent": uid, "root": uid, "depth": 1}
    assert (status["nodeName"], status["epoch"], status["state"]) == (NODE, 1, "Stopped")
    assert status["resources"] == RESOURCES
    assert status["reservation"] == pod["metadata"]["uid"]
    assert rig.said("Scheduled", "copy")["status"] == "True"
    writes = [seen.path.rpartition("/")[2] for seen in rig.writes("/instances/copy")]
    assert writes == ["copy", "status"], "the finalizer, and everything else at once"
    assert rig.writes("/instances/web") == []


@pytest.mark.parametrize("mode", ["Standby", "Stopped"])
async def test_fork_that_needs_no_memory_is_placed_without_a_pod(rig: Rig, mode: str) -> None:
    a_source(rig)
    a_fork(rig, operatingMode=mode)
    status = (await placed(rig))["status"]
    assert (status["nodeName"], status["epoch"], status["state"]) == (NODE, 1, "Stopped")
    assert status["resources"] == RESOURCES
    assert status["lineage"]["depth"] == 1
    assert status["id"].startswith("id")
    assert rig.said("Scheduled", "copy")["reason"] == "NotNeeded"
    assert (rig.said("Ready", "copy")["status"], reason(rig)) == ("False", "Pending")
    await rig.look_again()
    assert len(rig.writes("/instances/copy")) == 2
    assert [seen for seen in rig.writes("/pods") if seen.method == "POST"] == []


async def test_fork_waits_for_a_source_that_comes_later(rig: Rig) -> None:
    fork = a_fork(rig)
    await until(lambda: reason(rig) == "SourceNotFound")
    await rig.look_again()
    assert len(rig.writes("/instances/copy/status")) == 1, "said once"
    source = a_source(rig)
    bind(rig, await pod_of(rig, fork, source))
    assert (await placed(rig))["status"]["lineage"]["parent"] == source["metadata"]["uid"]


async def test_fork_waits_for_a_source_that_was_never_placed(rig: Rig) -> None:
    rig.create("web", operatingMode="Stopped")
    fork = a_fork(rig)
    await until(lambda: reason(rig) == "SourceNotReady")
    source = a_source(rig)  # it ran
    bind(rig, await pod_of(rig, fork, source))
    await placed(rig)


async def test_fork_of_a_fork_follows_when_that_is_done(rig: Rig) -> None:
    root = a_source(rig)
    a_fork(rig, "child", operatingMode="Stopped")
    a_fork(rig, "grandchild", of="child", operatingMode="Stopped")
    await placed(rig, "child")
    await until(lambda: reason(rig, "grandchild") == "SourceNotReady")
    child = rig.get("child")
    rig.say("child", lineage={**child["status"]["lineage"], "forkedAt": GOING}, state="Stopped")
    lineage = (await placed(rig, "grandchild"))["status"]["lineage"]
    assert lineage == {
        "parent": child["metadata"]["uid"], "root": root["metadata"]["uid"], "depth": 2,
    }  # fmt: skip
    assert len(rig.writes("/instances/grandchild/status")) == 2


async def test_fork_of_what_is_being_deleted_is_refused_until_another_comes(rig: Rig) -> None:
    a_source(rig)
    rig.delete("web")
    await rig.settled()
    fork = a_fork(rig)
    await until(lambda: reason(rig) == "SourceDeleting")
    rig.server.remove("instances", "web", NAMESPACE)
    await until(lambda: reason(rig) == "SourceNotFound")
    source = a_source(rig)
    bind(rig, await pod_of(rig, fork, source))
    assert (await placed(rig))["status"]["lineage"]["parent"] == source["metadata"]["uid"]


async def test_source_that_is_replaced_before_the_placement_is_not_mixed_up(rig: Rig) -> None:
    old = a_source(rig)
    fork = a_fork(rig)
    first = await pod_of(rig, fork, old)
    rig.server.remove("instances", "web", NAMESPACE)
    new = a_source(rig)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    bind(rig, await pod_of(rig, fork, new))
    status = (await placed(rig))["status"]
    assert status["lineage"]["parent"] == new["metadata"]["uid"]
    assert [pod["metadata"]["uid"] for pod in rig.pods] == [status["reservation"]]
    assert first["metadata"]["uid"] != status["reservation"]


async def test_pod_of_a_source_that_went_is_taken_back(rig: Rig) -> None:
    source = a_source(rig)
    await pod_of(rig, a_fork(rig), source)
    rig.server.remove("instances", "web", NAMESPACE)
    await until(lambda: reason(rig) == "SourceNotFound")
    await until(lambda: not rig.pods)


async def test_what_happens_to_the_source_afterwards_is_no_matter(rig: Rig) -> None:
    a_source(rig)
    a_fork(rig, operatingMode="Standby")
    before = await placed(rig)
    rig.server.remove("instances", "web", NAMESPACE)
    a_source(rig, state="Stopped")
    await rig.look_again()
    assert rig.get("copy") == before


async def test_source_that_goes_to_sleep_meanwhile_saves_the_reservation(rig: Rig) -> None:
    source = a_source(rig, state="Stopped")
    fork = a_fork(rig, operatingMode="Standby")
    await pod_of(rig, fork, source)  # it would have to boot
    rig.say("web", state="Standby", snapshot=SNAPSHOT)
    await placed(rig)
    await until(lambda: not rig.pods)
    assert rig.said("Scheduled", "copy")["reason"] == "NotNeeded"


async def test_source_that_wakes_meanwhile_makes_memory_needed(rig: Rig) -> None:
    rig.leading = False  # nobody acts while it wakes
    a_source(rig)
    fork = a_fork(rig, operatingMode="Standby")
    source = rig.say("web", state="Stopped", snapshot=None)
    rig.leading = True
    rig.instances.look_at_all()
    bind(rig, await pod_of(rig, fork, source))
    await placed(rig)
    assert rig.said("Scheduled", "copy")["status"] == "True"


async def test_two_forks_of_each_other_say_so_until_one_goes(rig: Rig) -> None:
    a_fork(rig, "a", of="b")
    await until(lambda: reason(rig, "a") == "SourceNotFound")
    a_fork(rig, "b", of="a")
    for name in ("a", "b"):
        await until(lambda name=name: rig.said("Stalled", name).get("status") == "True")
        assert reason(rig, name) == "ForkCycle"
    await rig.look_again()
    assert len(rig.writes("/instances/a/status")) == 2
    assert len(rig.writes("/instances/b/status")) == 1
    assert rig.pods == []
    rig.delete("b")
    await until(lambda: not rig.has("b"))
    await until(lambda: reason(rig, "a") == "SourceNotFound")
    assert rig.said("Stalled", "a") == {}


async def test_fork_behind_a_circle_waits_and_is_not_stalled(rig: Rig) -> None:
    a_fork(rig, "a", of="b")
    a_fork(rig, "b", of="a")
    a_fork(rig, "c", of="a")
    await until(lambda: reason(rig, "c") == "SourceNotReady")
    await rig.settled()
    assert rig.said("Stalled", "c") == {}


async def test_placed_fork_keeps_nobody_waiting(rig: Rig) -> None:
    a_source(rig)
    a_fork(rig, operatingMode="Stopped")
    await placed(rig)
    looked: list[str] = []
    rig.instances.look = looked.append
    uid = rig.say("web", message="something new")["metadata"]["uid"]
    await until(lambda: looked)
    assert looked == [uid]


async def test_source_that_the_watch_has_not_brought_yet_is_not_called_missing(
    rig: Rig, server: FakeApiServer
) -> None:
    rig.leading = False
    source = a_source(rig)
    fork = a_fork(rig)
    await rig.settled()
    rig.instances.known.drop(source["metadata"]["uid"])  # as at the start, half a list read
    assert await act(rig, fork) is not None, "it looks again soon"
    assert rig.writes("/instances/copy/status") == []
    rig.instances.known.put(source)
    assert await act(rig, fork) is None
    assert len(rig.pods) == 1


async def act(rig: Rig, obj: Object) -> float | None:
    """Look at one Instance, by hand, twice: finalizer, then the rest."""
    rig.leading = True
    await rig.instances.reconcile(obj["metadata"]["uid"])
    seconds = await rig.instances.reconcile(obj["metadata"]["uid"])
    rig.leading = False
    return seconds


async def test_many_forks_of_one_source_are_placed_with_two_writes_each(rig: Rig) -> None:
    a_source(rig)
    names = [f"copy-{n}" for n in range(16)]
    for name in names:
        a_fork(rig, name, operatingMode="Standby")
    for name in names:
        await placed(rig, name)
    await rig.look_again()
    assert len(rig.writes("/instances/")) == 2 * len(names)
    assert len({rig.get(name)["status"]["id"] for name in names}) == len(names)


async def test_refused_reservation_of_a_fork_is_said(rig: Rig, server: FakeApiServer) -> None:
    quota = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "exceeded quota: q"}
    server.fail(403, method="POST", path="/pods", body=quota, times=1)
    a_source(rig)
    a_fork(rig)
    await until(lambda: rig.said("Scheduled", "copy").get("reason") == "ReservationRefused")
    assert "nodeName" not in rig.get("copy")["status"]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda rig: None, "SourceNotFound"),
        (lambda rig: rig.create("web", operatingMode="Stopped"), "SourceNotReady"),
    ],
    ids=["missing", "never placed"],
)
async def test_edit_of_a_waiting_fork_is_answered_for_its_generation(
    rig: Rig, prepare: Callable[[Rig], object], said: str
) -> None:
    prepare(rig)
    a_fork(rig)
    await until(lambda: reason(rig) == said)
    obj = rig.get("copy")
    spec = {**obj["spec"], "restartPolicy": "Always"}
    rig.change("instances", "copy", spec=spec, metadata={**obj["metadata"], "generation": 2})
    await until(lambda: rig.said("Ready", "copy")["observedGeneration"] == 2)
    assert reason(rig) == said


async def test_fork_that_is_deleted_while_it_waits_goes(rig: Rig) -> None:
    a_fork(rig)
    await until(lambda: reason(rig) == "SourceNotFound")
    rig.delete("copy")
    await until(lambda: not rig.has("copy"))
