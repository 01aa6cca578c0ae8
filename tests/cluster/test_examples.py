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
SAYS = {"01-hello": r"hello from torpor\nmy name is hello\n", "02-counter": r"1\n2\n"}


@pytest.fixture(scope="module")
def applied(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """All of them at once: they are to live side by side."""
    for folder in FOLDERS:
        cluster.push(folder)
        cluster.kubectl("apply", "-f", "-", stdin=cluster.manifest(folder))
    yield cluster
    names = [name_of(folder) for folder in FOLDERS]
    cluster.kubectl("delete", "inst", *names, "--timeout=60s")
    assert cluster.kubectl("get", "pods", "-o", "name").stdout == ""


def name_of(folder: str) -> str:
    document = yaml.safe_load((EXAMPLES / folder / "instance.yaml").read_text())
    return str(document["metadata"]["name"])


@pytest.mark.parametrize("folder", FOLDERS)
async def test_example_becomes_ready_and_says_its_words(applied: LocalCluster, folder: str) -> None:
    name = name_of(folder)
    applied.kubectl("wait", "--for=condition=Ready", f"inst/{name}", "--timeout=55s")
    assert applied.kubectl.json("get", "inst", name)["status"]["state"] == "Running"
    await until(lambda: re.match(SAYS[folder], applied.torpor("logs", name).stdout), 30)


def test_demo_shows_a_whole_life_and_leaves_nothing(cluster: LocalCluster) -> None:
    said = cluster.torpor("demo").stdout
    told = [said.index(f"→ {state} ") for state in ("Running", "Paused", "Stopped")]
    assert told == sorted(told)
    assert re.search(r"after (\d+) came \d+: the same guest", said)
    assert "$ kubectl delete inst counter" in said
    assert "checked: no process, no mount, no file of it is left" in said
    directory = re.search(r"KUBECONFIG=(\S+)/cluster/kubeconfig", said)
    assert directory is not None
    assert not Path(directory[1]).exists()
