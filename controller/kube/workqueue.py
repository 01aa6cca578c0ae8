"""A keyed work queue with client-go's promises, and the workers that drain it.

- A key is never handed out twice at once; added again meanwhile, it comes once more after ``done``.
- Adding a waiting key again changes nothing: work is *look at this key*, not an event.
- Nothing added is lost until ``shut_down``.

Retries live here, in memory, and cost the API server nothing. What does not live here: what a key
means, or anything durable; a restart looks at every key anyway.
"""

import asyncio
import heapq
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from controller import metrics
from controller.errors import Retry, TorporError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class QueueClosed(Exception):
    """``get`` after ``shut_down``, once nothing is waiting."""


class Clock(Protocol):
    """What the queue needs of time; an asyncio event loop is one."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], Any]) -> Any: ...


@dataclass(frozen=True)
class Backoff:
    """Delay after the n-th failure of a key: uniform in 0 .. min(cap, base * 2**n) seconds."""

    base: float = 0.2
    cap: float = 60.0

    def limit(self, failures: int) -> float:
        return float(min(self.cap, self.base * 2.0 ** min(failures, 64)))


class WorkQueue(Generic[K]):
    """Keys to look at, now or later. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        name: str = "main",
        *,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``name`` labels metrics; ``chance`` returns a number in 0..1."""
        self.name = name
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._chance = chance
        self._ready: deque[K] = deque()
        self._dirty: dict[K, float] = {}  # key -> since when it wants a look
        self._processing: set[K] = set()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._alarm: Any = None
        self._alarm_at = float("inf")
        self._takers: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._depth = metrics.QUEUE_DEPTH.labels(name)
        self._wait = metrics.QUEUE_SECONDS.labels(name)
        self._retries = metrics.QUEUE_RETRIES.labels(name)

    @property
    def depth(self) -> int:
        """Keys that are ready now."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing is ready and nothing is being processed (delayed keys may exist)."""
        return not self._dirty and not self._processing

    def failures(self, key: K) -> int:
        """How often ``key`` failed since it was last forgotten."""
        return self._failures.get(key, 0)

    def add(self, key: K) -> None:
        """Look at ``key`` as soon as possible."""
        if self._closed or key in self._dirty:
            return
        self._dirty[key] = self._time()
        if key not in self._processing:
            self._make_ready(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Look at ``key`` no later than in ``seconds``; of several such calls the earliest wins."""
        if self._closed:
            return
        if seconds <= 0:
            self.add(key)
            return
        when = self._time() + seconds
        if when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, key))
        self._drop_stale()
        self._set_alarm()

    def add_rate_limited(self, key: K, at_least: float = 0.0) -> None:
        """Look again after a back-off that doubles with every failure until ``forget``."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._retries.inc()
        delay = self._chance() * self._backoff.limit(failures)
        self.add_after(key, max(at_least, delay))

    def forget(self, key: K) -> None:
        """``key`` succeeded, or is gone: the next failure starts at the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; the caller owns it until ``done``. Raises QueueClosed after shut_down."""
        while not self._ready:
            if self._closed:
                raise QueueClosed(self.name)
            await self._wait_for_work()
        key = self._ready.popleft()
        self._depth.set(len(self._ready))
        self._wait.observe(max(0.0, self._time() - self._dirty.pop(key)))
        self._processing.add(key)
        return key

    def done(self, key: K) -> None:
        """Give ``key`` back. If it was added meanwhile it is ready again."""
        self._processing.discard(key)
        if key in self._dirty:
            self._make_ready(key)

    def shut_down(self) -> None:
        """Take nothing more, drop what is delayed; what is ready is still handed out."""
        self._closed = True
        self._heap.clear()
        self._due.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)

    def _time(self) -> float:
        if self._clock is None:
            self._clock = asyncio.get_running_loop()
        return self._clock.time()

    def _make_ready(self, key: K) -> None:
        self._ready.append(key)
        self._depth.set(len(self._ready))
        self._wake_one()

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    async def _wait_for_work(self) -> None:
        taker = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        try:
            await taker
        except asyncio.CancelledError:
            # Woken and cancelled at once: the key that woke us belongs to somebody else now.
            if taker.done() and not taker.cancelled() and self._ready:
                self._wake_one()
            raise

    def _drop_stale(self) -> None:
        """Superseded entries stay in the heap until their time: bound them."""
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def _set_alarm(self) -> None:
        if not self._heap or self._heap[0][0] >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._heap[0][0]
        assert self._clock is not None
        self._alarm = self._clock.call_at(self._alarm_at, self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, float("inf")
        # A loop's clock has a resolution: what is due within it is due now.
        now = self._time() + 0.001
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)
        self._set_alarm()


async def run_workers(
    queue: WorkQueue[K], reconcile: Callable[[K], Awaitable[float | None]], n: int = 8
) -> None:
    """Drain ``queue`` with ``n`` workers until ``shut_down`` or cancellation.

    ``reconcile(key)`` returns the seconds until it wants the next look, or None. What it raises is
    logged with the key and retried with back-off; ``Retry.after`` is honoured as the least delay.
    """
    async with asyncio.TaskGroup() as group:
        for number in range(n):
            group.create_task(_work(queue, reconcile), name=f"{queue.name}-worker-{number}")


async def _work(queue: WorkQueue[K], reconcile: Callable[[K], Awaitable[float | None]]) -> None:
    seconds = metrics.PASS_SECONDS.labels(queue.name)
    while True:
        try:
            key = await queue.get()
        except QueueClosed:
            return
        began = time.perf_counter()
        try:
            await _one_pass(queue, reconcile, key)
        finally:
            seconds.observe(time.perf_counter() - began)
            queue.done(key)
        await asyncio.sleep(0)  # passes that never wait must not starve the loop


async def _one_pass(
    queue: WorkQueue[K], reconcile: Callable[[K], Awaitable[float | None]], key: K
) -> None:
    try:
        after = await reconcile(key)
    except Retry as error:
        log.info("%s: %s", key, error)
        queue.add_rate_limited(key, at_least=error.after or 0.0)
    except TorporError as error:
        log.warning("%s: %s", key, error)
        queue.add_rate_limited(key)
    except Exception:  # the border of a pass: one broken key must not stop the others
        log.exception("%s: the pass failed", key)
        queue.add_rate_limited(key)
    else:
        queue.forget(key)
        if after is not None:
            queue.add_after(key, after)
