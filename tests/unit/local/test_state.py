"""state.json: read by another process, honest about what died."""

import os
import subprocess
from pathlib import Path

import pytest

from controller.errors import Rejected
from controller.host.process import Identity, identity
from controller.local import state
from controller.local.state import Entry, State


def test_state_reads_back_equal(tmp_path: Path) -> None:
    me = identity(os.getpid())
    running = State(me, (Entry("etcd", me, "http://x/", 2, 3.0), Entry("between", None)))
    state.write(tmp_path / "state.json", running)
    assert state.read(tmp_path / "state.json") == running


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert state.read(tmp_path / "state.json") is None


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1, "processes": [{}]}', "[1]"])
def test_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(Rejected, match=r"state\.json"):
        state.read(file)


def test_state_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 2}')
    with pytest.raises(Rejected, match="another release"):
        state.read(tmp_path / "state.json")


def test_process_of_an_earlier_boot_does_not_run() -> None:
    me = identity(os.getpid())
    entry = Entry("etcd", Identity(me.pid, me.start_time, "an-earlier-boot"))
    assert not entry.running
    assert not entry.ready


def test_end_spares_strangers_and_ends_its_own() -> None:
    with subprocess.Popen(["sleep", "60"]) as own, subprocess.Popen(["sleep", "60"]) as stranger:
        who, other = identity(own.pid), identity(stranger.pid)
        reused = Identity(other.pid, other.start_time + 1, other.boot_id)
        State(None, (Entry("a", who), Entry("b", reused))).end()
        assert own.wait(10) != 0
        assert stranger.poll() is None
        stranger.kill()
