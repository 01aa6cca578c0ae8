"""Durable files: what a reader finds after success, failure and interruption."""

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest

from controller.errors import Retry
from controller.host import files


def test_write_atomic_replaces_the_content_and_sets_the_exact_mode(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_atomic(path, b"old")
    old_umask = os.umask(0o077)
    try:
        files.write_atomic(path, b"new" * 100_000, mode=0o644)
    finally:
        os.umask(old_umask)
    assert path.read_bytes() == b"new" * 100_000
    assert path.stat().st_mode & 0o7777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_write_atomic_replaces_a_link_instead_of_following_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "record").symlink_to(victim)
    files.write_atomic(tmp_path / "record", b"mine")
    assert victim.read_bytes() == b"untouched"
    assert not (tmp_path / "record").is_symlink()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "NoSpace"),
        (errno.EDQUOT, "NoSpace"),
        (errno.EROFS, "ReadOnly"),
        (errno.EIO, "IOError"),
    ],
)
def test_failed_sync_keeps_the_old_file_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    path = tmp_path / "record"
    files.write_atomic(path, b"old")

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Retry) as caught:
        files.write_atomic(path, b"new")
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


def test_write_atomic_below_a_missing_directory_is_a_retry(tmp_path: Path) -> None:
    with pytest.raises(Retry, match="No such file"):
        files.write_atomic(tmp_path / "gone" / "record", b"")


def test_remove_tree_removes_files_links_and_directories_and_is_idempotent(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "link").symlink_to(outside)
    (tree / "a" / "b" / "link").symlink_to(outside)
    files.remove_tree(tree)
    files.remove_tree(tree)
    (tmp_path / "single").write_text("x")
    files.remove_tree(tmp_path / "single")
    (tmp_path / "link").symlink_to(outside)
    files.remove_tree(tmp_path / "link")
    assert [p.name for p in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "kept"


def test_remove_tree_of_a_very_deep_directory_needs_no_stack(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    files.remove_tree(deep)
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_outlasts_a_writer_that_holds_the_directory(tmp_path: Path) -> None:
    tree = tmp_path / "log"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    started = threading.Event()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):  # the directory is gone under it
                os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            number += 1
            if number == 50:
                started.set()

    writer = threading.Thread(target=write)
    writer.start()
    started.wait(10)
    threading.Timer(0.2, stop.set).start()
    files.remove_tree(tree)
    stop.set()
    writer.join()
    os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_remove_temporaries_finishes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / f".record.0a{files.TEMPORARY_SUFFIX}").write_text("half")
    (tmp_path / f"{files.TRASH_PREFIX}0b" / "sub").mkdir(parents=True)
    (tmp_path / "record").write_text("whole")
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


def test_open_beneath_opens_below_and_refuses_links_and_escapes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("inside")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    directory = os.open(tmp_path / "in", os.O_RDONLY)
    try:
        fd = files.open_beneath(directory, "file", os.O_RDONLY)
        assert os.read(fd, 10) == b"inside"
        assert not os.get_inheritable(fd)
        os.close(fd)
        for relative, number in [("link", errno.ELOOP), ("../secret", errno.EXDEV)]:
            with pytest.raises(OSError, match=relative) as caught:
                files.open_beneath(directory, relative, os.O_RDONLY)
            assert caught.value.errno == number
        fd = files.open_beneath(directory, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(fd)
    finally:
        os.close(directory)
    assert (tmp_path / "in" / "new").stat().st_mode & 0o777 == 0o600
