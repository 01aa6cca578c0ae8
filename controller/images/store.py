"""The store: every image of this node, shared by digest, pulled once, collected when unused.

``ensure`` never waits: it says what is known now and sees to it that somebody works on the rest.
All bookkeeping happens between two awaits on one event loop, which is the lock. What does not
live here: how a pull is done (``pull``), how images lie on disk (``shelf``).
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from controller.core.backoff import Backoff
from controller.errors import Blocked, Rejected, Retry, TorporError
from controller.images.image import Failed, Image, ImageFact, Pulling, Ready
from controller.images.layers import Caps
from controller.images.pull import Pull, Puller
from controller.images.reference import Reference, is_digest, parse
from controller.images.registry import Registry
from controller.images.shelf import Shelf, is_whole
from controller.images.tool import Tools

log = logging.getLogger(__name__)

_PULLS = 2  # at a time
_ASKS = 8  # registries asked for a manifest at a time
_FRESH = 5.0  # seconds for which a resolved tag is handed out without asking again
_STALLED_FOR = 60.0  # somebody may have pushed a better image under the same tag
_FORGET = 3600.0
# an image handed out this recently is kept: its user may not have written down yet that it is one
_GRACE = 300.0

_Key = tuple[str, str | None]


@dataclass
class _Wish:
    """What became of one (reference, pinned)."""

    task: asyncio.Task[None] | None = None
    fetch: "_Fetch | None" = None
    outcome: Ready | Failed | None = None
    until: float = 0.0
    handed_out: bool = False
    failures: int = 0
    trouble: str = ""  # what the last failure said


@dataclass
class _Fetch:
    """One digest being fetched, shared by every wish for it."""

    pull: Pull
    task: asyncio.Task[Image]


@dataclass
class _Shelved:
    image: Image
    touched: float = field(default_factory=lambda: float("-inf"))


class ImageStore:
    """Owns ``root``. Create it, then ``await start()``; use it from one event loop only.

    ``limit_bytes``: what ``collect`` brings unreferenced images down to. ``insecure_registries``
    (host[:port]): may be reached without TLS, and may be on the node itself; ``local_registries``:
    only the latter. ``auth_file``: as ``skopeo login`` writes it. ``reserve_bytes``: free space
    that no pull uses up.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int,
        insecure_registries: frozenset[str] = frozenset(),
        tools: Tools = Tools(),  # noqa: B008 - frozen
        local_registries: frozenset[str] = frozenset(),
        auth_file: Path | None = None,
        caps: Caps = Caps(),  # noqa: B008 - frozen
        reserve_bytes: int = 256 * 1024 * 1024,
        backoff: Backoff = Backoff(base=5.0, cap=300.0),  # noqa: B008 - frozen
        grace: float = _GRACE,
    ) -> None:
        self._shelf = Shelf(root)
        registry = Registry(tools.skopeo, insecure_registries, local_registries, auth_file)
        self._puller = Puller(self._shelf, registry, tools, caps, reserve_bytes)
        self._limit_bytes = limit_bytes
        self._backoff = backoff
        self._grace = grace
        self._images = {d: _Shelved(image) for d, image in self._shelf.load().items()}
        self._wishes: dict[_Key, _Wish] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._pulls = asyncio.Semaphore(_PULLS)
        self._asks = asyncio.Semaphore(_ASKS)
        self._callbacks: list[Callable[[str], None]] = []
        self._full = False

    async def start(self) -> None:
        """Remove what an earlier process left half done. Raises Retry."""
        await self._shelf.sweep()

    async def close(self) -> None:
        """End every pull and wait until its programs are gone and its files removed."""
        tasks = [w.task for w in self._wishes.values() if w.task is not None]
        tasks += [f.task for f in self._fetches.values()]  # type: ignore[misc]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def subscribe(self, callback: Callable[[str], None]) -> None:
        """``callback(reference)`` is called on the loop whenever a pull became Ready or Failed."""
        self._callbacks.append(callback)

    def get(self, digest: str) -> Image | None:
        """The image with this manifest digest, if it is here and whole."""
        shelved = self._images.get(digest)
        if shelved is None:
            return None
        if not is_whole(shelved.image):
            del self._images[digest]
            return None
        shelved.touched = time.monotonic()
        return shelved.image

    def ensure(self, reference: str, pinned: str | None) -> ImageFact:
        """What is known about ``reference``, at once; starts a pull where one is needed.

        ``pinned``: the digest that was resolved before (``sha256:…``); then the tag is never
        looked at again. Without it the registry is asked what the tag means now. Never raises.
        """
        try:
            asked = parse(reference)
        except Rejected as err:
            return Failed(err.reason, str(err), True, time.monotonic() + _STALLED_FOR)
        if pinned is not None:
            if not is_digest(pinned):
                return _unpinnable(pinned)
            asked = asked.at(pinned)
        if asked.digest is not None and (image := self.get(asked.digest)) is not None:
            return Ready(image)
        return self._fact(self._wish((reference, pinned), asked))

    async def collect(self, in_use: Collection[str]) -> tuple[str, ...]:
        """Remove unreferenced images, least recently used first, until under the limit.

        ``in_use``: digests that any Instance of this node needs. After a pull ran out of space all
        that are unreferenced go. Images handed out in the last minutes stay. Returns the digests
        removed. Raises Retry.
        """
        limit, self._full = (0 if self._full else self._limit_bytes), False
        total = sum(s.image.rootfs_bytes for s in self._images.values())
        removed = []
        for digest, shelved in sorted(self._images.items(), key=lambda item: item[1].touched):
            if total <= limit:
                break
            if digest in in_use or time.monotonic() - shelved.touched < self._grace:
                continue
            self._shelf.discard(shelved.image)  # no await since the look at touched
            del self._images[digest]
            total -= shelved.image.rootfs_bytes
            removed.append(digest)
        await self._shelf.sweep()
        return tuple(removed)

    def _wish(self, key: _Key, asked: Reference) -> _Wish:
        now = time.monotonic()
        wish = self._wishes.get(key)
        if wish is None:
            self._forget(now)
            wish = self._wishes[key] = _Wish()
        lost = isinstance(wish.outcome, Ready) and self.get(wish.outcome.image.digest) is None
        if wish.task is None and (wish.outcome is None or now >= wish.until or lost):
            wish.outcome = None
            wish.task = asyncio.create_task(self._fulfil(key[0], asked, wish))
        return wish

    def _fact(self, wish: _Wish) -> ImageFact:
        if isinstance(wish.outcome, Ready) and not wish.handed_out:
            wish.handed_out = True  # a slow asker must get it once; from now on it gets old
            wish.until = time.monotonic() + _FRESH
        if wish.outcome is not None:
            return wish.outcome
        if wish.fetch is None:
            again = f" again after: {wish.trouble}" if wish.failures else ""
            return Pulling(f"asking the registry{again}", None)
        pull = wish.fetch.pull
        percent = pull.percent
        return Pulling(pull.phase if percent is None else f"{pull.phase}, {percent} %", percent)

    async def _fulfil(self, reference: str, asked: Reference, wish: _Wish) -> None:
        try:
            image = await self._obtain(reference, asked, wish)
            wish.outcome, wish.failures, wish.handed_out = Ready(image), 0, False
            wish.until = time.monotonic() + _FORGET
        except Exception as err:
            wish.failures += 1
            wish.outcome = self._failure(reference, err, wish.failures)
            wish.until, wish.trouble = wish.outcome.retry_at, wish.outcome.message
        finally:
            wish.task = wish.fetch = None
        for callback in self._callbacks:
            callback(reference)

    async def _obtain(self, reference: str, asked: Reference, wish: _Wish) -> Image:
        async with self._asks:
            source = await self._puller.resolve(asked)
        if (image := self.get(source.digest)) is not None:
            return image
        fetch = self._fetches.get(source.digest)
        if fetch is None:
            pull = Pull(self._puller, source, reference)
            fetch = _Fetch(pull, asyncio.create_task(self._fetch(source.digest, pull)))
            self._fetches[source.digest] = fetch
        wish.fetch = fetch
        return await asyncio.shield(fetch.task)

    async def _fetch(self, digest: str, pull: Pull) -> Image:
        try:
            async with self._pulls:
                image = await pull.run()
            self._images[digest] = _Shelved(image, time.monotonic())
            return image
        finally:
            del self._fetches[digest]

    def _failure(self, reference: str, err: Exception, failures: int) -> Failed:
        error = _as_ours(reference, err)
        if error.reason == "NoSpace":
            self._full = True
        stalled = isinstance(error, Blocked)
        wait = _STALLED_FOR if stalled else self._backoff.delay(failures)
        return Failed(error.reason, str(error), stalled, time.monotonic() + wait)

    def _forget(self, now: float) -> None:
        for key, wish in list(self._wishes.items()):
            if wish.task is None and now > wish.until + _FORGET:
                del self._wishes[key]


def _unpinnable(pinned: str) -> Failed:
    return Failed(
        "InvalidImageReference",
        f"status.image.digest: {pinned[:80]!a} is no sha256 digest; clear it",
        True,
        time.monotonic() + _STALLED_FOR,
    )


def _as_ours(reference: str, err: Exception) -> TorporError:
    if isinstance(err, TorporError):
        return err
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
        return Retry(f"{reference}: no space left for it; free some", reason="NoSpace")
    if not isinstance(err, OSError):  # a defect of ours must not end as a pull that never ends
        log.exception("pull of %s failed", reference, exc_info=err)
    return Retry(f"{reference}: {err}; see the agent's log", reason="ImageUnpackFailed")
