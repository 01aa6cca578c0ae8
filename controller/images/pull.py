"""One pull: resolve a reference, fetch, verify, unpack, publish. Knows nothing of other pulls.

Order and why: the manifest is judged before any blob is fetched, every blob is verified before
anything parses it, the cost is counted before anything is unpacked, and nothing is visible before
it is complete and durable. What does not live here: retries and sharing (``store``).
"""

import asyncio
import hashlib
import logging
import os
import platform as host
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from controller.errors import Retry
from controller.images import layers, unpack
from controller.images.image import Image, ImageConfig
from controller.images.layers import Caps, Cost
from controller.images.manifest import Manifest, Platform, read, read_config, unsupported
from controller.images.reference import Reference
from controller.images.registry import Registry
from controller.images.shelf import Shelf
from controller.images.tool import Tools

log = logging.getLogger(__name__)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def this_platform() -> Platform:
    """What guests on this node run: linux, and the host's architecture in the registry's words."""
    return Platform("linux", _ARCHITECTURES.get(host.machine(), host.machine()))


@dataclass(frozen=True)
class Source:
    """A manifest that was found: where, its digest, and what it lists."""

    reference: Reference
    digest: str
    manifest: Manifest


@dataclass(frozen=True)
class Puller:
    """How pulls are done on this node. ``reserve_bytes`` of free space are never used up."""

    shelf: Shelf
    registry: Registry
    tools: Tools
    caps: Caps
    reserve_bytes: int
    platform: Platform = field(default_factory=this_platform)

    async def resolve(self, reference: Reference) -> Source:
        """Ask the registry what ``reference`` is now. Raises Retry or Blocked."""
        raw = await self.registry.manifest(reference, self.shelf.root)
        digest = _digest(raw, reference)
        found = read(raw, self.platform)
        if isinstance(found, str):
            chosen = reference.at(found)
            raw = await self.registry.manifest(chosen, self.shelf.root)
            digest = _digest(raw, chosen)
            found = read(raw, self.platform)
            if isinstance(found, str):
                raise unsupported("an index inside an index")
        return Source(reference, digest, found)


class Pull:
    """The second half, with its progress. ``run`` once."""

    def __init__(self, puller: Puller, source: Source, asked_for: str) -> None:
        self._puller = puller
        self._asked_for = asked_for
        self._source = source
        self._blobs: Path | None = None
        self.phase = "waiting for other pulls"

    @property
    def percent(self) -> int | None:
        """Bytes fetched of all, 0 to 100; None when something else than fetching goes on."""
        if self._blobs is None:
            return None
        return min(100, 100 * self._arrived() // max(1, self._source.manifest.bytes))

    async def run(self) -> Image:
        """Fetch and publish. Raises Retry or Blocked; leaves nothing behind then."""
        manifest = self._source.manifest
        if manifest.bytes > self._puller.caps.compressed:
            raise unsupported(
                f"{manifest.bytes} bytes to fetch; {self._puller.caps.compressed} are allowed"
            )
        scratch = self._puller.shelf.scratch()
        try:
            return await self._run(scratch)
        finally:
            self._blobs = None
            await asyncio.shield(self._remove(scratch))

    async def _remove(self, scratch: Path) -> None:
        try:
            await self._puller.shelf.remove(scratch)
        except Retry as err:  # says nothing about the image; the next sweep tries again
            log.warning("%s", err)

    async def _run(self, scratch: Path) -> Image:
        manifest = self._source.manifest
        blobs = await self._fetch(scratch)
        self.phase = "checking its layers"
        cost = await _in_thread(self._verify, blobs)
        config = read_config(
            (blobs / _name(manifest.config.digest)).read_bytes(), self._puller.platform
        )
        # the tree and then the filesystem made of it stand beside each other
        self._check_space(2 * cost.on_disk)
        return await self._unpack(scratch, blobs, cost, config)

    async def _fetch(self, scratch: Path) -> Path:
        self._check_space(self._source.manifest.bytes)
        self.phase = "pulling"
        self._blobs = scratch / "blobs"
        exact = self._source.reference.at(self._source.digest)
        await self._puller.registry.copy(exact, self._source.manifest, self._blobs, self._arrived)
        blobs, self._blobs = self._blobs, None
        return blobs

    def _verify(self, blobs: Path, stop: threading.Event) -> Cost:
        manifest, total = self._source.manifest, Cost()
        layers.verify(blobs / _name(manifest.config.digest), manifest.config)
        for blob in manifest.layers:
            layers.verify(blobs / _name(blob.digest), blob)
        for blob in manifest.layers:
            total += layers.cost(blobs / _name(blob.digest), blob, self._puller.caps, stop)
            layers.check(total, self._puller.caps)
        return total

    async def _unpack(self, scratch: Path, blobs: Path, cost: Cost, config: ImageConfig) -> Image:
        self.phase = "unpacking"
        unpacker = unpack.Unpacker(self._puller.tools, scratch)
        since = time.time()
        unpacker.lay_out(blobs, self._source.manifest)
        tree = await unpacker.tree(cost)
        unpack.check_user(tree, config)
        await asyncio.to_thread(unpack.settle_times, tree, since)
        self.phase = "making its filesystem"
        (scratch / "ready").mkdir()
        await unpacker.filesystem(tree, scratch / "ready" / "rootfs.erofs", cost)
        return await asyncio.to_thread(
            self._puller.shelf.publish,
            scratch,
            self._source.digest,
            self._asked_for,
            config,
        )

    def _arrived(self) -> int:
        total = 0
        if self._blobs is not None:
            try:
                with os.scandir(self._blobs) as entries:
                    total = sum(entry.stat().st_size for entry in entries)
            except OSError:  # not there yet, or a file just got its final name
                pass
        return total

    def _check_space(self, needed: int) -> None:
        root = self._puller.shelf.root
        stat = os.statvfs(root)
        free = stat.f_bavail * stat.f_frsize - self._puller.reserve_bytes
        if free < needed:
            raise Retry(
                f"{root} has {max(0, free)} bytes to spare, this image needs {needed};"
                " free some, or delete Instances whose images can go",
                reason="NoSpace",
            )


async def _in_thread(work: Callable[[Path, threading.Event], Cost], path: Path) -> Cost:
    """Run ``work`` in a thread that ends soon after we are cancelled."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(work, path, stop)
    finally:
        stop.set()


def _digest(raw: bytes, asked: Reference) -> str:
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if asked.digest is not None and digest != asked.digest:
        raise Retry(
            f"{asked}: the registry served a manifest with digest {digest};"
            " do not trust it, push the image again",
            reason="ImageUnpackFailed",
        )
    return digest


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")
