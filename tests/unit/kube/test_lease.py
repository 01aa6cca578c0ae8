"""Leases: one leader, honest about having lost it; heartbeats that respect a living rival."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from controller.errors import Rejected
from controller.kube.client import Client, Patience
from controller.kube.lease import LeaderLease, NodeLease
from tests.fake_apiserver import FakeApiServer
from tests.waiting import until

ONE_TRY = Patience(attempt=1.0, connect=1.0, total=1.0, attempts=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def hasty(server: FakeApiServer, tmp_path: Path) -> Client:
    return await Client.connect(
        server.kubeconfig(tmp_path / "hasty"), user_agent="t", patience=ONE_TRY
    )


def leader(client: Client, identity: str, clock: Clock, **how: float) -> LeaderLease:
    return LeaderLease(
        client, "torpor-operator", "ns", identity, clock=clock, retry=how.pop("retry", 0.01), **how
    )


def lease(server: FakeApiServer, name: str = "torpor-operator") -> dict[str, object]:
    spec: dict[str, object] = server.get("leases", name, "ns")["spec"]
    return spec


async def stopped(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_the_first_takes_it_and_a_second_waits_while_it_is_renewed(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first, second = leader(client, "one", clock), leader(client, "two", clock)
    await first.acquire()
    assert first.is_leader
    assert lease(server)["holderIdentity"] == "one"
    renewing = asyncio.create_task(first.run(lambda: None))
    waiting = asyncio.create_task(second.acquire())
    for _ in range(5):
        enough = server.count("PATCH") + 2
        clock.now += 9
        await until(partial(lambda enough: server.count("PATCH") >= enough, enough))
    assert first.is_leader
    assert not second.is_leader
    assert not waiting.done()
    await stopped(waiting)
    await stopped(renewing)


async def test_a_silent_leader_is_replaced_after_its_duration_and_not_before(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first, second = leader(client, "one", clock), leader(client, "two", clock)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await until(lambda: server.count("GET") > 4)
    clock.now += 14.9
    looks = server.count("GET")
    await until(lambda: server.count("GET") > looks + 3)
    assert not waiting.done()
    clock.now += 0.2
    await asyncio.wait_for(waiting, 10)
    assert second.is_leader
    assert not first.is_leader
    assert lease(server)["leaseTransitions"] == 1


async def test_a_clean_exit_releases_it_at_once(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first, second = leader(client, "one", clock), leader(client, "two", clock)
    await first.acquire()
    renewing = asyncio.create_task(first.run(lambda: None))
    await until(lambda: server.count("PATCH") > 0)
    await stopped(renewing)
    assert lease(server)["holderIdentity"] == ""
    assert not first.is_leader
    await asyncio.wait_for(second.acquire(), 10)
    assert second.is_leader


async def test_whoever_is_replaced_hears_of_it(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first = leader(client, "one", clock)
    await first.acquire()
    stolen = server.get("leases", "torpor-operator", "ns")
    stolen["spec"] |= {"holderIdentity": "two", "renewTime": "2026-01-01T00:00:00.000000Z"}
    server.put("leases", stolen)
    lost: list[bool] = []
    await asyncio.wait_for(first.run(lambda: lost.append(first.is_leader)), 10)
    assert lost == [False]
    assert lease(server)["holderIdentity"] == "two"


async def test_without_the_server_leadership_ends_before_anybody_else_may_lead(
    server: FakeApiServer, hasty: Client, clock: Clock
) -> None:
    first = leader(hasty, "one", clock)
    await first.acquire()
    lost = asyncio.Event()
    running = asyncio.create_task(first.run(lost.set))
    await server.stop()
    clock.now += 9.9
    assert first.is_leader
    clock.now += 0.2
    assert not first.is_leader  # at once, whatever the event loop is doing
    await asyncio.wait_for(lost.wait(), 10)
    await running
    await hasty.close()


async def test_a_burst_of_failures_shorter_than_the_deadline_is_survived(
    server: FakeApiServer, hasty: Client, clock: Clock
) -> None:
    first = leader(hasty, "one", clock)
    await first.acquire()
    server.fail(500, times=5, act=True)
    server.fail(409, times=2)
    running = asyncio.create_task(first.run(lambda: None))
    await until(lambda: server.count("PATCH") > 12)
    assert first.is_leader
    await stopped(running)
    await hasty.close()


async def test_one_connection_that_hangs_leaves_time_for_a_second(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first = LeaderLease(client, "l", "ns", "one", renew=0.6, retry=0.01, clock=clock)
    await first.acquire()
    running = asyncio.create_task(first.run(lambda: None))
    server.fail(0, hold=True)
    writes = server.count("PATCH")
    await until(lambda: server.count("PATCH") > writes + 3)
    assert first.is_leader
    assert not running.done()
    await stopped(running)


async def test_a_heartbeat_that_hangs_is_given_up(server: FakeApiServer, client: Client) -> None:
    node = NodeLease(client, "n1", "ns", interval=0.3)
    assert await node.beat()
    server.fail(0, hold=True, times=1)
    assert not await node.beat()
    assert await node.beat()


def test_deadlines_that_cannot_work_are_refused(clock: Clock) -> None:
    with pytest.raises(Rejected):
        LeaderLease(None, "l", "ns", "one", duration=5, renew=5, retry=1)  # type: ignore[arg-type]


async def test_a_heartbeat_creates_its_lease_and_renews_it(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1"}
    node = NodeLease(client, "n1", "ns", clock=clock, owner=owner)
    for _ in range(4):
        assert await node.beat()
    assert node.held
    assert server.get("leases", "n1", "ns")["metadata"]["ownerReferences"] == [owner]
    # It remembers what it wrote: one write a beat, no read.
    assert [seen.method for seen in server.requests] == ["GET", "POST", "PATCH", "PATCH", "PATCH"]
    clock.now += 41
    assert not node.held


async def test_a_heartbeat_outlives_every_failure(
    server: FakeApiServer, hasty: Client, clock: Clock
) -> None:
    node = NodeLease(hasty, "n1", "ns", clock=clock, interval=0.1)
    running = asyncio.create_task(node.run())
    await until(lambda: server.count("PATCH") > 2)
    server.fail(500, times=3)
    server.fail(403, times=3)
    server.fail(409, times=3)
    server.remove("leases", "n1", "ns")
    await until(lambda: server.count("POST") > 1)
    await server.stop()
    await server.start()
    beats = server.count("PATCH")
    await until(lambda: server.count("PATCH") > beats)
    await stopped(running)
    await hasty.close()


async def test_a_second_agent_waits_until_the_first_is_silent(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    first = NodeLease(client, "n1", "ns", identity="a", clock=clock)
    second = NodeLease(client, "n1", "ns", identity="b", clock=clock)
    assert await first.beat()
    assert not await second.beat()
    assert second.contested is not None
    assert "held by a" in second.contested
    clock.now += 39
    assert await first.beat()
    clock.now += 39
    assert not await second.beat()
    assert not second.held
    clock.now += 41
    assert await second.beat()
    assert second.contested is None
    assert not await first.beat()
    assert first.contested is None  # a lost race; the next beat reads who has it
    assert not await first.beat()
    assert first.contested is not None


async def test_a_restarted_agent_of_the_same_identity_need_not_wait(
    server: FakeApiServer, client: Client, clock: Clock
) -> None:
    assert await NodeLease(client, "n1", "ns", identity="a", clock=clock).beat()
    assert await NodeLease(client, "n1", "ns", identity="a", clock=clock).beat()
