"""What a cold boot needs besides disks: a kernel and the initrd for it, ready as files.

What does not live here: when they are made, and for which Instance (the callers).
"""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from controller import settings
from controller.guest import initrd
from controller.guest.kernel import Kernel, KernelStore
from controller.host import files

# A panic resets the guest at once, and the VMM sees that; only warnings and worse on the console.
COMMAND_LINE = "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on"


@dataclass(frozen=True)
class GuestArtifacts:
    """``digest`` and ``version`` are the kernel's. Both files stay as long as the kernel does."""

    kernel: Kernel
    vmlinuz: Path
    initrd: Path
    version: str
    digest: str
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
    out = store.home(kernel) / f"initrd-{hashlib.sha256(data).hexdigest()[:16]}"
    if not out.exists():
        files.write_atomic(out, data, 0o644)
    return GuestArtifacts(kernel, kernel.vmlinuz, out, kernel.version, kernel.digest)
