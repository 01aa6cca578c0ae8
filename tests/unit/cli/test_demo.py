"""``torpor demo`` in parts: showing commands, a stage proven gone. The show is a cluster test."""

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from controller.cli import demo as command
from controller.cli import narrator as voice
from controller.cli import stage as stages
from controller.cli import story
from controller.cli.narrator import Narrator
from controller.cli.stage import Stage, Traces
from controller.errors import Blocked, Rejected, Timeout, TorporError
from controller.host.process import identity


@pytest.fixture
def narrator(tmp_path: Path) -> Narrator:
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True)
    return Narrator(tmp_path, {"WHO": "demo"}, console)


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stages of these tests are made here and looked for only here."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(stages.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(stages, "BESIDE_TMP", ())
    monkeypatch.setattr(stages, "reachable_place", lambda: tmp_path)
    return tmp_path


def shown(narrator: Narrator) -> list[str]:
    assert isinstance(narrator.console.file, io.StringIO)
    return narrator.console.file.getvalue().splitlines()


def test_a_command_is_shown_as_it_is_typed_with_its_output(narrator):
    assert narrator.run("sh", "-c", "echo $WHO; echo oops >&2") == "demo\noops"
    assert shown(narrator) == ["$ sh -c 'echo $WHO; echo oops >&2'", "  demo", "  oops"]


def test_output_cannot_drive_the_terminal_or_pass_for_markup(narrator):
    narrator.run("printf", r"[bold]\033[2J\n")
    assert shown(narrator)[-1] == r"  [bold]\x1b[2J"


def test_a_failed_command_is_named_with_its_code_and_last_line(narrator):
    with pytest.raises(TorporError, match=r"sh -c .*: exit code 3: because$"):
        narrator.run("sh", "-c", "echo because; exit 3")


def test_a_missing_program_is_no_traceback(narrator):
    with pytest.raises(TorporError, match="no-such-program: No such file"):
        narrator.run("no-such-program")


def test_a_command_that_hangs_is_killed(narrator, monkeypatch):
    monkeypatch.setattr(voice, "COMMAND_SECONDS", 0.1)
    with pytest.raises(Timeout, match=r"sleep 60 took over 0\.1 s"):
        narrator.run("sleep", "60")


def test_asking_shows_nothing(narrator):
    assert narrator.ask("sh", "-c", "echo quiet; echo loud >&2; exit 1") == "quiet\n"
    assert shown(narrator) == []


def test_lines_that_count_are_whole_lines():
    text = "1 counter -\n2 counter 0f3a55de\r\nstopped at 3\n 4 counter -\n5\n6 fork 9 9\n7 fork 11"
    assert story.counted(text) == [
        (1, "counter", "-"),
        (2, "counter", "0f3a55de"),
        (7, "fork", "11"),
    ]


def test_a_stage_is_open_to_vmms_and_gone_afterwards(narrator, own_places):
    with stages.stage(narrator) as (made, equipped):
        assert made.base.parent == own_places
        assert made.base.stat().st_mode & 0o777 == 0o711
        assert equipped.environment["KUBECONFIG"] == str(made.cluster / "kubeconfig")
    assert not made.base.exists()


def test_a_failure_keeps_the_logs_and_says_where(narrator):
    def fail() -> None:
        with stages.stage(narrator) as (made, _):
            guest = made.cluster / "nodes" / "node-1" / "state" / "instances" / "uid" / "log"
            for directory in (made.cluster / "log", guest):
                directory.mkdir(parents=True)
            (made.cluster / "log" / "etcd.log").write_text("words")
            (guest / "workload.log").write_text("more words")
            raise TorporError("it broke")

    with pytest.raises(TorporError, match="it broke; logs: ") as caught:
        fail()
    kept = Path(str(caught.value).split("logs: ")[1])
    assert (kept / "etcd.log").read_text() == "words"
    assert (kept / "instances" / "uid" / "workload.log").read_text() == "more words"
    assert list(kept.parent.iterdir()) == [kept], "the stage is gone"


def test_an_interruption_removes_everything_logs_too(narrator, own_places):
    def interrupt() -> None:
        with stages.stage(narrator) as (made, _):
            (made.cluster / "log").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(own_places.iterdir()) == []


def test_what_is_left_is_named(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as left:
        traces = Traces((("etcd", identity(left.pid)),), None, tmp_path)
        assert traces.left() == [f"etcd (pid {left.pid})", str(tmp_path)]
        left.kill()
    assert Traces((), None, tmp_path / "gone").left() == []


def test_a_stage_that_cannot_be_removed_is_an_error(narrator, monkeypatch, tmp_path):
    monkeypatch.setattr(stages.shutil, "rmtree", lambda *args, **options: None)
    with pytest.raises(Blocked, match=f"left behind: {tmp_path}"):
        stages.strike(Stage(tmp_path), narrator)


def test_only_stages_of_dead_processes_are_abandoned(own_places):
    def staged(name: str, owner: str | None) -> Path:
        base = own_places / f"{stages.PREFIX}{name}"
        base.mkdir()
        if owner is not None:
            (base / stages.OWNER).write_text(owner)
        return base

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        dead = json.dumps(asdict(identity(owner.pid)))
    staged("living", json.dumps(asdict(identity(os.getpid()))))
    staged("new", None)
    staged("odd", "[]")
    left = staged("left", dead)
    assert stages.abandoned() == [Stage(left)]


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(command.os, "geteuid", lambda: 1000)
    with pytest.raises(Rejected, match="needs root"):
        command.demo.main([], standalone_mode=False)


def test_outside_the_source_tree_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(command.os, "geteuid", lambda: 0)
    monkeypatch.setattr(command, "TREE", tmp_path)
    with pytest.raises(Rejected, match="run it in the source tree"):
        command.demo.main([], standalone_mode=False)


def test_a_closed_temporary_directory_is_passed_over(monkeypatch):
    places = {"/": True, "/home": False, "/home/tmp": True, "/srv": True}
    monkeypatch.undo()
    monkeypatch.setattr(stages, "is_open", lambda place: places[str(place)])
    monkeypatch.setattr(stages.tempfile, "gettempdir", lambda: "/home/tmp")
    monkeypatch.setattr(stages, "BESIDE_TMP", (Path("/srv"),))
    assert stages.reachable_place() == Path("/srv")
    places["/srv"] = False
    with pytest.raises(Blocked, match="none of /home/tmp, /srv is open"):
        stages.reachable_place()
