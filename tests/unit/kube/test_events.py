"""Events are said once and counted, bounded, and never hurt whoever says them."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from controller.kube import events
from controller.kube.client import Client
from controller.kube.events import NORMAL, WARNING, EventRecorder
from tests.fake_apiserver import FakeApiServer
from tests.waiting import until

INSTANCE = {
    "apiVersion": "torpor.dev/v1alpha1",
    "kind": "Instance",
    "metadata": {"name": "web", "namespace": "ns", "uid": "u1", "resourceVersion": "7"},
    "spec": {"image": "x"},
}
NODE = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u2"}


@pytest.fixture
async def recorder(client: Client) -> AsyncIterator[EventRecorder]:
    made = EventRecorder(client, "torpor-node", "n1", burst=100, per_second=1000)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()


def stored(server: FakeApiServer) -> list[dict[str, object]]:
    return list(server.objects.get("events", {}).values())


async def test_an_event_says_who_did_what_to_which_object(
    server: FakeApiServer, recorder: EventRecorder
) -> None:
    recorder.event(INSTANCE, NORMAL, "Started", "started on n1\nwith 2 vCPUs")
    await recorder.flush(10)
    (event,) = stored(server)
    assert event["involvedObject"] == {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "name": "web",
        "namespace": "ns",
        "uid": "u1",
    }
    assert event["message"] == "started on n1 with 2 vCPUs"
    assert (event["type"], event["reason"], event["count"]) == ("Normal", "Started", 1)
    assert event["source"] == {"component": "torpor-node", "host": "n1"}
    assert event["firstTimestamp"] == event["lastTimestamp"]
    assert server.requests[-1].path == "/api/v1/namespaces/ns/events"


async def test_events_about_a_node_live_in_default(
    server: FakeApiServer, recorder: EventRecorder
) -> None:
    recorder.event(NODE, WARNING, "NoKVM", "falls back to TCG")
    await recorder.flush(10)
    assert server.requests[-1].path == "/api/v1/namespaces/default/events"


async def test_repeats_raise_a_count_instead_of_adding_objects(
    server: FakeApiServer, recorder: EventRecorder
) -> None:
    for _ in range(3):
        recorder.event(INSTANCE, WARNING, "Died", "the VMM died")
    await recorder.flush(10)
    recorder.event(INSTANCE, WARNING, "Died", "the VMM died")
    recorder.event(INSTANCE, WARNING, "Died", "the VMM died again")
    await recorder.flush(10)
    assert sorted((event["message"], event["count"]) for event in stored(server)) == [
        ("the VMM died", 4),
        ("the VMM died again", 1),
    ]


async def test_what_the_server_forgot_is_said_anew(
    server: FakeApiServer, recorder: EventRecorder
) -> None:
    recorder.event(INSTANCE, NORMAL, "Started", "x")
    await recorder.flush(10)
    server.objects["events"].clear()
    recorder.event(INSTANCE, NORMAL, "Started", "x")
    await recorder.flush(10)
    assert [event["count"] for event in stored(server)] == [1]


async def test_an_old_event_is_not_counted_up(server: FakeApiServer, client: Client) -> None:
    now = [0.0]
    recorder = EventRecorder(client, "c", "i", clock=lambda: now[0])
    task = asyncio.create_task(recorder.run())
    recorder.event(INSTANCE, NORMAL, "Started", "x")
    await recorder.flush(10)
    now[0] = events.REPEAT_SECONDS + 1
    recorder.event(INSTANCE, NORMAL, "Started", "x")
    await recorder.flush(10)
    assert len(stored(server)) == 2
    task.cancel()


@pytest.mark.parametrize("code", [403, 404, 422, 500])
async def test_a_refused_event_is_dropped_and_the_next_one_is_said(
    server: FakeApiServer, recorder: EventRecorder, code: int
) -> None:
    server.fail(code, method="POST")
    recorder.event(INSTANCE, NORMAL, "One", "refused")
    await recorder.flush(10)
    recorder.event(INSTANCE, NORMAL, "Two", "said")
    await recorder.flush(10)
    assert [event["reason"] for event in stored(server)] == ["Two"]


async def test_while_the_server_is_away_events_wait(
    server: FakeApiServer, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.01)
    await server.stop()
    recorder.event(INSTANCE, NORMAL, "One", "1")
    recorder.event(INSTANCE, NORMAL, "Two", "2")
    await recorder.flush(0.1)
    await server.start()
    await recorder.flush(10)
    assert [event["reason"] for event in stored(server)] == ["One", "Two"]


async def test_the_box_is_bounded_and_keeps_the_newest(
    server: FakeApiServer, client: Client
) -> None:
    recorder = EventRecorder(client, "c", "i")
    for number in range(events.BOX + 10):
        recorder.event(INSTANCE, NORMAL, "Many", str(number))
    assert len(recorder._box) == events.BOX
    assert next(iter(recorder._box.values())).message == "10"


async def test_what_is_remembered_is_bounded(client: Client) -> None:
    recorder = EventRecorder(client, "c", "i")
    for number in range(events.REMEMBERED + 10):
        recorder._remember(("u", "t", "r", str(number)), "name", 1)
    assert len(recorder._written) == events.REMEMBERED


async def test_events_wait_until_nothing_more_is_said(
    server: FakeApiServer, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LINGER_SECONDS", 60.0)
    monkeypatch.setattr(events, "LONGEST_SECONDS", 0.3)
    began = time.monotonic()
    for number in range(3):
        recorder.event(INSTANCE, NORMAL, "Many", str(number))
        await asyncio.sleep(0)
    await until(lambda: len(stored(server)) == 3)
    assert server.requests[0].at - began >= 0.3 - 0.01


async def test_a_flush_does_not_wait_for_silence(
    server: FakeApiServer, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LINGER_SECONDS", 60.0)
    monkeypatch.setattr(events, "LONGEST_SECONDS", 60.0)
    recorder.event(INSTANCE, NORMAL, "One", "1")
    await asyncio.sleep(0)
    await recorder.flush(10)
    assert len(stored(server)) == 1


async def test_the_rate_is_bounded(server: FakeApiServer, client: Client) -> None:
    recorder = EventRecorder(client, "c", "i", burst=3, per_second=50)
    task = asyncio.create_task(recorder.run())
    for number in range(8):
        recorder.event(INSTANCE, NORMAL, "Many", str(number))
    await until(lambda: len(stored(server)) == 8)
    assert server.requests[-1].at - server.requests[0].at >= 0.06  # five beyond the burst
    task.cancel()


async def test_messages_are_cut_to_what_the_api_takes(
    server: FakeApiServer, recorder: EventRecorder
) -> None:
    recorder.event(INSTANCE, NORMAL, "Long", "x" * 5000)
    await recorder.flush(10)
    (event,) = stored(server)
    assert len(str(event["message"])) == events.MESSAGE_LIMIT
