"""The values this room hands out: an Image, and what may be said about one that is asked for.

Frozen, no behaviour. What does not live here: how they come about (``store``, ``pull``).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class ImageConfig:
    """What the image says about its workload. Empty where it says nothing.

    ``user`` is a name or number, or "user:group"; the guest resolves names in its own files.
    ``workdir`` is an absolute path without "..", or empty.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""


@dataclass(frozen=True)
class Image:
    """A complete image on this node. ``digest`` is its manifest's, ``sha256:<64 hex>``.

    ``rootfs`` is a read-only erofs file of ``rootfs_bytes``; ``reference`` is the one it was
    first pulled by, for people only.
    """

    digest: str
    reference: str
    rootfs: Path
    rootfs_bytes: int
    config: ImageConfig


@dataclass(frozen=True)
class Ready:
    """The image is here, complete and durable."""

    image: Image


@dataclass(frozen=True)
class Pulling:
    """Being fetched. ``progress`` is a clause for people; ``percent`` 0 to 100, None if unknown."""

    progress: str
    percent: int | None


@dataclass(frozen=True)
class Failed:
    """The last try failed. ``stalled``: no retry can help with this reference.

    ``retry_at`` (``time.monotonic`` seconds): from then on ``ensure`` tries again.
    """

    reason: str
    message: str
    stalled: bool
    retry_at: float


ImageFact: TypeAlias = Ready | Pulling | Failed
