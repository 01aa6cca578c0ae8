"""The commit point: one rename makes a snapshot, and one removal ends it."""

import errno
import os
from pathlib import Path

import pytest

from controller.errors import Bug, Rejected, Retry, Timeout
from controller.host import failpoint, files
from controller.memory import commit
from tests.unit.memory.snapshots import die_at
from tests.unit.memory.test_manifest import MANIFEST

OTHER = MANIFEST.model_copy(update={"run": 4})


def test_a_committed_snapshot_is_found_again(tmp_path):
    path = commit.commit(tmp_path, 4, MANIFEST)
    assert path == tmp_path / "snap.4" / "manifest.json"
    assert commit.read(tmp_path, 4) == MANIFEST
    assert commit.read(tmp_path, 5) is None
    assert commit.manifests(tmp_path) == (path,)


def test_committing_twice_is_once_and_another_one_is_refused(tmp_path):
    commit.commit(tmp_path, 4, MANIFEST)
    commit.commit(tmp_path, 4, MANIFEST)
    with pytest.raises(Bug):
        commit.commit(tmp_path, 4, OTHER)
    assert commit.read(tmp_path, 4) == MANIFEST


def test_a_void_snapshot_is_none_and_voiding_twice_is_once(tmp_path):
    commit.commit(tmp_path, 4, MANIFEST)
    commit.void(tmp_path, 4)
    commit.void(tmp_path, 4)
    assert commit.read(tmp_path, 4) is None
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_not_absent(tmp_path):
    path = commit.commit(tmp_path, 4, MANIFEST)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Rejected, match=str(path)):
        commit.read(tmp_path, 4)
    path.unlink()
    path.mkdir()
    with pytest.raises(Retry):
        commit.read(tmp_path, 4)


def test_the_name_comes_last_and_is_synced(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)

        def spy(*args, _real=real, _name=name, **options):
            path = Path(f"/proc/self/fd/{args[0]}") if _name == "fsync" else None
            calls.append((_name, path.readlink().name.split(".")[0] if path else ""))
            return _real(*args, **options)

        monkeypatch.setattr(os, name, spy)
    home = tmp_path / "home"
    home.mkdir()
    commit.commit(home, 4, MANIFEST)
    assert calls == [("fsync", "home"), ("fsync", ""), ("rename", ""), ("fsync", "snap")]


@pytest.mark.parametrize("point", ["memory.folder.before", "memory.commit.before",
                                   "memory.commit.after"])  # fmt: skip
def test_a_commit_that_fails_leaves_no_snapshot(tmp_path, point):
    with failpoint.arm(f"{point}=raise"), pytest.raises(Retry):
        commit.commit(tmp_path, 4, MANIFEST)
    assert commit.read(tmp_path, 4) is None
    commit.commit(tmp_path, 4, MANIFEST)
    assert commit.read(tmp_path, 4) == MANIFEST


def test_a_commit_whose_last_sync_fails_is_taken_back(tmp_path, monkeypatch):
    real, count = os.fsync, []

    def broken(fd):
        count.append(fd)
        if len(count) == 3:  # folder's name, file, then the directory with the new name
            raise OSError(errno.EIO, "I/O error")
        real(fd)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Retry) as caught:
        commit.commit(tmp_path, 4, MANIFEST)
    assert caught.value.reason == "IOError"
    assert commit.read(tmp_path, 4) is None


def test_a_commit_that_can_neither_be_made_nor_taken_back_is_unknown(tmp_path, monkeypatch):
    real, count = os.fsync, []

    def broken(fd):
        count.append(fd)
        if len(count) >= 3:
            raise OSError(errno.EIO, "I/O error")
        real(fd)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Timeout) as caught:
        commit.commit(tmp_path, 4, MANIFEST)
    assert caught.value.reason == "CommitUnknown"


@pytest.mark.parametrize("point", ["memory.replace.before", "memory.replace.after"])
def test_replacing_leaves_the_old_or_the_new_one(tmp_path, point):
    commit.commit(tmp_path, 4, MANIFEST)
    with failpoint.arm(f"{point}=raise"), pytest.raises(Retry):
        commit.replace(tmp_path, 4, MANIFEST, OTHER)
    assert commit.read(tmp_path, 4) == (OTHER if point.endswith("after") else MANIFEST)
    with pytest.raises(Bug):
        commit.replace(tmp_path, 4, MANIFEST.model_copy(update={"run": 9}), OTHER)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["folder", "commit", "void"])
def test_a_crash_at_any_step_leaves_a_snapshot_or_none(tmp_path, step, when):
    verb = "void" if step == "void" else "commit"
    if verb == "void":
        commit.commit(tmp_path, 4, MANIFEST)
    die_at(f"memory.{step}.{when}", lambda: act(tmp_path, verb))
    there = (step, when) in {("commit", "after"), ("void", "before")}
    commit.clean(tmp_path)
    assert commit.read(tmp_path, 4) == (MANIFEST if there else None)
    assert [path.name for path in tmp_path.iterdir()] == (["snap.4"] if there else [])
    commit.commit(tmp_path, 4, MANIFEST)
    commit.void(tmp_path, 4)
    assert commit.read(tmp_path, 4) is None


def act(home: Path, verb: str) -> None:
    if verb == "commit":
        commit.commit(home, 4, MANIFEST)
    else:
        commit.void(home, 4)


def test_cleaning_keeps_what_is_committed(tmp_path):
    commit.commit(tmp_path, 4, MANIFEST)
    (tmp_path / "snap.3").mkdir()
    (tmp_path / "snap.4" / f".manifest.json.0{files.TEMPORARY_SUFFIX}").write_bytes(b"half")
    (tmp_path / "disk").mkdir()
    commit.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "manifest.json", "snap.4"]


def test_what_is_left_of_older_generations_goes(tmp_path):
    for generation in (2, 3, 4, 5):
        commit.commit(tmp_path, generation, MANIFEST)
    (tmp_path / "snap.1").mkdir()
    commit.void_older(tmp_path, 4)
    assert [path.parent.name for path in commit.manifests(tmp_path)] == ["snap.4", "snap.5"]
    commit.void_older(tmp_path / "nobody", 4)
