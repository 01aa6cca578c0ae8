"""torpor up, status and down where there is no cluster, or only half of one."""

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from controller.cli import cluster
from controller.errors import Rejected
from controller.host.process import identity
from controller.local import state
from controller.local.cluster import state_path


def test_status_of_nothing_says_how_to_start(tmp_path: Path) -> None:
    done = CliRunner().invoke(cluster.status, ["--dir", str(tmp_path)], standalone_mode=False)
    assert done.return_value == 1
    assert "torpor up" in done.output


def test_status_lists_name_pid_and_readiness(tmp_path: Path) -> None:
    me = identity(os.getpid())
    entries = (state.Entry("etcd", me), state.Entry("agent-node-1", None, restarts=4))
    state.write(state_path(tmp_path), state.State(me, entries))

    done = CliRunner().invoke(
        cluster.status, ["--dir", str(tmp_path), "-o", "json"], standalone_mode=False
    )

    assert done.return_value == 1  # one of them does not run
    assert json.loads(done.output)["processes"] == [
        {"name": "supervisor", "pid": me.pid, "ready": True, "restarts": 0},
        {"name": "etcd", "pid": me.pid, "ready": True, "restarts": 0},
        {"name": "agent-node-1", "pid": None, "ready": False, "restarts": 4},
    ]


def test_down_of_nothing_is_no_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cluster.down, ["--dir", str(tmp_path)], standalone_mode=False)
    assert done.exception is None
    assert "there is no cluster" in done.output


@pytest.mark.parametrize("command", [cluster.status, cluster.down])
def test_a_cluster_of_another_user_is_said_to_be_so(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read all
    found = CliRunner().invoke(command, ["--dir", str(tmp_path)])
    assert isinstance(found.exception, Rejected)
    assert "use sudo" in str(found.exception)


def test_purge_cannot_leave_guests(tmp_path: Path) -> None:
    arguments = ["--dir", str(tmp_path), "--purge", "--guests", "leave"]
    done = CliRunner().invoke(cluster.down, arguments, standalone_mode=False)
    assert isinstance(done.exception, Rejected)


def test_directory_comes_from_option_then_environment_then_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORPOR_DIR", str(tmp_path / "environment"))
    given = CliRunner().invoke(cluster.status, ["--dir", str(tmp_path / "option")])
    taken = CliRunner().invoke(cluster.status, [])
    monkeypatch.delenv("TORPOR_DIR")
    usual = CliRunner().invoke(cluster.status, [])
    assert str(tmp_path / "option") in given.output
    assert str(tmp_path / "environment") in taken.output
    assert "/var/lib/torpor" in usual.output
