"""What a cold boot needs besides disks: a kernel and the initrd for it, ready as files.

What does not live here: when they are made, and for which Instance (the callers).
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from controller import settings
from controller.guest import initrd
from controller.guest.kernel import Kernel, KernelStore
from controller.host import files

# A panic resets the guest at once, and the VMM sees that; only warnings and worse on the console.
COMMAND_LINE = "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class GuestArtifacts:
    """``digest`` and ``version`` are the kernel's; digests are SHA-256 in hex, of whole files.
    Both files stay as long as the kernel does.
    """

    kernel: Kernel
    vmlinuz: Path
    initrd: Path
    version: str
    digest: str
    initrd_digest: str
    command_line: str = COMMAND_LINE


async def ensure_artifacts(
    root: Path,
    override: tuple[Path, Path | None] | None = None,
    *,
    cache_dir: Path | None = None,
) -> GuestArtifacts:
    """Kernel and initrd for the next cold boot, in the kernel store at ``root``.

    ``override`` is a kernel image and its modules directory (None: all built in). ``cache_dir``
    keeps the compiled init (default: the user's). Takes seconds the first time, then
    milliseconds. Raises Blocked or Retry as ``KernelStore`` and ``initrd`` say.
    """
    return await asyncio.to_thread(make, root, override, cache_dir)


def make(
    root: Path,
    override: tuple[Path, Path | None] | None = None,
    cache_dir: Path | None = None,
) -> GuestArtifacts:
    """``ensure_artifacts`` for callers without an event loop."""
    store = KernelStore(root)
    kernel = store.adopt(*override) if override else store.ensure()
    init = initrd.build_init(cache_dir or settings.cache_dir())
    data = initrd.archive(kernel, init.read_bytes())  # some ms; the name then cannot lie
    digest = hashlib.sha256(data).hexdigest()
    out = _initrd(store, kernel, digest)
    if not out.exists():
        files.write_atomic(out, data, 0o644)
    return GuestArtifacts(kernel, kernel.vmlinuz, out, kernel.version, kernel.digest, digest)


def find(root: Path, kernel_digest: str, initrd_digest: str) -> GuestArtifacts | None:
    """What a guest was booted with, for its wake; None when one of the two is not here any more.

    Digests are whole, in hex. They are the files' names, which were given with whole contents.
    Makes and fetches nothing.
    """
    if not all(map(_DIGEST.fullmatch, (kernel_digest, initrd_digest))):
        return None
    store = KernelStore(root)
    kernel = store.get(kernel_digest)
    if kernel is None or not (out := _initrd(store, kernel, initrd_digest)).is_file():
        return None
    return GuestArtifacts(kernel, kernel.vmlinuz, out, kernel.version, kernel_digest, initrd_digest)


def _initrd(store: KernelStore, kernel: Kernel, digest: str) -> Path:
    return store.home(kernel) / f"initrd-{digest}"
