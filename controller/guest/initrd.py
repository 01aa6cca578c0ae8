"""The initrd: init, the modules that it needs in the order to load them, nothing else.

An uncompressed newc archive written by hand: the same input gives the same bytes. What does not
live here: where the kernel comes from, and what init does with it.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from controller.errors import Blocked
from controller.guest.kernel import Kernel
from controller.host import crate

INIT_SOURCE = Path(__file__).parent / "init"
_REQUIRED = ("virtio_pci", "virtio_blk", "virtio_console", "overlay", "erofs", "ext4")
# Without one of these a guest lacks a feature, not its life. Each costs milliseconds of every boot.
_WANTED = ("virtio_rng", "button", "evdev", "pvpanic_mmio", "pvpanic_pci")
_DIRECTORIES = ("dev", "proc", "sys", "lower", "upper", "newroot", "modules")
_S_IFDIR, _S_IFREG, _S_IFCHR = 0o040000, 0o100000, 0o020000


class _Entry(NamedTuple):
    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_init(cache_dir: Path) -> Path:
    """The static init program, compiled once per content of its sources. Blocking.

    Raises Blocked (NoCompiler, BuildFailed).
    """
    return crate.build(INIT_SOURCE, "torpor-init", cache_dir)


def archive(kernel: Kernel, init: bytes) -> bytes:
    """The bytes of the initrd for ``kernel``. Blocking.

    Raises Blocked (KernelUnusable) when the kernel lacks what a guest cannot do without.
    """
    modules = [(path.name, path) for path in load_order(kernel)]
    order = "".join(f"{_plain(name)}\n" for name, _ in modules)
    entries = [
        *(_Entry(name, _S_IFDIR | 0o755) for name in _DIRECTORIES),
        _Entry("dev/console", _S_IFCHR | 0o600, device=(5, 1)),
        _Entry("init", _S_IFREG | 0o755, init),
        _Entry("modules/order", _S_IFREG | 0o644, order.encode()),
        *(_Entry(f"modules/{_plain(n)}", _S_IFREG | 0o644, _unpacked(p)) for n, p in modules),
    ]
    body = b"".join(_record(i, entry) for i, entry in enumerate(entries, start=1))
    body += _record(0, _Entry("TRAILER!!!", 0))
    return body + bytes(-len(body) % 512)


def load_order(kernel: Kernel) -> list[Path]:
    """Module files, every one after those it depends on.

    Raises Blocked when a required one is neither a module nor built in.
    """
    if kernel.modules is None:
        return []
    depends = _read_dependencies(kernel.modules / "modules.dep")
    builtin = {_name(line) for line in _lines(kernel.modules / "modules.builtin")}
    order: dict[Path, None] = {}
    for name in (*_REQUIRED, *_WANTED):
        if name in depends:
            order.update(dict.fromkeys(kernel.modules / file for file in depends[name]))
        elif name in _REQUIRED and name not in builtin:
            raise Blocked(
                f"kernel {kernel.version} has no {name}, neither built in nor in "
                f"{kernel.modules}; use Debian's cloud kernel or one with this driver",
                reason="KernelUnusable",
            )
    return list(order)


def _read_dependencies(path: Path) -> dict[str, list[str]]:
    """modules.dep: name -> files to load, the module itself last."""
    found = {}
    for line in _lines(path):
        file, _, rest = line.partition(":")
        found[_name(file)] = [*reversed(rest.split()), file]
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text()
    except OSError as err:
        raise Blocked(
            f"kernel modules: {path}: {err.strerror}; point kernel_modules at a directory that "
            f"depmod has seen",
            reason="KernelUnusable",
        ) from err
    return (line for line in text.splitlines() if line.strip())


def _name(file: str) -> str:
    return Path(file).name.split(".")[0].replace("-", "_")


def _plain(name: str) -> str:
    return name.removesuffix(".xz")


def _unpacked(path: Path) -> bytes:
    """init has no decompressor."""
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise Blocked(
        f"kernel module {path} is packed in a way not known here", reason="KernelUnusable"
    )


def _record(inode: int, entry: _Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if entry.mode & _S_IFDIR else 1
    # magic, then 13 numbers of 8 hex digits: inode, mode, uid, gid, links, mtime, size,
    # device of the file (major, minor), the device that it is, length of the name, checksum
    numbers = (
        inode,
        entry.mode,
        0,
        0,
        links,
        0,
        len(entry.data),
        0,
        0,
        *entry.device,
        len(name),
        0,
    )
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
