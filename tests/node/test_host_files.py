"""Durable files on file systems that are full, read-only or broken."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import Retry
from controller.host import files

pytestmark = pytest.mark.node
STRACE = Path("/usr/bin/strace")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_full_disk_keeps_the_old_file_and_no_rest_of_the_new(small_disk: Path) -> None:
    path = small_disk / "record"
    files.write_atomic(path, b"old" * 1000)
    with pytest.raises(Retry) as caught:
        files.write_atomic(path, bytes(1 << 20))
    assert caught.value.reason == "NoSpace"
    assert path.read_bytes() == b"old" * 1000
    assert [p.name for p in small_disk.iterdir()] == ["record"]
    files.write_atomic(path, b"new")  # the failed attempt gave its room back
    assert path.read_bytes() == b"new"


def test_read_only_file_system_is_named_so(small_disk: Path) -> None:
    files.write_atomic(small_disk / "record", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Retry) as caught:
        files.write_atomic(small_disk / "record", b"new")
    assert caught.value.reason == "ReadOnly"
    with pytest.raises(Retry) as caught:
        files.remove_tree(small_disk / "record")
    assert caught.value.reason == "ReadOnly"
    assert (small_disk / "record").read_bytes() == b"old"


def test_mount_below_a_removed_tree_keeps_its_content(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "precious").write_text("precious")
    tree = tmp_path / "tree"
    (tree / "sub" / "point").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(small_disk), str(tree / "sub" / "point")], check=True)
    with pytest.raises(Retry) as caught:
        files.remove_tree(tree)
    assert caught.value.reason == "Busy"
    assert (small_disk / "precious").read_text() == "precious"
    trash = next(tmp_path.glob(f"{files.TRASH_PREFIX}*"))
    subprocess.run(["umount", str(trash / "sub" / "point")], check=True)
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


WRITE = """
import sys
from pathlib import Path
from controller.errors import Retry
from controller.host import files
try:
    files.write_atomic(Path(sys.argv[1]), b"new")
except Retry as error:
    print(error.reason)
"""


@pytest.mark.skipif(not STRACE.exists(), reason="strace is not installed")
@pytest.mark.parametrize(
    ("fault", "reason", "content"),
    [
        ("fsync:error=EIO:when=1", "IOError", b"old"),  # of the file: not renamed
        ("fsync:error=EIO:when=2", "IOError", b"new"),  # of the directory: visible, not promised
        ("rename:error=ENOSPC", "NoSpace", b"old"),
    ],
)
def test_faults_of_the_kernel_are_told_and_leave_no_temporary(
    tmp_path: Path, fault: str, reason: str, content: bytes
) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"old")
    trace = [str(STRACE), "-f", "-o", "/dev/null", "-e", f"inject={fault}"]
    if fault.startswith("rename"):
        trace[-1] = f"inject=rename,renameat,renameat2:{fault.partition(':')[2]}"
    done = subprocess.run(
        [*trace, sys.executable, "-c", WRITE, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.decode().strip() == reason
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


@pytest.mark.skipif(not STRACE.exists(), reason="strace is not installed")
def test_kill_before_the_rename_leaves_the_old_file_and_a_temporary_the_sweep_finds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"old")
    inject = "inject=rename,renameat,renameat2:signal=KILL"
    subprocess.run(
        [str(STRACE), "-fo/dev/null", "-e", inject, sys.executable, "-c", WRITE, str(path)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    names = sorted(p.name for p in tmp_path.iterdir())
    # The kernel may have done the rename of a process it was already killing.
    assert path.read_bytes() in (b"old", b"new")
    assert all(name == "record" or files.is_temporary(name) for name in names)
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["record"]
