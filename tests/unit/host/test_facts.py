"""Facts about this host agree with what other tools say."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from controller.errors import Retry
from controller.host import diskspace, facts


def test_facts_agree_with_other_witnesses() -> None:
    found = facts.read()
    assert found.memory == psutil.virtual_memory().total
    assert found.swap == psutil.swap_memory().total
    assert found.cpus == int(subprocess.check_output(["nproc"]))
    assert found.kernel == subprocess.check_output(["uname", "-r"], text=True).strip()
    assert found.architecture == subprocess.check_output(["uname", "-m"], text=True).strip()
    threads = subprocess.check_output(["lscpu", "-p=CPU,CORE"], text=True)
    rows = [line.split(",") for line in threads.splitlines() if not line.startswith("#")]
    assert found.threads_per_core == sum(core == rows[0][1] for _, core in rows)
    assert found.cgroup_limits in ("full", "partial", "none")


def test_free_space_is_what_df_says(tmp_path: Path) -> None:
    words = subprocess.check_output(["df", "-B1", "--output=avail,size", tmp_path], text=True)
    available, size = map(int, words.splitlines()[1].split())
    assert abs(diskspace.free_bytes(tmp_path) - available) < 1 << 28  # others write meanwhile
    assert diskspace.total_bytes(tmp_path) == size


def test_asking_a_missing_place_is_a_retry(tmp_path: Path) -> None:
    for ask in (diskspace.free_bytes, diskspace.total_bytes, diskspace.shares_blocks):
        with pytest.raises(Retry, match="gone"):
            ask(tmp_path / "gone")


def test_block_sharing_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    clone = ["cp", "--reflink=always", "a", "b"]
    (tmp_path / "a").write_bytes(bytes(4096))
    works = subprocess.run(clone, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    before = sorted(os.listdir(tmp_path))  # noqa: PTH208 - names are enough
    assert diskspace.shares_blocks(tmp_path) is works
    assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208
