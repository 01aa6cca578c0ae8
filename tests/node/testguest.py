"""A tiny guest for tests of VMMs: Debian's kernel, busybox, and a shell behind the channel port.

Each line sent to the channel is run by the guest's shell; its output comes back, then a line
``done``. When it is up it writes one line ``ready`` to the report port. Pressing the power button
makes it write ``button`` to the report port, nothing else.
"""

import asyncio
import hashlib
import shutil
from functools import lru_cache
from pathlib import Path

from controller.guest.initrd import archive
from controller.guest.kernel import Kernel, KernelStore
from controller.settings import cache_dir

COMMAND_LINE = "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on"

_INIT = rb"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /bin /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read module; do
  case $module in ext4*|erofs*|overlay*|jbd2*|vmw*|virtio_net*|virtio_balloon*) continue;; esac
  insmod /modules/$module 2>/dev/null
done < /modules/order
for port in /sys/class/virtio-ports/*; do
  case $(cat $port/name) in
    torpor.agent.0) agent=/dev/${port##*/};;
    torpor.report.0) report=/dev/${port##*/};;
    torpor.log.0) log=/dev/${port##*/};;
  esac
done
exec 3<>$agent 4>$report 5>$log
for device in /dev/input/event*; do
  (while :; do head -c 48 $device > /dev/null && echo button >&4; done) &
done
echo ready >&4
while :; do
  read line <&3 || { sleep 0.05; continue; }
  eval "$line" >&3 2>&1
  echo done >&3
done
"""


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """Debian's cloud kernel, kept between test runs."""
    return KernelStore(cache_dir() / "kernels").ensure()


@lru_cache(maxsize=1)
def _initrd() -> Path:
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    files = archive(kernel(), _INIT) + _archive_of("bin/busybox", busybox)
    path = cache_dir() / f"testguest-{hashlib.sha256(files).hexdigest()[:12]}"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(files)
        part.rename(path)
    return path


def install(directory: Path) -> tuple[Path, Path]:
    """Kernel and initrd in ``directory``, readable by every uid (the cache may be root's own)."""
    pair = directory / "vmlinuz", directory / "initrd"
    for source, target in zip((kernel().vmlinuz, _initrd()), pair, strict=True):
        shutil.copyfile(source, target)
        target.chmod(0o644)
    return pair


class Shell:
    """The guest's shell, through its channel socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def run(self, line: str, seconds: float = 20.0) -> str:
        """Run ``line`` in the guest and return what it printed."""
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(str(self.path))
            try:
                writer.write(f"{line}\n".encode())
                out = await reader.readuntil(b"done\n")
                return out[: -len(b"done\n")].decode()
            finally:
                writer.close()

    async def send(self, line: str) -> None:
        """Run ``line`` in the guest and wait for nothing (it may end the guest)."""
        _, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(f"{line}\n".encode())
        await writer.drain()
        writer.close()


def _archive_of(name: str, data: bytes) -> bytes:
    """A second archive, appended to the first: the kernel unpacks both."""
    out = _entry("bin", 0o040755, b"") + _entry(name, 0o100755, data) + _entry("TRAILER!!!", 0, b"")
    return out + bytes(-len(out) % 512)


def _entry(name: str, mode: int, data: bytes) -> bytes:
    raw = name.encode() + b"\0"
    numbers = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
