"""The kube room against a real kube-apiserver: what the in-process fake cannot prove."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.kube import errors
from controller.kube.client import INSTANCES, NAMESPACES, NODES, Client
from controller.kube.events import NORMAL, EventRecorder
from controller.kube.lease import LeaderLease, NodeLease
from controller.kube.reflector import Reflector, Timing
from controller.kube.resources import Resource
from tests.clusterkit import Kubectl
from tests.waiting import until

CONFIGMAPS = Resource("", "v1", "configmaps", True, "ConfigMap")


@pytest.fixture
async def client(kubeconfig: Path) -> AsyncIterator[Client]:
    connected = await Client.connect(kubeconfig, user_agent="torpor-test")
    yield connected
    await connected.close()


def settings(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"mine": "yes"}}, "data": data}


async def create_until_refused(client: Client, namespace: str) -> None:
    """The admission's own cache learns a moment later that a namespace is going."""
    while True:
        with suppress(errors.AlreadyExists):
            await client.create(CONFIGMAPS, settings("late"), namespace)


async def test_the_server_distinguishes_gone_objects_from_gone_kinds(
    client: Client, namespace: str
) -> None:
    assert await client.get(CONFIGMAPS, "none", namespace) is None
    assert await client.get(INSTANCES, "none", namespace) is None
    assert await client.delete(INSTANCES, "none", namespace) is False
    unknown = Resource("torpor.dev", "v1alpha1", "nosuchkinds", True, "NoSuchKind")
    for call in (client.get(unknown, "a", namespace), client.delete(unknown, "a", namespace),
                 client.list(unknown)):  # fmt: skip
        with pytest.raises(errors.NotFound):
            await call
    absent = Resource("absent.example", "v1", "things", True, "Thing")
    with pytest.raises(errors.NotFound):
        await client.get(absent, "a", namespace)


async def test_real_refusals_become_the_errors_that_say_what_next(
    client: Client, namespace: str
) -> None:
    made = await client.create(CONFIGMAPS, settings("a"), namespace)
    with pytest.raises(errors.AlreadyExists):
        await client.create(CONFIGMAPS, settings("a"), namespace)
    stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}}
    await client.patch(CONFIGMAPS, "a", {"data": {"x": "1"}}, namespace=namespace)
    with pytest.raises(errors.Conflict):
        await client.patch(CONFIGMAPS, "a", {**stale, "data": {"x": "2"}}, namespace=namespace)
    with pytest.raises(errors.Conflict):
        await client.delete(CONFIGMAPS, "a", namespace, uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(errors.Invalid):
        await client.create(CONFIGMAPS, {"metadata": {"name": "Not A Name"}}, namespace)
    with pytest.raises(errors.NotFound):
        await client.patch(CONFIGMAPS, "none", {}, namespace=namespace)
    uid = made["metadata"]["uid"]
    assert await client.delete(CONFIGMAPS, "a", namespace, uid=uid)


async def test_creating_in_a_terminating_namespace_says_so(client: Client) -> None:
    body = {"metadata": {"generateName": "t-ending-"}, "spec": {}}
    ending = (await client.create(NAMESPACES, body))["metadata"]["name"]
    held = {"metadata": {"name": "hold", "finalizers": ["torpor.dev/test"]}}
    await client.create(CONFIGMAPS, held, ending)
    await client.delete(NAMESPACES, ending)
    try:
        with pytest.raises(errors.Forbidden) as raised:
            await create_until_refused(client, ending)
        assert raised.value.reason == "NamespaceTerminating"
    finally:
        await client.patch(CONFIGMAPS, "hold", {"metadata": {"finalizers": None}}, namespace=ending)


async def test_a_list_of_several_pages_is_whole(client: Client, namespace: str) -> None:
    names = [f"c{number:04}" for number in range(1001)]
    for start in range(0, len(names), 50):
        batch = names[start : start + 50]
        await asyncio.gather(*(client.create(CONFIGMAPS, settings(n), namespace) for n in batch))
    items, _ = await client.list(CONFIGMAPS, namespace, label_selector="mine=yes")
    assert [item["metadata"]["name"] for item in items] == names
    assert {item["kind"] for item in items} == {"ConfigMap"}


async def test_a_reflector_follows_a_real_watch_over_reconnects(
    client: Client, namespace: str
) -> None:
    told: list[tuple[bool, bool]] = []
    reflector = Reflector(
        client, CONFIGMAPS, namespace=namespace, label_selector="mine=yes",
        timing=Timing(connect_spacing=0.0, list_spacing=0.0, watch_min=1, watch_max=1),
        on_change=lambda uid, old, new: told.append((old is not None, new is not None)),
    )  # fmt: skip
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(reflector.wait_synced(), 20)
    made = await client.create(CONFIGMAPS, settings("a"), namespace)
    uid = made["metadata"]["uid"]
    await until(lambda: reflector.get(uid) is not None)
    for number in range(3):  # each round outlives a watch of one second
        await until(partial(lambda ended: reflector._last_connect > ended, reflector._last_connect))
        data = {"x": str(number)}
        await client.patch(CONFIGMAPS, "a", {"data": data}, namespace=namespace)
        await until(partial(lambda want: reflector.get(uid).get("data") == want, data))
    left = {"metadata": {"labels": {"mine": "no"}}}
    await client.patch(CONFIGMAPS, "a", left, namespace=namespace)
    await until(lambda: reflector.get(uid) is None)
    assert told == [(False, True)] + [(True, True)] * 3 + [(True, False)]
    await client.create(CONFIGMAPS, settings("b"), namespace)
    (fresh,) = await reflector.fresh_list()
    assert fresh["metadata"]["name"] == "b"
    assert "managedFields" not in fresh["metadata"]
    task.cancel()


async def test_events_are_shown_by_describe_and_by_events(
    client: Client, namespace: str, kubectl: Kubectl
) -> None:
    made = await client.create(CONFIGMAPS, settings("a"), namespace)
    body = {"metadata": {"generateName": "t-node-"}}
    node = await client.create(NODES, body)
    recorder = EventRecorder(client, "torpor-test", "n1")
    task = asyncio.create_task(recorder.run())
    for _ in range(3):
        recorder.event(made, NORMAL, "Started", "started on n1")
        await recorder.flush(10)
    recorder.event(node, NORMAL, "Proven", "KVM boots guests")
    await recorder.flush(10)
    listed = (await asyncio.to_thread(kubectl, "events", "--for=configmap/a")).stdout
    assert "x3 over" in listed
    assert "started on n1" in listed
    described = (await asyncio.to_thread(kubectl, "describe", "configmap", "a")).stdout
    assert "Started" in described
    assert "torpor-test" in described
    name = node["metadata"]["name"]
    described = (await asyncio.to_thread(kubectl, "describe", "node", name)).stdout
    assert "KVM boots guests" in described
    task.cancel()
    await client.delete(NODES, name)


async def test_leases_work_as_the_server_validates_them(client: Client, namespace: str) -> None:
    first = LeaderLease(client, "lead", namespace, "one", duration=5, renew=4, retry=0.05)
    second = LeaderLease(client, "lead", namespace, "two", duration=5, renew=4, retry=0.05)
    await asyncio.wait_for(first.acquire(), 10)
    running = asyncio.create_task(first.run(lambda: None))
    waiting = asyncio.create_task(second.acquire())
    await asyncio.wait({waiting}, timeout=0.5)
    assert not waiting.done()
    running.cancel()
    await asyncio.wait_for(waiting, 4)  # released: no need to wait for the five seconds
    assert second.is_leader
    assert not first.is_leader
    node = NodeLease(client, "n1", namespace)
    assert await node.beat()
    assert await node.beat()
