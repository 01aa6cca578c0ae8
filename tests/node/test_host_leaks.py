"""The leak oracle sees each kind of leftover; an oracle that sees nothing proves nothing."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from controller.host import cgroup, process
from controller.host.cgroup import Cgroup
from controller.host.process import Sandbox
from tests import leaks

pytestmark = pytest.mark.node
NAME = f"tt{os.getpid()}-x"  # a device name has 15 characters at most


@contextmanager
def a_mount(where: Path) -> Iterator[None]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(where)], check=True)
    yield
    subprocess.run(["umount", str(where)], check=True)


@contextmanager
def a_socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        yield


@contextmanager
def a_cgroup() -> Iterator[None]:
    Cgroup.create(NAME, "left")
    yield
    Cgroup.at(NAME, "left").remove()
    cgroup.remove_prefix(NAME)


@contextmanager
def a_link(kind: list[str]) -> Iterator[None]:
    subprocess.run(["ip", *kind, "add", "name", NAME, "mode", "tap"], check=True)
    yield
    subprocess.run(["ip", *kind, "del", "name", NAME, "mode", "tap"], check=True)


@contextmanager
def a_namespace() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    yield
    subprocess.run(["ip", "netns", "del", NAME], check=True)


@contextmanager
def a_loop(path: Path) -> Iterator[None]:
    path.write_bytes(bytes(1 << 20))
    made = subprocess.run(
        ["losetup", "-f", "--show", str(path)], check=True, capture_output=True, text=True
    )
    yield
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def seen(scope: leaks.Scope, before: leaks.Snapshot) -> set[str]:
    return {line.partition(":")[0] for line in leaks.diff(before, leaks.snapshot(scope))}


@pytest.mark.parametrize("kind", ["mounts", "sockets", "cgroups", "namespaces", "loops", "files"])
def test_each_kind_of_leftover_is_seen(tmp_path: Path, kind: str) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    if kind == "cgroups" and cgroup.root() is None:
        pytest.skip("no writable cgroup2 here")
    scope = leaks.Scope(paths=(tmp_path,), names=(NAME,), files=(watched,))
    before = leaks.snapshot(scope)
    with ExitStack() as stack:
        if kind == "files":
            (watched / "left").touch()
            stack.callback((watched / "left").unlink)
        else:
            make = {
                "mounts": lambda: a_mount(tmp_path / "mount"),
                "sockets": lambda: a_socket(tmp_path / "socket"),
                "cgroups": a_cgroup,
                "namespaces": a_namespace,
                "loops": lambda: a_loop(tmp_path / "disk"),
            }[kind]
            stack.enter_context(make())
        assert kind in seen(scope, before)
    assert leaks.settle(before, scope) == []


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no TUN here")
def test_network_device_is_seen(tmp_path: Path) -> None:
    scope = leaks.Scope(paths=(tmp_path,), names=(NAME,))
    before = leaks.snapshot(scope)
    with a_link(["tuntap"]):
        assert seen(scope, before) == {"links"}
    assert leaks.settle(before, scope) == []


def test_orphan_that_only_holds_an_open_file_of_ours_is_seen(tmp_path: Path) -> None:
    scope = leaks.Scope(paths=(tmp_path,))
    before = leaks.snapshot(scope)
    with (tmp_path / "lock").open("w") as file:
        shell = ["/bin/sh", "-c", "setsid -f sleep 1000"]  # reparented: no descendant of ours
        subprocess.run(shell, stdin=file, check=True)
    assert seen(scope, before) == {"processes"}
    leaks.kill_left_over(before, scope)
    assert leaks.settle(before, scope) == []


async def test_descendant_is_seen_and_a_zombie_is_not(tmp_path: Path) -> None:
    scope = leaks.Scope(paths=(tmp_path,))
    before = leaks.snapshot(scope)
    child = await process.spawn(["/bin/sleep", "1000"], sandbox=Sandbox(65001, 65001))
    assert seen(scope, before) == {"processes"}
    child.signal(signal.SIGKILL)
    await process.wait_dead(child.pidfd)
    assert leaks.settle(before, scope) == []
    child.close()
