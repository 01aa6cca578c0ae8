"""``torpor get``: which Instance a word means, what is printed, how it fails."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from controller.cli import columns, lookup
from controller.cli.errors import exit_code
from controller.cli.get import get
from controller.errors import TorporError, Unreachable

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WEB_ID, DB_ID = "abc0" + 20 * "1", "abc1" + 20 * "2"


def instance(name: str, ident: str = "", namespace: str = "team", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": "2026-01-01T23:58:00Z",
            "managedFields": [{"manager": "somebody"}],
        },
        "spec": {"image": "app:1", "operatingMode": "Running"},
        "status": {"id": ident, **status},
    }


WEB, DB = instance("web", WEB_ID, state="Running"), instance("db", DB_ID)


@pytest.mark.parametrize(
    ("word", "found"),
    [("web", WEB), (WEB_ID, WEB), ("abc0", WEB), ("abc1", DB), ("db", DB), (DB_ID, DB)],
)
def test_a_word_is_an_id_a_name_or_the_beginning_of_an_id(word, found):
    assert lookup.choose([WEB, DB], word, "team") is found


def test_a_name_cannot_take_anothers_id():
    assert lookup.choose([instance(WEB_ID, DB_ID), WEB], WEB_ID, "team") is WEB


def test_a_name_comes_before_the_beginning_of_an_id():
    named = instance("abc0", 24 * "z")
    assert lookup.choose([WEB, named], "abc0", "team") is named


def test_an_ambiguous_beginning_names_the_matches():
    with pytest.raises(lookup.Ambiguous, match=r"team/web, team/db") as caught:
        lookup.choose([WEB, DB], "abc", "team")
    assert caught.value.matches == [WEB, DB]
    assert exit_code(caught.value) == 2


def test_one_name_in_two_namespaces_is_ambiguous():
    with pytest.raises(lookup.Ambiguous, match="other/web"):
        lookup.choose([WEB, instance("web", "", "other")], "web", None)


@pytest.mark.parametrize("word", ["nothing", "", "abc01x"])
def test_what_is_not_there_is_said(word):
    with pytest.raises(TorporError, match="no Instance in namespace team") as caught:
        lookup.choose([WEB, DB, instance("fresh")], word, "team")
    assert exit_code(caught.value) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"),
        (10799, "179m"), (3 * 3600, "3h"), (7 * 3600 + 60, "7h1m"), (47 * 3600, "47h"),
        (48 * 3600, "2d"), (7 * 86400 + 3600, "7d1h"), (8 * 86400, "8d"), (729 * 86400, "729d"),
        (731 * 86400, "2y1d"), (3000 * 86400, "8y"),
    ],
)  # fmt: skip
def test_ages_read_as_kubectls(seconds, said):
    assert columns.age(seconds) == said


def test_columns_are_those_of_the_api():
    ready = {"type": "Ready", "status": "True", "reason": "Running"}
    shown = instance("web", WEB_ID, state="Running", conditions=[ready], nodeName="n1")
    header, line = columns.table([shown], NOW, wide=True, namespaces=True)
    assert header.split() == [
        "NAMESPACE", "NAME", "MODE", "STATE", "READY", "NODE", "AGE", "REASON", "IMAGE", "VMM",
        "FORK-OF", "SNAPSHOT",
    ]  # fmt: skip
    assert line.split() == [
        "team", "web", "Running", "Running", "True", "n1", "2m", "Running", "app:1",
    ]  # fmt: skip
    assert line.index("app:1") == header.index("IMAGE")


def test_fork_shows_its_source_and_the_size_of_its_snapshot():
    fork = instance("web", WEB_ID, state="Standby", snapshot={"size": "3.9Mi", "bytes": 4089446})
    fork["spec"] = {"forkFrom": {"name": "db"}, "operatingMode": "Standby"}
    header, line = columns.table([fork], NOW, wide=True)
    assert line[header.index("FORK-OF") :].split() == ["db", "3.9Mi"]
    assert line[header.index("IMAGE") : header.index("FORK-OF")].strip() == ""


def test_an_empty_cell_keeps_its_place():
    header, line = columns.table([instance("web")], NOW)
    assert line.index("2m") == header.index("AGE")


@pytest.fixture
def cluster(cluster_of) -> Path:
    """The kubeconfig of a fake API server that holds WEB and DB."""
    return cluster_of(WEB, DB)


def run(config: Path, *args: str) -> Result:
    argv = [*args, "--kubeconfig", str(config)]
    return CliRunner().invoke(get, argv, standalone_mode=False)


def test_a_table_of_all(cluster):
    lines = run(cluster, "-n", "team").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "db", "web"]


def test_one_is_printed_whole_without_bookkeeping(cluster):
    found = json.loads(run(cluster, "abc0", "-n", "team", "-o", "json").stdout)
    assert found["spec"] == WEB["spec"]
    assert "managedFields" not in found["metadata"]
    assert yaml.safe_load(run(cluster, "web", "-A", "-o", "yaml").stdout) == found


def test_several_are_a_list(cluster):
    found = json.loads(run(cluster, "web", "db", "-n", "team", "-o", "json").stdout)
    assert (found["kind"], len(found["items"])) == ("List", 2)


def test_an_ambiguous_beginning_lists_the_matches_on_stderr(cluster):
    done = run(cluster, "abc", "-n", "team")
    assert isinstance(done.exception, lookup.Ambiguous)
    assert done.stdout == ""
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["NAME", "db", "web"]


def test_nothing_there_is_said_and_no_failure(cluster):
    done = run(cluster, "-n", "empty")
    assert (done.exception, done.stdout) == (None, "")
    assert done.stderr == "No Instances found in empty namespace\n"


def test_a_missing_kubeconfig_names_the_way_to_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Unreachable, match="export KUBECONFIG=FILE"):
        lookup.kubeconfig(None)


def test_kubeconfig_is_looked_for_as_kubectl_does(monkeypatch, tmp_path):
    usual, other = tmp_path / ".kube" / "config", tmp_path / "other"
    usual.parent.mkdir()
    usual.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert lookup.kubeconfig(None) == usual
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'gone'}:{other}")
    assert lookup.kubeconfig(None) == usual
    other.touch()
    assert lookup.kubeconfig(None) == other
    assert lookup.kubeconfig(usual) == usual


def test_the_contexts_namespace_is_used(tmp_path):
    config = tmp_path / "config"
    context = {"name": "c", "context": {"cluster": "c", "namespace": "team"}}
    config.write_text(yaml.safe_dump({"current-context": "c", "contexts": [context]}))
    assert lookup.current_namespace(config) == "team"
    config.write_text("[]")
    assert lookup.current_namespace(config) == "default"


def test_ages_are_counted_to_now():
    fresh = instance("web")
    fresh["metadata"]["creationTimestamp"] = (columns.utc_now() - timedelta(seconds=30)).isoformat()
    assert columns.table([fresh], columns.utc_now())[1].split()[-1] in ("30s", "31s")
