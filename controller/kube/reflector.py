"""A cache of one kind that mirrors the API server and knows when it may be trusted.

LIST, then WATCH from there; a stream that stalls, breaks or closes is resumed at the last
resourceVersion, an expired one is listed anew. What a relist no longer shows is reported as
deleted, so no consumer misses a deletion. ``synced`` is set by one complete list only; whoever may
destroy something asks ``fresh_list``, which never answers from the cache.

Objects are keyed by UID: a successor of the same name is another object. What does not live here:
what to do about a change (``on_change`` says "look", a work queue decides when).
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, ItemsView
from dataclasses import dataclass
from typing import Any

import aiohttp

from controller import metrics
from controller.errors import TorporError
from controller.kube.client import Client
from controller.kube.errors import Expired, from_status
from controller.kube.lines import LineSplitter, LineTooLong
from controller.kube.resources import Object, Objects, Resource

log = logging.getLogger(__name__)

OnChange = Callable[[str, Object | None, Object | None], None]

FAILURES_BEFORE_RELIST = 5
TOMBSTONES = 1024


@dataclass(frozen=True)
class Timing:
    """Seconds. ``stall``: without a complete line for so long a watch ends (bookmarks count)."""

    stall: float = 90.0
    connect_spacing: float = 1.0
    list_spacing: float = 10.0
    backoff: float = 0.5
    backoff_cap: float = 30.0
    calm: float = 60.0  # a watch that lasted so long was healthy: back-off starts over
    watch_min: int = 300
    watch_max: int = 600


def drop_managed_fields(obj: Object) -> Object:
    """The default trim: managedFields are a third of an object and nobody here reads them."""
    metadata = obj.get("metadata")
    if metadata is not None:
        metadata.pop("managedFields", None)
    return obj


class Reflector:
    """See the module. ``on_change(uid, old, new)``: old None = appeared, new None = gone."""

    def __init__(
        self,
        client: Client,
        res: Resource,
        *,
        on_change: OnChange,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
        trim: Callable[[Object], Object] = drop_managed_fields,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``trim`` may change and must return the object; what it drops is not kept."""
        self._client = client
        self._res = res
        self._on_change = on_change
        self._where = (namespace, field_selector, label_selector)
        self._trim = trim
        self._timing = timing or Timing()
        self._clock = clock
        self._chance = chance
        self._cache: dict[str, Object] = {}
        self._ours: dict[str, int] = {}  # uid -> version put by write-through, not yet watched
        self._gone: dict[str, None] = {}  # bounded: UIDs that left, against late write-through
        self._version = ""
        self._synced = asyncio.Event()
        self._last_event = float("-inf")
        self._last_list = float("-inf")
        self._last_connect = float("-inf")
        self._failures = 0
        self._received = metrics.WATCH_EVENTS.labels(res.plural)

    @property
    def synced(self) -> bool:
        """A complete list has been seen and reported to ``on_change``."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def last_event_age(self) -> float:
        """Seconds since the server last said anything, bookmarks included; inf before the first."""
        return self._clock() - self._last_event

    @property
    def healthy(self) -> bool:
        """Synced, and heard from the server within two stall times: what a probe should ask."""
        return self.synced and self.last_event_age() < 2 * self._timing.stall

    def get(self, uid: str) -> Object | None:
        """The cached object: read-only, shared."""
        return self._cache.get(uid)

    def items(self) -> ItemsView[str, Object]:
        """(uid, object) of all that is cached. Do not await while iterating."""
        return self._cache.items()

    def __len__(self) -> int:
        return len(self._cache)

    def put(self, obj: Object) -> None:
        """Write-through of a create's or patch's answer, so the next pass sees its own write.

        Ignored if the cache is as new, or the object is known to be gone.
        """
        uid = obj["metadata"]["uid"]
        old = self._cache.get(uid)
        version = _version(obj)
        if uid in self._gone or (old is not None and version <= _version(old)):
            return
        new = self._trim(obj)
        self._cache[uid] = new
        self._ours[uid] = version
        self._tell(uid, old, new)

    async def fresh_list(self) -> Objects:
        """All matching objects, from a complete quorum LIST of this moment. Raises on any failure.

        The only licence to clean up what is absent.
        """
        items, _ = await self._client.list(self._res, *self._where)
        return [self._trim(item) for item in items]

    async def run(self) -> None:
        """Mirror until cancelled. Failures of the server are logged, counted and outlived."""
        while True:
            try:
                if not self._version:
                    await self._relist()
                await self._watch_once()
            except Expired as error:
                self._ended("expired", error)
                self._version = ""
            except TorporError as error:
                self._ended("refused", error)
                await self._back_off(getattr(error, "after", None) or 0.0)
            except (aiohttp.ClientError, OSError, LineTooLong, _BadLine) as error:
                self._ended("broken", error)
                await self._back_off()

    async def _relist(self) -> None:
        await self._keep_spacing(self._last_list, self._timing.list_spacing)
        self._last_list = self._clock()
        items, version = await self._client.list(self._res, *self._where)
        self._replace(items, int(version) if version.isdecimal() else 0)
        self._version = version
        self._last_event = self._clock()
        self._synced.set()

    def _replace(self, items: Objects, version: int) -> None:
        ours, self._ours = self._ours, {}
        gone = self._cache.keys() - {item["metadata"]["uid"] for item in items}
        for item in items:
            uid = item["metadata"]["uid"]
            if ours.get(uid, 0) <= _version(item):
                self._set(uid, item)
        for uid in gone:
            # Our own create may be younger than this list; the watch will tell.
            if ours.get(uid, 0) <= version:
                self._drop(uid)
        self._count()

    async def _watch_once(self) -> None:
        await self._keep_spacing(self._last_connect, self._timing.connect_spacing)
        began = self._last_connect = self._clock()
        spread = self._timing.watch_max - self._timing.watch_min
        seconds = self._timing.watch_min + int(self._chance() * spread)
        try:
            async with self._client.watch(
                self._res, *self._where, resource_version=self._version, timeout_seconds=seconds
            ) as response:
                await self._read(response.content)
            self._ended("closed", None)
        finally:
            if self._clock() - began >= self._timing.calm:
                self._failures = 0

    async def _read(self, content: aiohttp.StreamReader) -> None:
        splitter = LineSplitter()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timing.stall) as stall:
                async for chunk in content.iter_any():
                    if lines := splitter.feed(chunk):
                        self._take_all(lines)
                        stall.reschedule(loop.time() + self._timing.stall)
        except TimeoutError:
            self._ended("stalled", None)

    def _take_all(self, lines: list[bytes]) -> None:
        for line in lines:
            if line:
                self._take(line)
        self._last_event = self._clock()
        self._failures = 0
        self._received.inc(len(lines))
        self._count()

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, obj = event["type"], event["object"]
            if kind == "ERROR":
                raise from_status(f"watch {self._res.plural}", obj)
            metadata = obj["metadata"]
            version: str = metadata["resourceVersion"]
            uid: str = "" if kind == "BOOKMARK" else metadata["uid"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _BadLine(f"watch {self._res.plural}: {error!r} in {line[:80]!r}") from error
        if kind == "DELETED":
            self._drop(uid)
        elif kind != "BOOKMARK" and not self._is_echo(uid, _version(obj)):
            self._set(uid, obj)
        self._version = version

    def _is_echo(self, uid: str, version: int) -> bool:
        """True if write-through already put this version, or a newer one."""
        ours = self._ours.get(uid)
        if ours is None:
            return False
        if version >= ours:
            del self._ours[uid]
        return version <= ours

    def _set(self, uid: str, obj: Object) -> None:
        old = self._cache.get(uid)
        if old is not None and _version(old) == _version(obj):
            return
        self._gone.pop(uid, None)
        new = self._trim(obj)
        self._cache[uid] = new
        self._tell(uid, old, new)

    def _drop(self, uid: str) -> None:
        self._ours.pop(uid, None)
        self._gone[uid] = None
        if len(self._gone) > TOMBSTONES:
            del self._gone[next(iter(self._gone))]
        old = self._cache.pop(uid, None)
        if old is not None:
            self._tell(uid, old, None)

    def _tell(self, uid: str, old: Object | None, new: Object | None) -> None:
        try:
            self._on_change(uid, old, new)
        except Exception:  # a consumer's bug must not stop the mirror
            log.exception("%s %s: on_change failed", self._res.plural, uid)

    def _count(self) -> None:
        metrics.CACHE_OBJECTS.labels(self._res.plural).set(len(self._cache))

    def _ended(self, cause: str, error: Exception | None) -> None:
        metrics.WATCH_ENDS.labels(self._res.plural, cause).inc()
        level = logging.DEBUG if error is None else logging.WARNING
        log.log(level, "watch of %s %s: %s", self._res.plural, cause, error or "resuming")

    async def _back_off(self, at_least: float = 0.0) -> None:
        self._failures += 1
        if self._failures % FAILURES_BEFORE_RELIST == 0:
            self._version = ""
        limit = min(self._timing.backoff_cap, self._timing.backoff * 2.0 ** min(self._failures, 16))
        await asyncio.sleep(max(at_least, self._timing.backoff, self._chance() * limit))

    async def _keep_spacing(self, last: float, spacing: float) -> None:
        remaining = last + spacing - self._clock()
        if remaining > 0:
            await asyncio.sleep(remaining)


class _BadLine(Exception):
    """A line of a watch that is no event."""


def _version(obj: dict[str, Any]) -> int:
    """resourceVersion as a number: servers hand out decimal ones, comparable within a kind."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


__all__ = ["Reflector", "Timing", "drop_managed_fields", "OnChange"]
