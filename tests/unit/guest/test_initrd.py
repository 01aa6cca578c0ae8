"""The initrd: the right files, in the right order, the same bytes each time."""

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.guest import initrd
from controller.guest.kernel import Kernel

DEPENDENCIES = """\
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio_ring.ko
kernel/drivers/virtio_ring.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio_ring.ko
kernel/drivers/char/virtio_console.ko.xz: kernel/drivers/virtio_ring.ko
kernel/fs/overlay.ko:
kernel/fs/erofs.ko:
kernel/drivers/char/hw_random/virtio-rng.ko:
kernel/drivers/other.ko:
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    modules = tmp_path / "modules"
    for line in DEPENDENCIES.splitlines():
        file = modules / line.split(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        data = f"module {file.name}".encode()
        file.write_bytes(lzma.compress(data) if file.suffix == ".xz" else data)
    (modules / "modules.dep").write_text(DEPENDENCIES)
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return Kernel("1.2.3", "d" * 64, tmp_path / "vmlinuz", modules, "test")


def test_modules_come_after_what_they_depend_on(kernel: Kernel) -> None:
    names = [path.name for path in initrd.load_order(kernel)]
    assert len(names) == len(set(names))
    assert names.index("virtio_ring.ko") < names.index("virtio.ko") < names.index("virtio_pci.ko")
    assert "virtio-rng.ko" in names  # asked for as virtio_rng
    assert "other.ko" not in names


def test_archive_is_one_that_cpio_reads(kernel: Kernel, tmp_path: Path) -> None:
    archive = initrd.archive(kernel, b"#!init")
    out = tmp_path / "out"
    out.mkdir()
    cpio = [shutil.which("busybox") or "busybox", "cpio", "-i", "-d"]
    names = [name for name in _names(archive) if name != "dev/console"]  # a device needs root
    subprocess.run([*cpio, *names], input=archive, cwd=out, check=True, capture_output=True)
    assert (out / "init").read_bytes() == b"#!init"
    assert (out / "init").stat().st_mode & 0o111
    assert (out / "modules/virtio_console.ko").read_bytes() == b"module virtio_console.ko.xz"
    order = (out / "modules/order").read_text().split()
    assert sorted(order) == sorted(p.name for p in (out / "modules").glob("*.ko"))


def test_same_input_gives_the_same_bytes(kernel: Kernel) -> None:
    first = initrd.archive(kernel, b"init")
    assert initrd.archive(kernel, b"init") == first
    assert initrd.archive(kernel, b"other") != first
    assert len(first) % 512 == 0


def test_kernel_without_a_disk_driver_is_refused(kernel: Kernel) -> None:
    assert kernel.modules
    lines = [line for line in DEPENDENCIES.splitlines() if "virtio_blk" not in line]
    (kernel.modules / "modules.dep").write_text("\n".join(lines))
    with pytest.raises(Blocked, match="virtio_blk"):
        initrd.load_order(kernel)


def test_modules_without_an_index_are_refused(kernel: Kernel) -> None:
    assert kernel.modules
    (kernel.modules / "modules.dep").unlink()
    with pytest.raises(Blocked, match="depmod"):
        initrd.load_order(kernel)


def test_kernel_with_all_built_in_needs_no_modules(kernel: Kernel) -> None:
    bare = Kernel("1", "d", kernel.vmlinuz, None, "test")
    assert initrd.load_order(bare) == []
    assert b"modules/order" in initrd.archive(bare, b"init")


def _names(archive: bytes) -> list[str]:
    names = []
    at = 0
    while at < len(archive):
        size, length = (int(archive[at + i : at + i + 8], 16) for i in (54, 94))
        names.append(archive[at + 110 : at + 110 + length - 1].decode())
        if names[-1] == "TRAILER!!!":
            return names[:-1]
        at += (110 + length + 3) // 4 * 4
        at += (size + 3) // 4 * 4
    raise AssertionError("no trailer")
