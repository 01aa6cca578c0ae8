"""The kernel store, with kernels that an admin brought: no archive is asked here."""

import os
import struct
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry
from controller.guest import kernel as kernels
from controller.guest.kernel import KernelStore, bzimage_version


def image(path: Path, version: bytes = b"9.8.7-mine (me@here) #1", rest: bytes = b"") -> Path:
    """The head of a bzImage, as far as anybody here reads it."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x400)
    head[0x600 : 0x600 + len(version)] = version
    path.write_bytes(bytes(head) + rest)
    return path


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(tmp_path / "kernels")


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/modules.dep").write_text("a.ko:\n")
    (tmp_path / "modules/build").symlink_to("/nowhere")
    return tmp_path / "modules"


def test_kernel_of_the_admin_is_copied_in(
    store: KernelStore, tmp_path: Path, modules: Path
) -> None:
    assert store.current() is None
    own = image(tmp_path / "vmlinuz")
    kernel = store.adopt(own, modules)
    own.unlink()
    assert kernel.version == "9.8.7-mine"
    assert kernel.vmlinuz.exists()
    assert kernel.modules
    assert (kernel.modules / "modules.dep").exists()
    assert store.current() == store.get(kernel.digest) == kernel


def test_kernel_stays_while_it_is_in_use(store: KernelStore, tmp_path: Path) -> None:
    old, unused, new = (store.adopt(image(tmp_path / "k", rest=bytes([n])), None) for n in range(3))
    assert store.collect({old.digest}) == [unused.digest]
    assert store.get(old.digest) == old
    assert store.get(unused.digest) is None
    assert store.current() == new
    assert store.collect(set()) == [old.digest]
    assert store.current() == new


def test_same_kernel_again_is_the_same(store: KernelStore, tmp_path: Path) -> None:
    own = image(tmp_path / "vmlinuz")
    first = store.adopt(own, None)
    inode = first.vmlinuz.stat().st_ino
    assert store.adopt(own, None) == first
    assert first.vmlinuz.stat().st_ino == inode


def test_modules_that_come_later_are_taken(
    store: KernelStore, tmp_path: Path, modules: Path
) -> None:
    own = image(tmp_path / "vmlinuz")
    assert store.adopt(own, None).modules is None
    assert store.adopt(own, modules).modules is not None


def test_file_that_is_missing_is_said(store: KernelStore, tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="settings"):
        store.adopt(tmp_path / "none", None)


def test_version_is_read_from_the_image(tmp_path: Path) -> None:
    assert bzimage_version(image(tmp_path / "a")) == "9.8.7-mine"
    (tmp_path / "b").write_bytes(b"\x7fELF")
    assert bzimage_version(tmp_path / "b") is None


def test_newest_is_what_the_meta_package_depends_on(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tools(tmp_path, monkeypatch, "linux-image-9.9-cloud", "9.9-1")
    kernel = store.ensure()
    assert (kernel.version, kernel.package) == ("9.9-cloud", "linux-image-9.9-cloud=9.9-1")
    assert kernel.modules
    assert (kernel.modules / "modules.dep").read_text() == "made by depmod\n"
    assert store.ensure() == kernel
    _tools(tmp_path, monkeypatch, "linux-image-9.10-cloud", "9.10-1")
    newer = store.ensure()
    assert newer.version == "9.10-cloud"
    assert store.get(kernel.digest) == kernel


def test_archive_that_is_down_leaves_what_is_here(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = _script(tmp_path, "apt-cache", "echo gone >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(kernels, "_APT_LISTS", tmp_path)
    with pytest.raises(Retry, match="gone"):
        store.ensure()
    kernel = store.adopt(image(tmp_path / "vmlinuz"), None)
    os.utime(tmp_path)  # apt has news, but does not tell
    assert store.ensure() == kernel


def test_host_without_apt_is_told_what_to_set(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Blocked, match="settings"):
        store.ensure()


def _script(home: Path, name: str, body: str) -> Path:
    folder = home / "tools"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    return folder


def _tools(home: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    """An archive with one kernel package in it."""
    kernel = package.removeprefix("linux-image-")
    vmlinuz = image(home / f"image-{version}", kernel.encode() + b" x")
    unpack = f'mkdir -p "$3/boot" "$3/lib/modules/{kernel}"; '
    unpack += f'/bin/cp {vmlinuz} "$3/boot/vmlinuz-{kernel}"'
    cache = f'[ $1 = depends ] && echo "  Depends: {package}" || echo "Version: {version}"'
    _script(home, "apt-cache", cache)
    _script(home, "apt-get", ": > package.deb")
    _script(home, "dpkg", unpack)
    tools = _script(home, "depmod", 'echo "made by depmod" > "$2/lib/modules/$3/modules.dep"')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(kernels, "_APT_LISTS", tools)
    os.utime(tools)  # apt has news
