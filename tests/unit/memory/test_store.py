"""The store: what it keeps, what it removes, and what it notices."""

import errno
import fcntl
import os
import random
import stat
from pathlib import Path

import pytest

from controller.errors import Blocked, Rejected, Retry
from controller.host import failpoint
from controller.memory import commit, rebasing
from controller.memory.chunks import CHUNK, CHUNK_PAGES
from controller.memory.copier import Cancelled
from controller.memory.manifest import Manifest, Seen
from controller.memory.pages import PAGE
from controller.memory.saving import STATE_LIMIT, StateSink
from controller.memory.store import MemoryStore
from tests.unit.memory.snapshots import GID, Shelf, die_at, pattern, put, ram_of, read_back

SIZE = 2 * CHUNK_PAGES + 3
OLD = ram_of({n: pattern(n) for n in (*range(40), 1500, SIZE - 1)}, SIZE)
NEW = ram_of({n: pattern(n, n % 3) for n in (*range(4, 60), SIZE - 1)}, SIZE)


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(tmp_path)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit and nothing else that can be seen: size, mode and mtime stay."""
    path.chmod(0o640)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    path.chmod(0o440)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def found(shelf: Shelf, manifest: Manifest, *, full: bool = False) -> list[str]:
    """Messages of what is wrong; all of it is SnapshotCorrupt."""
    problems = shelf.store.verify(manifest, full=full)
    assert {problem.reason for problem in problems} <= {"SnapshotCorrupt"}
    return [problem.message for problem in problems]


def test_a_snapshot_holds_the_memory_and_verifies(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    assert read_back(shelf.store, manifest) == NEW
    assert found(shelf, manifest, full=True) == []
    with shelf.store.path(manifest.base).open("rb") as file:
        assert file.read(len(OLD)) == OLD  # byte n of the file is byte n of RAM


def test_files_are_read_only_and_the_lineages(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    for file in manifest.files:
        status = shelf.store.path(file).stat()
        assert (status.st_mode & 0o7777, status.st_gid, status.st_nlink) == (0o440, GID, 1)
    assert shelf.store.path(manifest.base).parent.stat().st_mode & 0o7777 == 0o710


def test_a_base_is_sparse(shelf):
    manifest = shelf.snapshot(OLD)
    assert manifest.base.on_disk < 64 * PAGE < len(OLD)


def test_the_same_bytes_are_stored_once(shelf):
    first, second = shelf.snapshot(OLD, NEW), shelf.snapshot(OLD, NEW)
    assert [file.digest for file in first.files] == [file.digest for file in second.files]
    assert first.base == second.base  # the inode too: somebody may have it mapped
    assert len(shelf.names()) == 3


def test_a_damaged_base_is_replaced_when_it_is_written_again(shelf):
    first = shelf.snapshot(OLD)
    flip(shelf.store.path(first.base), 0)
    again = shelf.snapshot(OLD)
    assert found(shelf, again, full=True) == []
    assert found(shelf, first, full=True) == []


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "delta", "state"])
def test_a_missing_file_is_named(shelf, which):
    manifest = shelf.snapshot(OLD, NEW)
    path = shelf.store.path(getattr(manifest, which))
    path.unlink()
    (message,) = found(shelf, manifest)
    assert str(path) in message
    assert "gone" in message
    assert "operatingMode: Stopped" in message


@pytest.mark.parametrize("which", ["base", "delta", "state"])
@pytest.mark.parametrize("change", [-1, -PAGE, +1])
def test_a_file_of_another_length_is_named(shelf, which, change):
    manifest = shelf.snapshot(OLD, NEW, state=random.Random(1).randbytes(3 * PAGE))
    path = shelf.store.path(getattr(manifest, which))
    os.truncate(path, path.stat().st_size + change)
    (message,) = found(shelf, manifest)
    assert str(path) in message


def test_a_bit_flipped_anywhere_is_found(shelf):
    manifest = shelf.snapshot(OLD, NEW, state=random.Random(1).randbytes(PAGE))
    dice = random.Random(5)
    for file in manifest.files:
        path = shelf.store.path(file)
        for _ in range(25):
            at, bit = dice.randrange(path.stat().st_size), dice.randrange(8)
            flip(path, at, bit)
            assert found(shelf, manifest), f"{path} byte {at}"
            flip(path, at, bit)
    assert found(shelf, manifest, full=True) == []


def test_each_damaged_chunk_is_named(shelf):
    manifest = shelf.snapshot(OLD)
    path = shelf.store.path(manifest.base)
    flip(path, 7)
    flip(path, CHUNK + 99 * PAGE)
    messages = found(shelf, manifest)
    assert [f"chunk {n} (byte {n * CHUNK})" in m for n, m in enumerate(messages)] == [True, True]


def test_files_swapped_with_anothers_are_found(shelf):
    one, two = shelf.snapshot(OLD, NEW, b"one"), shelf.snapshot(NEW, OLD, b"two")
    for mine, theirs in zip(one.files, two.files, strict=True):
        ours, other = shelf.store.path(mine), shelf.store.path(theirs)
        side = ours.with_name("side")
        ours.rename(side)
        other.rename(ours)
        side.rename(other)
    assert len(found(shelf, one)) >= 3
    assert len(found(shelf, two)) >= 3


def test_a_delta_of_another_base_is_found(shelf):
    one, two = shelf.snapshot(OLD, NEW), shelf.snapshot(NEW, OLD)
    (message,) = found(shelf, one.model_copy(update={"delta": two.delta}))
    assert "another base" in message
    (message,) = found(shelf, one.model_copy(update={"base": two.base}))
    assert "another base" in message


@pytest.mark.parametrize("mode", [0o444, 0o640, 0o400])
def test_a_file_that_others_could_reach_is_refused(shelf, mode):
    manifest = shelf.snapshot(OLD, NEW)
    shelf.store.path(manifest.base).chmod(mode)
    assert len(found(shelf, manifest)) == 1


def test_a_link_in_place_of_a_file_is_not_followed(shelf, tmp_path):
    manifest = shelf.snapshot(OLD)
    path = shelf.store.path(manifest.base)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (problem,) = shelf.store.verify(manifest)
    assert problem.reason == "SnapshotCorrupt"
    assert path.name in problem.message


# --- when a base is read ------------------------------------------------------------------------


def unseen_damage(shelf: Shelf, manifest: Manifest) -> None:
    """Damage that nothing but reading shows, as a bad disk does it."""
    path = shelf.store.path(manifest.base)
    flip(path, 0)
    shelf.store.verified.add(f"{GID}/{path.name}", Seen.of(path.stat()))


def test_a_base_is_read_once_in_a_boot_of_the_host(shelf, tmp_path):
    manifest = shelf.snapshot(OLD, NEW)
    unseen_damage(shelf, manifest)
    assert found(shelf, manifest) == []
    assert len(found(shelf, manifest, full=True)) == 1
    again = shelf.snapshot(OLD)
    unseen_damage(shelf, again)
    rebooted = MemoryStore(tmp_path / "memory", shelf._references, boot="another")
    rebooted.start()
    assert len(rebooted.verify(again)) == 1


def test_what_was_found_whole_survives_the_agent(shelf, tmp_path):
    manifest = shelf.snapshot(OLD)
    unseen_damage(shelf, manifest)
    restarted = MemoryStore(tmp_path / "memory", shelf._references)
    assert restarted.verify(manifest) == ()


@pytest.mark.parametrize("text", ["", "{", '{"boot": 1}', "[1]", '{"boot": "x", "files": []}'])
def test_a_broken_list_costs_time_and_nothing_else(shelf, tmp_path, text):
    manifest = shelf.snapshot(OLD)
    (tmp_path / "memory" / "verified.json").write_text(text)
    flip(shelf.store.path(manifest.base), 0)
    assert len(MemoryStore(tmp_path / "memory", shelf._references).verify(manifest)) == 1


def touch(path: Path) -> None:
    os.utime(path)


def link(path: Path) -> None:
    os.link(path, path.with_name("link"))


def copy(path: Path) -> None:
    side = path.with_name("side")
    side.write_bytes(path.read_bytes())
    side.chmod(0o440)
    side.rename(path)


@pytest.mark.parametrize("change", [touch, link, copy])
def test_a_base_that_looks_different_is_read_again(shelf, change):
    manifest = shelf.snapshot(OLD)
    path = shelf.store.path(manifest.base)
    unseen_damage(shelf, manifest)
    change(path)
    assert len(found(shelf, manifest)) == 1
    flip(path, 0)
    assert found(shelf, manifest) == []  # a change that did no harm is no problem


# --- references ---------------------------------------------------------------------------------


def test_what_a_manifest_names_is_kept_and_the_rest_goes(shelf):
    kept, gone = shelf.snapshot(OLD, NEW, b"kept"), shelf.snapshot(NEW, OLD, b"gone")
    commit.commit(shelf.home(), 4, kept)
    removed = shelf.store.collect()
    assert sorted(path.name for path in removed) == sorted(file.name for file in gone.files)
    assert shelf.names() == sorted(file.name for file in kept.files)
    assert found(shelf, kept, full=True) == []
    assert shelf.store.collect() == ()


def test_files_go_with_their_last_manifest(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    one, two = shelf.home("one"), shelf.home("two")
    commit.commit(one, 4, manifest)
    commit.commit(two, 1, manifest)
    commit.void(one, 4)
    assert shelf.store.collect() == ()
    commit.void(two, 1)
    assert len(shelf.store.collect()) == 3
    assert list((shelf.root / "memory").glob("*/")) == []


def test_what_a_record_holds_is_kept(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    shelf.held.add(manifest.base.digest)
    assert len(shelf.store.collect()) == 2
    assert shelf.names() == [manifest.base.name]


def test_one_manifest_that_cannot_be_read_stops_all_deletion(shelf):
    shelf.snapshot(NEW)
    path = commit.commit(shelf.home("two"), 4, shelf.snapshot(OLD))
    path.write_bytes(b"{" + path.read_bytes())
    with pytest.raises(Retry) as caught:
        shelf.store.collect()
    assert caught.value.reason == "ReferencesUnknown"
    assert str(path) in str(caught.value)
    assert len(shelf.names()) == 3  # both have the same device state


@pytest.mark.parametrize("error", [Rejected("record of x: broken"), Retry("cannot list")])
def test_one_record_that_cannot_be_read_stops_all_deletion(shelf, error):
    shelf.snapshot(OLD)
    shelf.trouble = error
    with pytest.raises(Retry, match=str(error)):
        shelf.store.collect()
    assert len(shelf.names()) == 2


def test_nothing_is_collected_between_publishing_and_the_commit(shelf):
    home = shelf.home()
    with shelf.store.saving() as saving:
        put(saving, shelf.store, OLD)
        assert shelf.store.collect() == ()
        assert len(shelf.names()) == 1
    assert home.is_dir()
    assert len(shelf.store.collect()) == 1


def test_strange_files_are_left_alone(shelf):
    shelf.snapshot(OLD)
    strange = shelf.root / "memory" / str(GID) / "base-notes.txt"
    strange.write_text("somebody's")
    shelf.store.collect()
    assert strange.exists()


def test_two_may_save_at_once(shelf):
    with shelf.store.saving() as one, shelf.store.saving() as two:
        assert put(one, shelf.store, OLD) == put(two, shelf.store, OLD)


# --- space and crashes --------------------------------------------------------------------------


def test_space_is_asked_for_before_anything(shelf):
    shelf.store.check_space(1)
    with pytest.raises(Retry) as caught:
        shelf.store.check_space(1 << 60)
    assert caught.value.reason == "NoSpace"


@pytest.mark.parametrize("point", ["memory.write", "memory.sync", "memory.publish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_save_that_fails_leaves_no_temporary_file(shelf, point, when):
    with failpoint.arm(f"{point}.{when}=raise"), pytest.raises(Retry):
        act(shelf, "save")
    assert not [name for name in shelf.names() if name.startswith(".")]
    with shelf.store.saving() as saving:
        saving.state(b"x", GID)
    assert len(shelf.names()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["write", "sync", "publish", "unlink"])
def test_a_crash_at_any_step_is_tidied_by_the_next_start(tmp_path, step, when):
    shelf = Shelf(tmp_path)
    verb = "collect" if step == "unlink" else "save"
    if verb == "collect":
        with shelf.store.saving() as saving:
            saving.state(b"x", GID)
    die_at(f"memory.{step}.{when}", lambda: act(shelf, verb))
    shelf.store.start()
    assert len(shelf.names()) == ((step, when) in {("publish", "after"), ("unlink", "before")})
    with shelf.store.saving() as saving:  # the dead one's lock is gone with it
        saving.state(b"x", GID)
    assert len(shelf.store.collect()) == 1


def act(shelf: Shelf, verb: str) -> None:
    if verb == "collect":
        shelf.store.collect()
        return
    with shelf.store.saving() as saving:
        saving.state(b"x", GID)


def test_a_file_is_synced_before_it_has_its_name_and_the_name_after(shelf, monkeypatch):
    with shelf.store.saving() as saving:
        saving.state(b"first", GID)  # makes the lineage's directory
    calls = []
    sync, rename = os.fsync, Path.rename

    def spy_sync(fd):
        mode = os.fstat(fd).st_mode
        calls.append("sync directory" if stat.S_ISDIR(mode) else f"sync {stat.S_IMODE(mode):o}")
        sync(fd)

    def spy_rename(path, target):
        calls.append(f"name {Path(target).name.split('-')[0]}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    with shelf.store.saving() as saving:
        saving.state(b"second", GID)
    assert calls == ["sync 440", "name state", "sync directory"]


def test_a_sync_that_fails_leaves_nothing(shelf, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch, shelf.store.saving() as saving:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(Retry) as caught:
            saving.state(b"x", GID)
    assert caught.value.reason == "IOError"
    assert shelf.names() == []


# --- device state -------------------------------------------------------------------------------


def test_device_state_is_what_was_written_to_the_descriptor():
    with StateSink() as sink:
        assert fcntl.fcntl(sink.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        theirs = os.dup(sink.fd)
        os.ftruncate(theirs, 0)
        os.write(theirs, b"device" * 1000 + b"\0")
        assert sink.data() == b"device" * 1000 + b"\0"
        with pytest.raises(PermissionError):  # what is digested is what is stored
            os.pwrite(theirs, b"other", 0)
        os.close(theirs)


@pytest.mark.parametrize("size", [0, STATE_LIMIT + 1])
def test_device_state_of_no_sensible_size_is_refused(size):
    with StateSink() as sink:
        os.ftruncate(sink.fd, size)
        with pytest.raises(Blocked) as caught:
            sink.data()
        assert caught.value.reason == "DeviceStateMissing"


# --- a new base ---------------------------------------------------------------------------------


def test_a_new_base_holds_the_same_memory(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    home = shelf.home()
    commit.commit(home, 4, manifest)
    assert rebasing.is_due(manifest)
    with shelf.store.saving() as saving:
        new = rebasing.rebase(shelf.store, saving, manifest)
        commit.replace(home, 4, manifest, new)
    assert new.delta is None
    assert read_back(shelf.store, new) == NEW
    assert new.base.digest == shelf.snapshot(NEW).base.digest
    shelf.store.collect()
    assert commit.read(home, 4) == new
    assert found(shelf, new, full=True) == []
    assert len(shelf.names()) == 2


def rebased(shelf: Shelf, home: Path) -> None:
    """As its caller does it."""
    manifest = commit.read(home, 4)
    assert manifest is not None
    with shelf.store.saving() as saving:
        commit.replace(home, 4, manifest, rebasing.rebase(shelf.store, saving, manifest))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["rebase", "sync", "publish", "replace"])
def test_a_crash_while_a_new_base_is_made_leaves_the_memory(shelf, step, when):
    home = shelf.home()
    commit.commit(home, 4, shelf.snapshot(OLD, NEW))
    die_at(f"memory.{step}.{when}", lambda: rebased(shelf, home))
    shelf.store.start()
    commit.clean(home)
    shelf.store.collect()
    there = commit.read(home, 4)
    assert there is not None
    assert (there.delta is None) == ((step, when) == ("replace", "after"))
    assert found(shelf, there, full=True) == []
    assert read_back(shelf.store, there) == NEW
    rebased(shelf, home)
    again = commit.read(home, 4)
    assert again is not None
    assert read_back(shelf.store, again) == NEW


def test_a_new_base_is_given_up_when_it_is_cancelled(shelf):
    manifest = shelf.snapshot(OLD, NEW)
    before = shelf.names()
    with shelf.store.saving() as saving, pytest.raises(Cancelled):
        rebasing.rebase(shelf.store, saving, manifest, cancelled=lambda: True)
    assert shelf.names() == before


@pytest.mark.parametrize("which", ["base", "delta"])
def test_damage_does_not_get_into_a_new_base(shelf, which):
    manifest = shelf.snapshot(OLD, NEW)
    flip(shelf.store.path(getattr(manifest, which)), 0)
    if which == "base":
        path = shelf.store.path(manifest.base)
        shelf.store.verified.add(f"{GID}/{path.name}", Seen.of(path.stat()))
    with shelf.store.saving() as saving, pytest.raises(Rejected):
        rebasing.rebase(shelf.store, saving, manifest)
