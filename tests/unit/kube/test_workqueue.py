"""The queue's promises, as cases and as a model that random use cannot break."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.errors import Blocked, Retry
from controller.kube.workqueue import Backoff, QueueClosed, WorkQueue, run_workers
from tests.waiting import until


class FakeClock:
    """Time that moves only when told to, and calls what is due on its way."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Alarm]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], Any]) -> "Alarm":
        alarm = Alarm(callback)
        heapq.heappush(self._heap, (when, id(alarm), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            when, _, alarm = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            if not alarm.cancelled:
                alarm.callback()
        self.now = end


class Alarm:
    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue("test", clock=clock, chance=lambda: 1.0)


def take(queue: WorkQueue[str]) -> str:
    """The next key, which must be there already."""
    coroutine = queue.get()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        key: str = stop.value
        return key
    coroutine.close()
    raise AssertionError("nothing is ready")


def test_a_key_added_twice_comes_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    assert queue.depth == 1
    assert take(queue) == "a"
    assert queue.depth == 0


def test_a_key_added_while_processed_comes_again_after_done_and_not_before(
    queue: WorkQueue[str],
) -> None:
    queue.add("a")
    take(queue)
    queue.add("a")
    assert queue.depth == 0
    queue.done("a")
    assert take(queue) == "a"
    queue.done("a")
    assert queue.idle


def test_of_two_delays_the_earlier_wins(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 7)
    clock.advance(4.9)
    assert queue.depth == 0
    clock.advance(0.2)
    assert take(queue) == "a"
    queue.done("a")
    clock.advance(60)
    assert queue.depth == 0


def test_no_delay_is_now(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 0)
    assert take(queue) == "a"


def test_the_heap_of_superseded_delays_is_bounded(queue: WorkQueue[str]) -> None:
    for number in range(2_000):
        queue.add_after("a", 20_000 - number)
    assert len(queue._heap) < 100


def test_back_off_doubles_up_to_the_cap_and_forget_starts_over(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    for limit in [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]:
        queue.add_rate_limited("a")
        clock.advance(limit - 0.01)
        assert queue.depth == 0
        clock.advance(0.02)
        assert take(queue) == "a"
        queue.done("a")
    queue.forget("a")
    assert queue.failures("a") == 0


def test_back_off_is_full_jitter(clock: FakeClock) -> None:
    queue = WorkQueue[str]("test", clock=clock, chance=lambda: 0.5, backoff=Backoff(10, 60))
    queue.add_rate_limited("a")
    clock.advance(4.9)
    assert queue.depth == 0
    clock.advance(0.2)
    assert queue.depth == 1


async def test_get_waits_for_a_key_and_several_takers_share(queue: WorkQueue[str]) -> None:
    takers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in "abc":
        queue.add(key)
    assert sorted(await asyncio.gather(*takers)) == ["a", "b", "c"]


async def test_a_taker_cancelled_when_woken_loses_no_key(queue: WorkQueue[str]) -> None:
    first, second = (asyncio.create_task(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 5) == "a"


async def test_after_shut_down_what_is_ready_is_drained_and_nothing_is_taken(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    queue.add("a")
    queue.add_after("b", 1)
    queue.shut_down()
    queue.add("c")
    queue.add_after("d", 1)
    clock.advance(5)
    assert await queue.get() == "a"
    with pytest.raises(QueueClosed):
        await queue.get()


async def test_workers_look_again_when_asked_to(queue: WorkQueue[str], clock: FakeClock) -> None:
    looks: list[str] = []

    async def reconcile(key: str) -> float | None:
        looks.append(key)
        return 5.0 if len(looks) == 1 else None

    workers = asyncio.create_task(run_workers(queue, reconcile, 2))
    queue.add("a")
    await until(lambda: queue.idle and looks == ["a"])
    clock.advance(5)
    await until(lambda: looks == ["a", "a"])
    clock.advance(100)
    queue.shut_down()
    await workers
    assert looks == ["a", "a"]


@pytest.mark.parametrize("error", [Retry("r"), Blocked("b"), ZeroDivisionError("z")])
async def test_a_pass_that_fails_is_tried_again_and_hurts_no_other_key(
    queue: WorkQueue[str], clock: FakeClock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    looks: list[str] = []

    async def reconcile(key: str) -> float | None:
        looks.append(key)
        if looks.count("bad") < 3 and key == "bad":
            raise error
        return None

    workers = asyncio.create_task(run_workers(queue, reconcile, 1))
    queue.add("bad")
    queue.add("good")
    await until(lambda: len(looks) == 2)
    clock.advance(0.3)
    await until(lambda: len(looks) == 3 and queue.idle)
    assert queue.failures("bad") == 2
    clock.advance(0.5)
    await until(lambda: len(looks) == 4 and queue.idle)
    assert queue.failures("bad") == 0
    assert "bad" in caplog.text
    queue.shut_down()
    await workers


async def test_a_retry_is_not_sooner_than_it_asked_for(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    looks: list[str] = []

    async def reconcile(key: str) -> float | None:
        looks.append(key)
        raise Retry("later", after=30.0)

    workers = asyncio.create_task(run_workers(queue, reconcile, 1))
    queue.add("a")
    await until(lambda: queue.idle and len(looks) == 1)
    clock.advance(29.9)
    assert queue.depth == 0
    clock.advance(0.2)
    await until(lambda: len(looks) == 2)
    queue.shut_down()
    await workers


async def test_many_keys_run_at_once_and_one_key_never_twice(queue: WorkQueue[str]) -> None:
    running: set[str] = set()
    most = 0
    gate = asyncio.Event()
    looks = dict.fromkeys("abcdefgh", 0)

    async def reconcile(key: str) -> float | None:
        nonlocal most
        assert key not in running
        running.add(key)
        looks[key] += 1
        most = max(most, len(running))
        if not gate.is_set():
            queue.add(key)  # while it runs: must not start a second pass beside this one
        await gate.wait()
        running.discard(key)
        return None

    workers = asyncio.create_task(run_workers(queue, reconcile, 4))
    for key in "abcdefgh":
        queue.add(key)
    await until(lambda: most == 4)
    first = set(running)
    gate.set()
    await until(lambda: queue.idle)
    assert looks == {key: 2 if key in first else 1 for key in "abcdefgh"}
    queue.shut_down()
    await workers


async def test_cancelled_workers_give_their_keys_back(queue: WorkQueue[str]) -> None:
    async def reconcile(key: str) -> float | None:
        await asyncio.Event().wait()
        return None

    workers = asyncio.create_task(run_workers(queue, reconcile, 2))
    queue.add("a")
    await until(lambda: queue.depth == 0)
    workers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await workers
    assert queue.idle


KEYS = st.sampled_from("abcd")


class QueueModel(RuleBasedStateMachine):
    """Against a model: which keys owe a look, which are out, which are due when."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue: WorkQueue[str] = WorkQueue("model", clock=self.clock, chance=lambda: 1.0)
        self.owed: set[str] = set()
        self.out: set[str] = set()
        self.due: dict[str, float] = {}

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=KEYS, seconds=st.integers(0, 100))
    def add_after(self, key: str, seconds: int) -> None:
        self.queue.add_after(key, seconds)
        if seconds == 0:
            self.owed.add(key)
        else:
            self.due[key] = min(self.due.get(key, float("inf")), self.clock.now + seconds)

    @rule(key=KEYS)
    def fail(self, key: str) -> None:
        wait = min(60.0, 0.2 * 2.0 ** self.queue.failures(key))
        self.queue.add_rate_limited(key)
        self.due[key] = min(self.due.get(key, float("inf")), self.clock.now + wait)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)

    @rule(seconds=st.integers(1, 150))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        for key in [key for key, when in self.due.items() if when <= self.clock.now]:
            del self.due[key]
            self.owed.add(key)

    @precondition(lambda self: self.owed - self.out)
    @rule()
    def get(self) -> None:
        key = take(self.queue)
        assert key not in self.out
        assert key in self.owed
        self.owed.discard(key)
        self.out.add(key)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.out)))
        self.queue.done(key)
        self.out.discard(key)

    @invariant()
    def what_is_owed_is_ready_and_nothing_else(self) -> None:
        assert self.queue.depth == len(self.owed - self.out)
        assert self.queue.idle == (not self.owed and not self.out)
        assert self.queue._due.keys() == self.due.keys()


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
