"""The reflector against every way a watch can go wrong. Timings are short, nothing sleeps."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from controller import errors as tree
from controller.kube.client import PODS, Client
from controller.kube.reflector import Reflector, Timing
from tests.fake_apiserver import FakeApiServer
from tests.waiting import until

Object = dict[str, Any]
QUICK = Timing(
    stall=30.0, connect_spacing=0.0, list_spacing=0.0, backoff=0.001, backoff_cap=0.01,
    watch_min=60, watch_max=60,
)  # fmt: skip


class Follower:
    """A reflector, and all that it told."""

    def __init__(self, client: Client, timing: Timing = QUICK, **how: Any) -> None:
        self.told: list[tuple[str | None, str | None]] = []
        self.reflector = Reflector(client, PODS, on_change=self._told, timing=timing, **how)

    def _told(self, uid: str, old: Object | None, new: Object | None) -> None:
        assert self.reflector.get(uid) == new
        self.told.append((_name(old), _name(new)))

    @property
    def names(self) -> list[str]:
        return sorted(obj["metadata"]["name"] for _, obj in self.reflector.items())


def _name(obj: Object | None) -> str | None:
    return None if obj is None else obj["metadata"]["name"]


@asynccontextmanager
async def following(client: Client, timing: Timing = QUICK, **how: Any) -> AsyncIterator[Follower]:
    follower = Follower(client, timing, **how)
    task = asyncio.create_task(follower.reflector.run())
    try:
        await asyncio.wait_for(follower.reflector.wait_synced(), 10)
        yield follower
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def pod(name: str, **spec: object) -> Object:
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": spec}


def watching(server: FakeApiServer, times: int = 1) -> Callable[[], bool]:
    """So many watches were opened, and one is open now."""
    return lambda: server.count("GET", watch=True) >= times and len(server.watchers) == 1


async def test_it_mirrors_what_was_there_and_what_changes(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        assert follower.names == ["a"]
        await until(watching(server))
        server.put("pods", pod("b"))
        server.put("pods", pod("a", x=1))
        server.remove("pods", "b", "ns")
        await until(lambda: follower.told[-1:] == [("b", None)])
        assert follower.told == [(None, "a"), (None, "b"), ("a", "a"), ("b", None)]
        assert server.count("GET") == 1


async def test_it_is_not_synced_before_a_complete_list(
    server: FakeApiServer, client: Client
) -> None:
    for number in range(700):
        server.put("pods", pod(f"p{number:03}"))
    fault = server.fail(500, times=10_000)
    follower = Follower(client)
    task = asyncio.create_task(follower.reflector.run())
    await until(lambda: server.count("GET") > 10)
    assert not follower.reflector.synced
    assert not follower.reflector.healthy
    assert follower.told == []
    original, pages = server._list, []

    def second_page_fails(plural: str, namespace: str, query: dict[str, str]) -> Any:
        pages.append(query)
        if "continue" in query and len(pages) < 12:
            raise ConnectionResetError
        return original(plural, namespace, query)

    server._list = second_page_fails  # type: ignore[method-assign]
    fault.times = 0
    await until(lambda: len(pages) > 6)
    assert not follower.reflector.synced
    assert follower.told == []
    await until(lambda: follower.reflector.synced)
    assert len(follower.reflector) == 700
    assert follower.reflector.healthy
    task.cancel()


async def test_an_empty_list_is_a_list(client: Client) -> None:
    async with following(client) as follower:
        assert follower.reflector.synced
        assert follower.names == []


async def test_a_failed_relist_keeps_the_cache(server: FakeApiServer, client: Client) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        fault = server.fail(404, times=10_000, body={"message": "404 page not found"})
        server.compact()
        server.cut()
        await until(lambda: fault.times < 9_990)
        assert follower.told == [(None, "a")]
        assert follower.reflector.synced
        fault.times = 0
        await until(watching(server))
        assert follower.told == [(None, "a")]


@pytest.mark.parametrize("as_event", [True, False])
async def test_after_410_it_lists_again_and_reports_what_vanished(
    server: FakeApiServer, client: Client, as_event: bool
) -> None:
    server.no_expired_status = as_event
    for name in "abc":
        server.put("pods", pod(name))
    async with following(client) as follower:
        await until(watching(server))
        server.mute()
        server.remove("pods", "b", "ns")
        server.put("pods", pod("c", x=1))
        server.put("pods", pod("d"))
        server.compact()
        server.cut()
        await until(lambda: follower.names == ["a", "c", "d"])
        assert sorted(map(str, follower.told[3:])) == sorted(
            map(str, [("c", "c"), (None, "d"), ("b", None)])
        )
        assert server.count("GET") == 2


async def test_a_successor_of_the_same_name_is_another_object(
    server: FakeApiServer, client: Client
) -> None:
    first = server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        server.mute()
        server.remove("pods", "a", "ns")
        second = server.put("pods", pod("a"))
        server.compact()
        server.cut()
        await until(lambda: len(follower.told) == 3)
        assert follower.reflector.get(first["metadata"]["uid"]) is None
        assert follower.reflector.get(second["metadata"]["uid"]) is not None
        assert sorted(map(str, follower.told[1:])) == sorted(map(str, [(None, "a"), ("a", None)]))


async def test_a_clean_close_is_resumed_where_it_ended_and_without_a_list(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        server.put("pods", pod("b"))
        await until(lambda: follower.names == ["a", "b"])
        version = str(server.version)
        server.cut()
        await until(watching(server, 2))
        assert server.requests[-1].query["resourceVersion"] == version
        assert server.count("GET") == 1
        assert follower.told == [(None, "a"), (None, "b")]


async def test_a_server_that_closes_at_once_is_not_hammered(
    server: FakeApiServer, client: Client
) -> None:
    began = time.monotonic()
    async with following(client, replace(QUICK, connect_spacing=0.1)):
        while server.count("GET", watch=True) < 4:
            server.cut()
            await asyncio.sleep(0)
        assert time.monotonic() - began >= 0.3


async def test_relists_keep_their_distance(server: FakeApiServer, client: Client) -> None:
    server.fail(410, watch=True, times=3)
    began = time.monotonic()
    async with following(client, replace(QUICK, list_spacing=0.1)):
        await until(watching(server, 4))
        assert server.count("GET") == 4
        assert time.monotonic() - began >= 0.3


async def test_a_stalled_stream_is_left_and_nothing_is_missed(
    server: FakeApiServer, client: Client
) -> None:
    async with following(client, replace(QUICK, stall=0.1)) as follower:
        await until(watching(server))
        server.mute()
        server.put("pods", pod("a"))
        await until(lambda: follower.names == ["a"])
        assert server.count("GET") == 1


async def test_a_stream_that_says_something_now_and_then_is_not_left(
    server: FakeApiServer, client: Client
) -> None:
    async with following(client, replace(QUICK, stall=0.5)) as follower:
        await until(watching(server))
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            server.bookmark()
            await until(lambda: follower.reflector._version == str(server.version))
        assert server.count("GET", watch=True) == 1


async def test_half_a_line_is_no_sign_of_life(server: FakeApiServer, client: Client) -> None:
    async with following(client, replace(QUICK, stall=0.1)) as follower:
        await until(watching(server))
        while server.count("GET", watch=True) < 2:
            server.say(b" ")
            await asyncio.sleep(0.005)
        server.put("pods", pod("a"))
        await until(lambda: follower.names == ["a"])


async def test_lines_may_come_in_any_pieces(server: FakeApiServer, client: Client) -> None:
    async with following(client) as follower:
        await until(watching(server))
        obj = {**pod("äöü", text="…" * 100)}
        obj["metadata"] |= {"uid": "u1", "resourceVersion": "900"}
        event = json.dumps({"type": "ADDED", "object": obj}, ensure_ascii=False).encode() + b"\n"
        for byte in event:
            server.say(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: follower.names == ["äöü"])


async def test_a_half_line_at_the_end_of_a_stream_is_read_again_whole(
    server: FakeApiServer, client: Client
) -> None:
    async with following(client) as follower:
        await until(watching(server))
        server.say(b'{"type":"ADDED","object":{"metadata":{"na')
        server.mute()
        server.put("pods", pod("a"))
        server.cut()
        await until(lambda: follower.told == [(None, "a")])


@pytest.mark.parametrize(
    "garbage",
    [b"not json\n", b"[]\n", b'{"type":"ADDED","object":{}}\n', b'{"type":"ADDED"}\n',
     b'{"type":"ERROR","object":{"code":500,"message":"etcd"}}\n',
     b'{"type":"ERROR","object":{"code":429,"message":"slow"}}\n'],
)  # fmt: skip
async def test_garbage_and_errors_in_the_stream_are_outlived(
    server: FakeApiServer, client: Client, garbage: bytes
) -> None:
    async with following(client) as follower:
        await until(watching(server))
        server.say(garbage)
        await until(watching(server, 2))
        server.put("pods", pod("a"))
        await until(lambda: follower.told == [(None, "a")])


async def test_an_endless_line_is_cut_off(
    server: FakeApiServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controller.kube import lines, reflector

    monkeypatch.setattr(reflector, "LineSplitter", lambda: lines.LineSplitter(10_000))
    async with following(client) as follower:
        await until(watching(server))
        for _ in range(11):
            server.say(b"x" * 1000)
        await until(watching(server, 2))
        server.put("pods", pod("a"))
        await until(lambda: follower.names == ["a"])


async def test_a_watch_that_keeps_failing_is_listed_anew(
    server: FakeApiServer, client: Client
) -> None:
    async with following(client) as follower:
        await until(watching(server))
        server.fail(504, watch=True, times=5)
        server.cut()
        await until(lambda: server.count("GET") == 2)
        server.put("pods", pod("a"))
        await until(lambda: follower.names == ["a"])


async def test_a_bookmark_moves_the_place_to_resume(server: FakeApiServer, client: Client) -> None:
    async with following(client) as follower:
        await until(watching(server))
        server.bookmark()
        version = server.version
        server.cut()
        await until(watching(server, 2))
        assert server.requests[-1].query["resourceVersion"] == str(version)
        server.compact()  # nothing older than the bookmark is left, and nothing older is asked for
        server.cut()
        await until(watching(server, 3))
        assert server.count("GET") == 1
        assert follower.reflector.last_event_age() < 10


async def test_a_server_that_goes_away_and_comes_back_is_followed_again(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        await server.stop()
        server.put("pods", pod("b"))
        await server.start()
        await until(lambda: follower.names == ["a", "b"])


async def test_its_age_grows_and_its_health_ends_when_nothing_comes(
    server: FakeApiServer, client: Client
) -> None:
    now = [0.0]
    async with following(client, clock=lambda: now[0]) as follower:
        await until(watching(server))
        assert follower.reflector.healthy
        now[0] = 61.0
        assert follower.reflector.last_event_age() == 61.0
        assert not follower.reflector.healthy
        server.bookmark()
        await until(lambda: follower.reflector.healthy)


async def test_leaving_the_selector_is_reported_as_gone(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a", nodeName="n1"))
    server.put("pods", pod("b", nodeName="n2"))
    async with following(client, field_selector="spec.nodeName=n1") as follower:
        assert follower.names == ["a"]


async def test_write_through_is_seen_at_once_and_what_leads_up_to_it_is_no_step_back(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        for watcher in server.watchers:
            watcher.muted = True
        await client.patch(PODS, "a", {"spec": {"x": 0}}, namespace="ns")
        patched = await client.patch(PODS, "a", {"spec": {"x": 1}}, namespace="ns")
        uid = patched["metadata"]["uid"]
        follower.reflector.put(patched)
        assert follower.reflector.get(uid) == patched
        server.put("pods", pod("b"))
        server.cut()
        await until(lambda: "b" in follower.names)
        assert follower.told == [(None, "a"), ("a", "a"), (None, "b")]


async def test_write_through_never_brings_back_what_is_gone_or_older(
    server: FakeApiServer, client: Client
) -> None:
    old = server.put("pods", pod("a"))
    async with following(client) as follower:
        await until(watching(server))
        server.put("pods", pod("a", x=2))
        await until(lambda: len(follower.told) == 2)
        follower.reflector.put(old)
        assert len(follower.told) == 2
        server.remove("pods", "a", "ns")
        await until(lambda: follower.told[-1] == ("a", None))
        old["metadata"]["resourceVersion"] = "99999"
        follower.reflector.put(old)
        assert follower.names == []


async def test_a_write_through_younger_than_a_relist_survives_it(
    server: FakeApiServer, client: Client
) -> None:
    async with following(client) as follower:
        young = {**pod("a")}
        young["metadata"] |= {"uid": "u1", "resourceVersion": "5000"}
        follower.reflector.put(young)
        follower.reflector._replace([], 200)
        assert follower.names == ["a"]
        follower.reflector._replace([], 300)
        assert follower.names == []


async def test_a_fresh_list_asks_the_server_and_fails_as_a_whole(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    async with following(client) as follower:
        assert [_name(obj) for obj in await follower.reflector.fresh_list()] == ["a"]
        server.fail(500, times=99, watch=False)
        with pytest.raises(tree.Retry):
            await follower.reflector.fresh_list()
        await server.stop()
        with pytest.raises(tree.Unreachable):
            await follower.reflector.fresh_list()


async def test_what_nobody_reads_is_not_kept(server: FakeApiServer, client: Client) -> None:
    fat = pod("a")
    fat["metadata"]["managedFields"] = [{"manager": "x"}]
    server.put("pods", fat)
    async with following(client) as follower:
        ((_, obj),) = follower.reflector.items()
        assert "managedFields" not in obj["metadata"]


async def test_a_consumer_that_raises_does_not_stop_the_mirror(
    server: FakeApiServer, client: Client
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    reflector = Reflector(client, PODS, on_change=broken, timing=QUICK)
    task = asyncio.create_task(reflector.run())
    await until(watching(server))
    server.put("pods", pod("a"))
    server.put("pods", pod("b"))
    await until(lambda: len(reflector) == 2)
    task.cancel()


async def test_new_credentials_are_read_when_the_watch_is_refused(
    server: FakeApiServer, tmp_path: Any
) -> None:
    (tmp_path / "token").write_text("old")
    server.token = "old"
    client = await Client.connect(
        server.kubeconfig(tmp_path / "k", {"tokenFile": "token"}), user_agent="t"
    )
    async with following(client):
        await until(watching(server))
        (tmp_path / "token").write_text("new")
        server.token = "new"
        server.cut()
        await until(lambda: not server.watchers)
        await until(lambda: len(server.watchers) == 1)
    await client.close()
