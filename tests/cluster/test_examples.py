"""Every example as its README tells it, and the demo: QEMU, registry and cluster are real."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.localcluster import EXAMPLES, LocalCluster
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="torpor up needs root"),
    pytest.mark.timeout(400),
]

FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/instance.yaml"))
COUNTS = r"1 (\S+) [0-9a-f]{8}\n2 \1 [0-9a-f]{8}\n"
SAYS = dict.fromkeys(FOLDERS, COUNTS) | {"01-hello": r"hello from torpor\nmy name is hello\n"}
FORKS = [f"fork-{number}" for number in range(1, 6)]


def test_demo_shows_a_whole_life_and_leaves_nothing(cluster: LocalCluster) -> None:
    said = cluster.torpor("demo").stdout
    told = [said.index(f"→ {state} ") for state in ("Running", "Paused", "Standby", "Stopped")]
    assert told == sorted(told)
    assert len(re.findall(r"after (\d+) came \d+: the same guest", said)) == 3
    assert re.search(
        r"it went on from (\d+) with \d+, with a hostname and machine-id of its own", said
    )
    assert re.findall(r"→ Standby, \S+ written +\d+\.\d+ s", said)
    assert "$ kubectl delete inst counter" in said
    assert "checked: no process, no mount, no file of it is left" in said
    directory = re.search(r"KUBECONFIG=(\S+)/cluster/kubeconfig", said)
    assert directory is not None
    assert not Path(directory[1]).exists()


@pytest.fixture(scope="module")
def applied(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """All of them at once: they are to live side by side."""
    for script in EXAMPLES.glob("*/build-image.sh"):
        cluster.push(script.parent.name)
    for folder in FOLDERS:
        cluster.kubectl("apply", "-f", "-", stdin=cluster.manifest(folder))
    yield cluster
    names = [name_of(folder) for folder in FOLDERS] + FORKS
    cluster.kubectl("delete", "inst", *names, "--ignore-not-found", "--timeout=60s")
    assert cluster.kubectl("get", "pods", "-o", "name").stdout == ""


def name_of(folder: str) -> str:
    document = yaml.safe_load((EXAMPLES / folder / "instance.yaml").read_text())
    return str(document["metadata"]["name"])


def ask_for(cluster: LocalCluster, name: str, mode: str) -> None:
    patch = f'{{"spec":{{"operatingMode":"{mode}"}}}}'
    cluster.kubectl("patch", "inst", name, "--type=merge", "-p", patch)
    cluster.kubectl("wait", "--for=condition=Ready", f"inst/{name}", "--timeout=55s")
    assert cluster.kubectl.json("get", "inst", name)["status"]["state"] == mode


def counted(cluster: LocalCluster, name: str) -> list[tuple[int, str, str]]:
    """Number, hostname and beginning of the machine-id of each line it wrote."""
    text = cluster.torpor("logs", name).stdout
    return [(int(number), *who.split()) for number, who in re.findall(r"(?m)^(\d+) (.+)$", text)]


async def goes_on(cluster: LocalCluster, name: str, lines: int) -> list[tuple[int, str, str]]:
    """Everything it wrote, once that is two lines more than ``lines``."""
    await until(lambda: len(counted(cluster, name)) > lines + 1, 30)
    return counted(cluster, name)


@pytest.mark.parametrize("folder", FOLDERS)
async def test_example_becomes_ready_and_says_its_words(applied: LocalCluster, folder: str) -> None:
    name = name_of(folder)
    applied.kubectl("wait", "--for=condition=Ready", f"inst/{name}", "--timeout=55s")
    assert applied.kubectl.json("get", "inst", name)["status"]["state"] == "Running"
    await until(lambda: re.match(SAYS[folder], applied.torpor("logs", name).stdout), 30)


async def test_sleeper_goes_on_with_the_next_number(applied: LocalCluster) -> None:
    name = name_of("03-standby")
    ask_for(applied, name, "Standby")
    before = counted(applied, name)
    assert applied.torpor("verify", name).stdout.startswith("OK")
    assert counted(applied, name) == before, "it counted in its sleep"
    ask_for(applied, name, "Running")
    numbers = [number for number, *_ in await goes_on(applied, name, len(before))]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_five_forks_go_on_from_where_their_source_sleeps_each_as_itself(
    applied: LocalCluster,
) -> None:
    source = name_of("04-fork")
    ask_for(applied, source, "Standby")
    stood = counted(applied, source)
    applied.kubectl("apply", "-f", str(EXAMPLES / "04-fork" / "forks.yaml"))
    chosen = f"forked-from={source}"
    applied.kubectl("wait", "--for=condition=Ready", "inst", "-l", chosen, "--timeout=55s")
    tree = applied.torpor("tree", source).stdout.splitlines()[1:]
    assert [line.split()[1] for line in tree[1:]] == FORKS
    applied.kubectl("delete", "inst", source, "--timeout=55s")
    seen = {fork: len(counted(applied, fork)) for fork in FORKS}  # what follows, Ready ones wrote
    first = stood[-1][0] + 1
    for fork, lines in seen.items():
        told = await goes_on(applied, fork, lines)
        assert [number for number, *_ in told] == list(range(first, first + len(told)))
        uid = applied.kubectl.json("get", "inst", fork)["metadata"]["uid"]
        assert {tuple(who) for _, *who in told[lines:]} == {(fork, uid[:8])}
