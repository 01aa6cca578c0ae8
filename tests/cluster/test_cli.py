"""``torpor logs`` and ``torpor get`` on a real cluster with real guests; how they fail."""

import json
import os
import pty
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.localcluster import LocalCluster
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="torpor up needs root"),
    pytest.mark.timeout(200),
]

# counts as fast as anybody reads, after bytes that would clear the screen
SCRIPT = r"""printf 'first \033[2J\n'; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"""
LETTERS = 26


def instance(cluster: LocalCluster, name: str, **spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(cluster.manifest("01-hello"))
    found["metadata"]["name"] = name
    found["spec"].update(spec)
    return found


@pytest.fixture(scope="module")
def talker(cluster: LocalCluster) -> Iterator[str]:
    """The name of an Instance that runs and keeps talking."""
    cluster.push("01-hello")
    cluster.kubectl.apply(instance(cluster, "talker", command=["/bin/sh", "-c", SCRIPT]))
    cluster.kubectl("wait", "--for=condition=Ready", "inst/talker", "--timeout=55s")
    yield "talker"
    cluster.kubectl("delete", "inst", "talker", "--timeout=60s", "--ignore-not-found")


@pytest.fixture(scope="module")
def sleepers(cluster: LocalCluster) -> Iterator[dict[str, str]]:
    """Names to ids of so many that two ids begin with the same letter; none was ever started."""
    names = [f"sleeper-{number}" for number in range(LETTERS + 1)]
    cluster.kubectl.apply(*(instance(cluster, name, operatingMode="Stopped") for name in names))
    cluster.kubectl(
        "wait", "--for=condition=Ready", "--timeout=50s", *(f"inst/{name}" for name in names)
    )
    found = cluster.kubectl.json("get", "inst", *names)["items"]
    yield {each["metadata"]["name"]: each["status"]["id"] for each in found}
    cluster.kubectl("delete", "inst", *names, "--timeout=50s")


def test_logs_are_raw_in_a_pipe(cluster: LocalCluster, talker: str) -> None:
    assert cluster.torpor("logs", talker).stdout.startswith("first \x1b[2J\nline 1\n")


def test_logs_cannot_drive_a_terminal(cluster: LocalCluster, talker: str) -> None:
    ours, theirs = pty.openpty()
    try:
        with cluster.running("logs", talker, stdout=theirs) as process:
            shown = os.read(ours, 4096)
            process.wait(30)
        assert shown.startswith(b"first \\x1b[2J\r\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_tail_shows_the_last_lines_only(cluster: LocalCluster, talker: str) -> None:
    lines = cluster.torpor("logs", talker, "--tail", "2").stdout.splitlines()
    first, second = (int(line.removeprefix("line ")) for line in lines)
    assert second == first + 1
    assert cluster.torpor("logs", talker, "--tail", "0").stdout == ""


def test_following_shows_what_comes_without_a_gap(cluster: LocalCluster, talker: str) -> None:
    with cluster.running("logs", "-f", "--tail", "1", talker) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline().removeprefix("line ")) for _ in range(10)]
    assert seen == list(range(seen[0], seen[0] + 10))


def test_following_lives_through_the_agents_death(cluster: LocalCluster, talker: str) -> None:
    with cluster.running("logs", "-f", "--tail", "1", talker, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        before = int(process.stdout.readline().removeprefix("line "))
        os.kill(cluster.pid("agent-node-1"), signal.SIGKILL)
        assert "the node agent went away" in process.stderr.readline()
        lines = (int(line.removeprefix("line ")) for line in process.stdout)
        assert next(line for line in lines if line > before + 20)


def test_every_source_is_a_stream_of_its_own(cluster: LocalCluster, talker: str) -> None:
    agent = cluster.torpor("logs", talker, "--source", "agent").stdout
    assert "default/talker: StartVmm" in agent
    assert "line 1" not in agent
    for source in ("console", "vmm"):
        assert "line 1\n" not in cluster.torpor("logs", talker, "--source", source).stdout


def test_logs_of_what_is_on_no_node_say_why(
    cluster: LocalCluster, sleepers: dict[str, str]
) -> None:
    done = cluster.torpor("logs", "sleeper-1", check=False)
    assert done.returncode == 1
    assert one_line(done).startswith("torpor: default/sleeper-1 is on no node yet")


def test_get_finds_by_name_id_and_the_beginning_of_an_id(
    cluster: LocalCluster, sleepers: dict[str, str]
) -> None:
    ident = sleepers["sleeper-3"]
    beginning = shortest_beginning(ident, sleepers)
    for word in ("sleeper-3", ident, beginning):
        found = json.loads(cluster.torpor("get", word, "-o", "json").stdout)
        assert found["metadata"]["name"] == "sleeper-3"


def test_an_ambiguous_beginning_lists_the_matches_and_exits_2(
    cluster: LocalCluster, sleepers: dict[str, str]
) -> None:
    letter, times = Counter(ident[0] for ident in sleepers.values()).most_common(1)[0]
    assert times > 1
    done = cluster.torpor("get", letter, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    header, *rows, last = done.stderr.splitlines()
    meant = {name for name, ident in sleepers.items() if ident[0] == letter}
    assert header.startswith("NAME ")
    assert meant <= {row.split()[0] for row in rows}
    assert f"{letter!r} means" in last


@pytest.mark.parametrize("wide", [(), ("-o", "wide")])
def test_the_table_is_kubectls(
    cluster: LocalCluster, sleepers: dict[str, str], wide: tuple[str, ...]
) -> None:
    def without_age(text: str) -> list[list[str]]:
        return [[cell for cell in line.split() if cell[:1].isalpha()] for line in text.splitlines()]

    ours = without_age(cluster.torpor("get", *sleepers, *wide).stdout)
    theirs = without_age(cluster.kubectl("get", "inst", *sleepers, *wide).stdout)
    assert ours == theirs


def test_the_kubectl_plugin_is_the_same_command(cluster: LocalCluster, talker: str) -> None:
    done = subprocess.run(
        ["kubectl", "torpor", "get", talker, "-o", "json"],
        capture_output=True, text=True, timeout=60, check=True, env=cluster.environment,
    )  # fmt: skip
    assert json.loads(done.stdout)["metadata"]["name"] == talker


@pytest.mark.parametrize("command", [("get",), ("get", "x"), ("logs", "x"), ("logs", "-f", "x")])
def test_a_cluster_that_is_away_exits_3_in_one_line(
    cluster: LocalCluster, tmp_path: Path, command: tuple[str, ...]
) -> None:
    document = yaml.safe_load((cluster.directory / "kubeconfig").read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(document))
    done = cluster.torpor(*command, "--kubeconfig", str(tmp_path / "kubeconfig"), check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "127.0.0.1:9" in one_line(done)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("get", "nothing-of-that-name"), 1),
        (("get", "../../x"), 1),
        (("logs", "nothing-of-that-name"), 1),
        (("logs", "talker", "--socket", "/nothing.sock"), 1),
        (("logs", "talker", "--dir", "/nothing"), 2),
        (("get", "--kubeconfig", "/nothing"), 3),
        (("plan", "-f", "/dev/null"), 2),
    ],
)
def test_failures_are_one_line_with_a_stable_code(
    cluster: LocalCluster, talker: str, command: tuple[str, ...], code: int
) -> None:
    done = cluster.torpor(*command, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert one_line(done).startswith("torpor: ")


@pytest.mark.parametrize(
    "command",
    [("logs",), ("logs", "talker", "--source", "x"), ("logs", "talker", "--tail", "-1"),
     ("get", "-o", "x"), ("plan",)],
)  # fmt: skip
def test_wrong_usage_exits_2_and_shows_the_usage(
    cluster: LocalCluster, command: tuple[str, ...]
) -> None:
    done = cluster.torpor(*command, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Usage: torpor {command[0]} ")
    assert "Traceback" not in done.stderr


async def test_following_ends_with_the_instance(cluster: LocalCluster, talker: str) -> None:
    """The last test: it deletes the talker."""
    with cluster.running("logs", "-f", "--tail", "0", talker, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("line ")
        cluster.kubectl("delete", "inst", talker, "--timeout=50s")
        await until(lambda: process.poll() is not None, 30)
        assert process.returncode == 0
        assert process.stderr is not None
        assert "the Instance is gone" in process.stderr.read()


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    (line,) = done.stderr.splitlines()
    return line


def shortest_beginning(ident: str, sleepers: dict[str, str]) -> str:
    others = [each for each in sleepers.values() if each != ident]
    return next(
        ident[:length]
        for length in range(4, len(ident) + 1)
        if not any(each.startswith(ident[:length]) for each in others)
    )
