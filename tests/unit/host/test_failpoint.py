"""Crash points: off by default, exact when armed."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from controller.errors import Rejected, Retry
from controller.host import failpoint


def run(armed: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from controller.host.failpoint import hit\n{code}"],
        env={failpoint.VARIABLE: armed, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )


def test_unarmed_point_does_nothing_and_costs_nothing() -> None:
    start = time.perf_counter()
    for _ in range(100_000):
        failpoint.hit("step.Any.before")
    assert time.perf_counter() - start < 1  # 10 µs each would be far too much already


def test_point_fires_at_its_nth_passage_and_only_once() -> None:
    with failpoint.arm("a:2=raise,b=raise"):
        failpoint.hit("a")
        failpoint.hit("other")
        with pytest.raises(Retry, match="failpoint a") as caught:
            failpoint.hit("a")
        assert caught.value.reason == "Failpoint"
        failpoint.hit("a")
        with pytest.raises(Retry):
            failpoint.hit("b")
    failpoint.hit("a")


@pytest.mark.parametrize(("action", "status"), [("kill", -9), ("exit", failpoint.EXIT_CODE)])
def test_process_dies_at_the_point_without_clean_up(action: str, status: int) -> None:
    code = "try:\n print('in', flush=True)\n hit('p')\n print('past')\nfinally:\n print('cleaned')"
    done = run(f"p={action}", code)
    assert (done.returncode, done.stdout) == (status, "in\n")


def test_process_stops_at_the_point_until_it_is_continued() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "from controller.host.failpoint import hit\nhit('p'); print('on')"],
        env={failpoint.VARIABLE: "p=stop", "PYTHONPATH": "."}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    child.send_signal(signal.SIGCONT)
    assert child.communicate(timeout=20)[0] == "on\n"


def test_sleep_blocks_at_the_point() -> None:
    code = "import time; t=time.monotonic(); hit('p'); print(time.monotonic()-t >= 0.2)"
    assert run("p=sleep-0.2", code).stdout == "True\n"


def test_point_fails_as_a_full_disk_does() -> None:
    with failpoint.arm("a=raise-ENOSPC"), pytest.raises(OSError, match="No space") as caught:
        failpoint.hit("a")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "text", ["a=raise-NONSENSE", "a", "a=boom", "a:0=kill", "a:x=kill", "a=sleep-x", "a=sleep"]
)
def test_unreadable_list_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match=failpoint.VARIABLE):
        failpoint.load(text)


def test_registered_points_are_listed() -> None:
    failpoint.register("test.b", "test.a")
    failpoint.register("test.a")
    listed = failpoint.registered()
    assert [name for name in listed if name.startswith("test.")] == ["test.a", "test.b"]
