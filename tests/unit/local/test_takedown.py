"""Asking agents to stop their guests, with an agent that is a socket and an answer."""

import os
import signal
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.local import install as installs
from controller.local import takedown
from controller.local.install import Install, settle

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a process under another uid needs root")


@pytest.fixture
def install(place: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setattr(installs, "RUN_BASE", place / "r")
    return settle(place / "cluster", registry_port=0)


@contextmanager
def _agent(install: Install, status: int, asked: list[tuple[str, bytes]]) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"one guest is stuck")

        def log_message(self, *args: object) -> None:
            pass

    path = install.node_settings(0).run_dir / "agent.sock"
    path.parent.mkdir(parents=True)
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _guest(install: Install) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], user=install.uid_base(0) + 3) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_agent_is_asked_to_stop_its_guests(install: Install) -> None:
    asked: list[tuple[str, bytes]] = []
    with _agent(install, 200, asked):
        takedown.drain(install, lambda line: None)
    assert asked == [("/drain", b'{"guests": "stop"}')]


def test_refusal_of_an_agent_is_passed_on(install: Install) -> None:
    with _agent(install, 500, []), pytest.raises(Blocked, match="one guest is stuck"):
        takedown.drain(install, lambda line: None)


def test_node_with_neither_agent_nor_guests_is_drained(install: Install) -> None:
    takedown.drain(install, lambda line: None)


@needs_root
def test_guests_without_an_agent_are_no_silent_success(install: Install) -> None:
    with _guest(install), pytest.raises(Blocked, match="node-1: guests run but the agent"):
        takedown.drain(install, lambda line: None)


@needs_root
def test_run_dir_of_live_guests_stays(install: Install) -> None:
    install.run_dir.mkdir(parents=True)
    with _guest(install) as pid, pytest.raises(Blocked, match=f"{pid}"):
        takedown.remove_run_dir(install)
    assert install.run_dir.exists()
    takedown.remove_run_dir(install)
    assert not install.run_dir.exists()


@needs_root
def test_tmpfs_of_an_agent_is_unmounted(install: Install) -> None:
    point = install.node_settings(0).run_dir
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    takedown.remove_run_dir(install)
    assert takedown.mounts_below(install.run_dir) == []
    assert not install.run_dir.exists()


def test_purge_removes_the_directory(install: Install) -> None:
    takedown.purge(install)
    assert not install.directory.exists()


@needs_root
def test_left_guests_are_ended_where_their_disks_go_next(install: Install) -> None:
    with _guest(install) as pid:
        # the guest is a child of ours, so somebody has to reap it for it to be gone
        reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
        reaper.start()
        takedown.end_guests(install)
        reaper.join()
        assert takedown.guests(install) == []


@needs_root
def test_a_dead_guest_that_nobody_reaped_yet_is_no_guest(install: Install) -> None:
    with _guest(install) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
        assert takedown.guests(install) == []
