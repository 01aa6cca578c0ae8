"""The images on disk: ``<root>/<hex digest>/{rootfs.erofs,image.json}``, whole or not at all.

An image appears by one durable rename and goes by one rename out of sight. What does not live
here: deciding what to fetch or to drop (``store``).
"""

import asyncio
import json
import secrets
from dataclasses import asdict
from pathlib import Path

from controller.errors import Retry
from controller.host import files
from controller.images.image import Image, ImageConfig
from controller.images.reference import is_digest

_VERSION = 1
_ROOTFS, _FACTS = "rootfs.erofs", "image.json"
_SCRATCH = ".pull-"  # holds set-uid files of strangers while it lasts: 0700


class Shelf:
    """Owns ``root`` alone: one process, one Shelf."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o711)  # whatever the umask was
        self._mine: set[str] = set()

    def load(self) -> dict[str, Image]:
        """Every complete image by digest. What cannot be read is left alone and not listed."""
        found = {}
        for place in self.root.iterdir():
            if is_digest(f"sha256:{place.name}") and (image := _load(place)) is not None:
                found[image.digest] = image
        return found

    def scratch(self) -> Path:
        """A new private directory for one pull."""
        name = _SCRATCH + secrets.token_hex(8)
        self._mine.add(name)
        path = self.root / name
        path.mkdir(mode=0o700)
        return path

    def publish(self, scratch: Path, digest: str, reference: str, config: ImageConfig) -> Image:
        """Make ``scratch/ready/rootfs.erofs`` the image ``digest``, durably. Raises Retry."""
        ready = scratch / "ready"
        rootfs = ready / _ROOTFS
        rootfs.chmod(0o444)
        files.fsync_file(rootfs)
        facts = {
            "version": _VERSION,
            "digest": digest,
            "reference": reference,
            "rootfsBytes": rootfs.stat().st_size,
            "config": asdict(config),
        }
        files.write_atomic(ready / _FACTS, json.dumps(facts).encode(), 0o644)
        ready.chmod(0o711)  # VMMs run as users of their own and open the rootfs by its path
        place = self.root / digest.removeprefix("sha256:")
        if (image := _load(place)) is not None:
            return image  # never swapped under a VMM that is about to open it
        if place.exists():
            self._hide(place)
        ready.rename(place)
        files.fsync_dir(self.root)
        image = _load(place)
        if image is None:
            raise Retry(f"{place} cannot be read back; check the disk", reason="ImageUnpackFailed")
        return image

    def discard(self, image: Image) -> None:
        """Take an image out of sight at once; ``sweep`` removes its bytes."""
        self._hide(image.rootfs.parent)

    def _hide(self, place: Path) -> None:
        place.rename(self.root / (files.TRASH_PREFIX + secrets.token_hex(8)))

    async def remove(self, scratch: Path) -> None:
        """Remove one pull's directory, however deep its tree is."""
        try:
            await asyncio.to_thread(files.remove_tree, scratch)
        finally:
            self._mine.discard(scratch.name)

    async def sweep(self) -> None:
        """Remove what was discarded, and what pulls of an earlier process left half done."""
        for path in list(self.root.iterdir()):
            if path.name in self._mine:
                continue
            if path.name.startswith(_SCRATCH) or files.is_temporary(path.name):
                await asyncio.to_thread(files.remove_tree, path)


def is_whole(image: Image) -> bool:
    """True while the file that a VMM would open is there in full length."""
    try:
        return image.rootfs.stat().st_size == image.rootfs_bytes
    except OSError:
        return False


def _load(place: Path) -> Image | None:
    try:
        facts = json.loads((place / _FACTS).read_bytes())
        if facts["version"] != _VERSION or facts["digest"] != f"sha256:{place.name}":
            return None
        said = facts["config"]
        config = ImageConfig(
            entrypoint=tuple(said["entrypoint"]),
            cmd=tuple(said["cmd"]),
            env=tuple((name, value) for name, value in said["env"]),
            user=said["user"],
            workdir=said["workdir"],
        )
        image = Image(
            facts["digest"], facts["reference"], place / _ROOTFS, facts["rootfsBytes"], config
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return image if is_whole(image) else None
