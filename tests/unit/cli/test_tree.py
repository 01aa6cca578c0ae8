"""``torpor tree``: a family holds together, whoever of it is gone."""

from typing import Any

import pytest
from click.testing import CliRunner

from controller.cli.tree import family, lines, tree
from controller.errors import TorporError

GONE = "6f1b9a2e-0c5d-4f7a-9a43-2b8f0e6d1c11"


def instance(
    name: str, parent: str = "", root: str = "", depth: int = 1, **status: Any
) -> dict[str, Any]:
    lineage = {"lineage": {"parent": parent, "root": root, "depth": depth}} if parent else {}
    return {
        "metadata": {
            "name": name, "namespace": "team", "uid": f"u-{name}",
            "creationTimestamp": f"2026-01-01T00:00:0{depth}Z",
        },
        "spec": {"forkFrom": {"name": "somebody"}} if parent else {"image": "app:1"},
        "status": {"state": "Running", **lineage, **status},
    }  # fmt: skip


def waiting(name: str, of: str) -> dict[str, Any]:
    fork = instance(name)
    return fork | {"spec": {"forkFrom": {"name": of}}, "status": {"state": "Stopped"}}


def shown(subject: dict[str, Any], *listed: dict[str, Any]) -> list[str]:
    return lines(family(subject, listed))


WEB = instance("web", state="Standby", snapshot={"size": "3.9Mi"})
A = instance("a", "u-web", "u-web")
A1 = instance("a1", "u-a", "u-web", 2, state="Standby", snapshot={"size": "4.1Mi"})
B = instance("b", "u-web", "u-web", state="Paused")
OTHER = instance("other")
ALL = (A1, OTHER, B, WEB, A)
WHOLE = [
    "NAME         STATE     SNAPSHOT",
    "web          Standby   3.9Mi",
    "├─ a         Running",
    "│  └─ a1     Standby   4.1Mi",
    "└─ b         Paused",
]


def narrowed(rows: list[str]) -> list[list[str]]:
    return [row.split() for row in rows]


@pytest.mark.parametrize("subject", [WEB, A, A1, B], ids=lambda obj: obj["metadata"]["name"])
def test_whole_family_is_shown_from_any_member(subject: dict[str, Any]) -> None:
    rows = shown(subject, *ALL)
    assert narrowed(rows) == narrowed(WHOLE)
    assert len({row.find("Standby") for row in rows if "Standby" in row}) == 1, "one column"


def test_instance_without_relatives_is_alone() -> None:
    assert narrowed(shown(OTHER, *ALL))[1:] == [["other", "Running"]]


def test_root_that_is_gone_is_its_uid() -> None:
    children = (instance("a", GONE, GONE), instance("b", GONE, GONE))
    assert narrowed(shown(children[1], *children))[1:] == [
        [GONE, "(deleted)"], ["├─", "a", "Running"], ["└─", "b", "Running"],
    ]  # fmt: skip


def test_parent_that_is_gone_stands_between_root_and_child() -> None:
    orphan = instance("a1", GONE, "u-web", 2)
    assert narrowed(shown(orphan, WEB, orphan, B))[1:] == [
        ["web", "Standby", "3.9Mi"],
        ["├─", "b", "Paused"],
        ["└─", GONE, "(deleted)"],
        ["└─", "a1", "Running"],
    ]


def test_fork_that_waits_is_shown_with_its_source() -> None:
    listed = (WEB, waiting("soon", "web"), waiting("later", "soon"))
    assert narrowed(shown(listed[2], *listed))[1:] == [
        ["web", "Standby", "3.9Mi"], ["└─", "soon", "Stopped"], ["└─", "later", "Stopped"],
    ]  # fmt: skip


@pytest.mark.parametrize("subject", range(3))
def test_forks_that_wait_for_each_other_are_shown_once(subject: int) -> None:
    listed = (waiting("a", "b"), waiting("b", "a"), waiting("c", "b"))
    names = [row.split()[-2] for row in shown(listed[subject], *listed)[1:]]
    assert sorted(names) == ["a", "b", "c"]


def test_fork_of_what_is_not_there_is_alone() -> None:
    assert len(shown(waiting("a", "nobody"), waiting("a", "nobody"), WEB)) == 2


def test_deep_family_is_no_matter_of_recursion() -> None:
    row = [instance("f0")]
    row += [instance(f"f{n}", f"u-f{n - 1}", "u-f0") for n in range(1, 2000)]
    assert len(shown(row[-1], *row)) == 2001


def test_namespace_of_the_cluster_is_read(cluster_of: Any) -> None:
    elsewhere = instance("far", "u-web", "u-web")
    elsewhere["metadata"]["namespace"] = "other"
    config = cluster_of(*ALL, elsewhere)
    argv = ["a1", "-n", "team", "--kubeconfig", str(config)]
    done = CliRunner().invoke(tree, argv, standalone_mode=False)
    assert done.exception is None, done.output
    assert narrowed(done.stdout.splitlines()) == narrowed(WHOLE)
    argv[0] = "nobody"
    done = CliRunner().invoke(tree, argv, standalone_mode=False)
    assert isinstance(done.exception, TorporError)
