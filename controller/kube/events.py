"""Kubernetes Events: one line for people, never a channel, never a reason to fail.

Core v1 Events with count, firstTimestamp and lastTimestamp, which ``kubectl describe`` and
``kubectl events`` both show. ``event`` only puts a line into a bounded box; ``run`` writes them at
a bounded rate, once nothing more was said for a moment: work under way has better use for the
processors. The same words about the same object raise a count instead of adding an object. A
refused Event (a terminating namespace, a missing permission) is dropped quietly. What does not live
here: when something is worth saying.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiolimiter import AsyncLimiter

from controller import metrics
from controller.errors import Blocked, Rejected, TorporError, Unreachable
from controller.kube.client import Client
from controller.kube.errors import NotFound, one_line
from controller.kube.resources import EVENTS, Object

log = logging.getLogger(__name__)

NORMAL = "Normal"
WARNING = "Warning"
MESSAGE_LIMIT = 1024  # characters, as the API allows a note
REASON_LIMIT = 128
BOX = 1000  # lines waiting to be written
REMEMBERED = 1000  # lines that may be repeated by a count
REPEAT_SECONDS = 3000.0  # shorter than the hour after which a server forgets an Event
RETRY_SECONDS = 5.0
LINGER_SECONDS = 0.3  # after the newest line
LONGEST_SECONDS = 2.0  # that a line waits for others

Key = tuple[str, str, str, str]


@dataclass
class _Line:
    """One thing to say, and how often it was said since it was put into the box."""

    ref: Object
    type: str
    reason: str
    message: str
    first: str
    last: str
    times: int = 1
    put: float = field(default_factory=time.monotonic)


@dataclass
class _Written:
    """An Event on the server, to be counted up."""

    name: str
    count: int
    at: float


class EventRecorder:
    """Says what ``component`` (on host or Pod ``instance``) did. One per process."""

    def __init__(
        self,
        client: Client,
        component: str,
        instance: str,
        *,
        burst: int = 25,
        per_second: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._limiter = AsyncLimiter(burst, burst / per_second)
        self._clock = clock
        self._box: OrderedDict[Key, _Line] = OrderedDict()
        self._written: OrderedDict[Key, _Written] = OrderedDict()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self._newest = 0.0

    def event(self, obj_ref: Mapping[str, Any], type: str, reason: str, message: str) -> None:
        """Say ``message`` about an object, soon. Never waits, never raises, may be dropped.

        ``obj_ref``: an ObjectReference (apiVersion, kind, name, namespace, uid) or a whole object.
        """
        ref = reference(obj_ref)
        now = _now()
        text = one_line(message)[:MESSAGE_LIMIT]
        key = (ref.get("uid") or f"{ref['kind']}/{ref['name']}", type, reason, text)
        if (waiting := self._box.get(key)) is not None:
            waiting.times += 1
            waiting.last = now
            return
        line = self._box[key] = _Line(ref, type, reason[:REASON_LIMIT], text, now, now)
        self._newest = line.put
        if len(self._box) > BOX:
            self._box.popitem(last=False)
            metrics.EVENTS_DROPPED.labels("overflow").inc()
        self._empty.clear()
        self._filled.set()

    async def run(self) -> None:
        """Write what is in the box until cancelled."""
        while True:
            await self._filled.wait()
            await self._linger()
            await self._limiter.acquire()
            key, line = next(iter(self._box.items()))
            del self._box[key]
            if not await self._say(key, line):
                self._put_back(key, line)
                await asyncio.sleep(RETRY_SECONDS)
            if not self._box:
                self._filled.clear()
                self._empty.set()

    async def flush(self, seconds: float) -> None:
        """Wait until all is written (``run`` must be running), at most ``seconds``."""
        self._hurry.set()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            log.info("%d Events not written", len(self._box))
        finally:
            self._hurry.clear()

    async def _linger(self) -> None:
        """Wait while more is being said, within bounds, and while nobody is in a hurry."""
        oldest = next(iter(self._box.values())).put
        while not self._hurry.is_set():
            due = min(self._newest + LINGER_SECONDS, oldest + LONGEST_SECONDS)
            if (left := due - time.monotonic()) <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), left)

    async def _say(self, key: Key, line: _Line) -> bool:
        """False if the server does not answer: try again later."""
        try:
            await self._write(key, line)
        except Unreachable:
            return False
        except (Blocked, Rejected) as error:
            log.debug("Event refused: %s", error)
            metrics.EVENTS_DROPPED.labels("refused").inc()
        except TorporError as error:
            log.info("Event lost: %s", error)
            metrics.EVENTS_DROPPED.labels("failed").inc()
        else:
            metrics.EVENTS_SENT.inc()
        return True

    def _put_back(self, key: Key, line: _Line) -> None:
        if (newer := self._box.get(key)) is not None:
            newer.times += line.times
            newer.first = line.first
        elif len(self._box) < BOX:
            self._box[key] = line
        else:
            metrics.EVENTS_DROPPED.labels("overflow").inc()
            return
        self._box.move_to_end(key, last=False)

    async def _write(self, key: Key, line: _Line) -> None:
        written = self._written.get(key)
        if written is not None and self._clock() - written.at < REPEAT_SECONDS:
            try:
                await self._count_up(written, line)
                return
            except NotFound:
                pass  # the server forgot it: say it anew
        self._remember(key, await self._create(line), line.times)

    async def _count_up(self, written: _Written, line: _Line) -> None:
        count = written.count + line.times
        body = {"count": count, "lastTimestamp": line.last}
        namespace = _namespace(line.ref)
        await self._client.patch(EVENTS, written.name, body, namespace=namespace)
        written.count, written.at = count, self._clock()

    async def _create(self, line: _Line) -> str:
        namespace = _namespace(line.ref)
        name = f"{line.ref['name'][:200]}.{uuid.uuid4().hex[:16]}"
        body = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": line.ref,
            "type": line.type,
            "reason": line.reason,
            "message": line.message,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": line.first,
            "lastTimestamp": line.last,
            "count": line.times,
        }
        await self._client.create(EVENTS, body, namespace)
        return name

    def _remember(self, key: Key, name: str, count: int) -> None:
        self._written[key] = _Written(name, count, self._clock())
        self._written.move_to_end(key)
        if len(self._written) > REMEMBERED:
            self._written.popitem(last=False)


def reference(obj: Mapping[str, Any]) -> Object:
    """The ObjectReference of an object; a reference is returned as it is."""
    metadata = obj.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else obj
    ref = {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind")}
    ref |= {key: fields.get(key) for key in ("name", "namespace", "uid")}
    return {key: str(value) for key, value in ref.items() if value}


def _namespace(ref: Object) -> str:
    """Events about cluster-scoped objects live in ``default``."""
    return str(ref.get("namespace") or "default")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


__all__ = ["EventRecorder", "NORMAL", "WARNING", "reference"]
