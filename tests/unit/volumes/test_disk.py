"""Overlay disks: made once, whole or not at all, and never in place of something else."""

import os
import subprocess
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry
from controller.volumes import disk

MIB = 1024 * 1024
GIB = 1024 * MIB


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def check_filesystem(path: Path) -> None:
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)


async def test_overlay_is_a_sound_empty_ext4_of_exactly_that_size(tmp_path: Path) -> None:
    path = tmp_path / "overlay.raw"
    await disk.create_overlay(path, 3 * GIB)
    found = path.stat()
    assert found.st_size == 3 * GIB
    assert found.st_mode & 0o777 == 0o600
    with path.open("rb") as file:
        file.seek(1024 + 56)
        assert file.read(2) == b"\x53\xef"  # ext4's magic number
    check_filesystem(path)
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.raw"]


@pytest.mark.parametrize("size", [disk.SMALLEST, 10 * GIB])
async def test_overlay_takes_next_to_nothing_until_it_is_used(tmp_path: Path, size: int) -> None:
    path = tmp_path / "overlay.raw"
    await disk.create_overlay(path, size)
    assert path.stat().st_blocks * 512 < MIB


async def test_second_creation_leaves_the_disk_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "overlay.raw"
    await disk.create_overlay(path, 16 * MIB)
    with path.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"a guest wrote this")
    before = (path.stat().st_ino, path.read_bytes())
    await disk.create_overlay(path, 16 * MIB)
    assert (path.stat().st_ino, path.read_bytes()) == before


@pytest.mark.parametrize("there", ["smaller disk", "directory", "link"])
async def test_something_else_in_its_place_is_left_alone(tmp_path: Path, there: str) -> None:
    path = tmp_path / "overlay.raw"
    if there == "smaller disk":
        await disk.create_overlay(path, 16 * MIB)
    elif there == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = path.lstat()
    with pytest.raises(Blocked, match="left alone") as refused:
        await disk.create_overlay(path, 32 * MIB)
    assert refused.value.reason == "DiskMismatch"
    assert path.lstat().st_ino == before.st_ino
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("says", "reason"),
    [("No space left on device", "NoSpace"), ("something odd", "DiskFormatFailed")],
)
async def test_format_that_fails_leaves_no_file(tmp_path: Path, says: str, reason: str) -> None:
    (tmp_path / "disks").mkdir()
    fails = program(tmp_path / "mke2fs", f"echo 'mke2fs: {says}' >&2; exit 1")
    with pytest.raises(Retry) as refused:
        await disk.create_overlay(tmp_path / "disks" / "overlay.raw", 16 * MIB, mke2fs=fails)
    assert refused.value.reason == reason
    assert list((tmp_path / "disks").iterdir()) == []


async def test_disk_too_small_for_its_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="ask for 16777216 or more"):
        await disk.create_overlay(tmp_path / "overlay.raw", disk.SMALLEST - 1)
    assert list(tmp_path.iterdir()) == []


async def test_disk_that_the_filesystem_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="ask for less"):
        await disk.create_overlay(tmp_path / "overlay.raw", 2**62)
    assert list(tmp_path.iterdir()) == []


async def test_missing_program_and_directory_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="install e2fsprogs"):
        await disk.create_overlay(tmp_path / "overlay.raw", 16 * MIB, mke2fs="no-such-mke2fs")
    with pytest.raises(Retry, match="cannot create"):
        await disk.create_overlay(tmp_path / "no" / "overlay.raw", 16 * MIB)
    assert list(tmp_path.iterdir()) == []


async def test_remove_is_done_when_nothing_is_there(tmp_path: Path) -> None:
    path = tmp_path / "overlay.raw"
    await disk.create_overlay(path, 16 * MIB)
    disk.remove(path)
    assert list(tmp_path.iterdir()) == []
    disk.remove(path)
    disk.remove(tmp_path / "no such directory" / "overlay.raw")
    (tmp_path / "directory").mkdir()
    with pytest.raises(Retry, match="cannot remove"):
        disk.remove(tmp_path / "directory")


async def test_creation_syncs_the_file_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        order.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        real_fsync(fd)

    def rename(source: Path, target: Path, **rest: int) -> None:
        order.append(f"name {Path(target).name}")
        real_rename(source, target, **rest)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    await disk.create_overlay(tmp_path / "overlay.raw", 16 * MIB)
    assert order[0].startswith("sync .overlay.raw.")
    assert order[1:] == ["name overlay.raw", f"sync {tmp_path.name}"]
