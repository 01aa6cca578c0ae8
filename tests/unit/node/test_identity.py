"""An agent that is not who its state directory knows does not start, and touches nothing."""

import json
import os
import uuid
from pathlib import Path

import pytest

from controller.errors import Blocked, Rejected
from controller.node import identity
from controller.settings import NodeSettings


def settings(state: Path, **changes: object) -> NodeSettings:
    fields = {
        "node_name": "node-1",
        "install_id": "0badcafe",
        "state_dir": state,
        "run_dir": Path("/run/none"),
    }
    return NodeSettings.model_validate({**fields, **changes})


def remembered(state: Path) -> dict[str, str]:
    return dict(json.loads((state / identity.NAME).read_bytes()))


def test_first_start_is_remembered_and_the_cluster_once_it_is_known(tmp_path: Path) -> None:
    identity.check(tmp_path, settings(tmp_path), None)
    assert remembered(tmp_path) == {"node_name": "node-1", "install_id": "0badcafe"}
    identity.check(tmp_path, settings(tmp_path), "cluster-1")
    assert remembered(tmp_path)["cluster"] == "cluster-1"


def test_start_without_an_api_server_does_not_forget_the_cluster(tmp_path: Path) -> None:
    identity.check(tmp_path, settings(tmp_path), "cluster-1")
    identity.check(tmp_path, settings(tmp_path), None)
    assert remembered(tmp_path)["cluster"] == "cluster-1"
    with pytest.raises(Blocked):
        identity.check(tmp_path, settings(tmp_path), "cluster-2")


@pytest.mark.parametrize(
    ("changes", "cluster"),
    [({"node_name": "b"}, "c"), ({"install_id": "00000000"}, "c"), ({}, "another")],
)
def test_another_name_install_or_cluster_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, object], cluster: str
) -> None:
    identity.check(tmp_path, settings(tmp_path), "c")
    before = (tmp_path / identity.NAME).read_bytes()
    with pytest.raises(Blocked) as refused:
        identity.check(tmp_path, settings(tmp_path, **changes), cluster)
    assert refused.value.reason == "IdentityMismatch"
    assert (tmp_path / identity.NAME).read_bytes() == before


def test_lost_identity_beside_records_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "instances" / str(uuid.uuid4())
    place.mkdir(parents=True)
    (place / "record.json").write_text("{}")
    with pytest.raises(Blocked) as refused:
        identity.check(tmp_path, settings(tmp_path), "c")
    assert refused.value.reason == "IdentityLost"
    assert not (tmp_path / identity.NAME).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_identity_that_cannot_be_read_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / identity.NAME).write_bytes(content)
    with pytest.raises(Blocked):
        identity.check(tmp_path, settings(tmp_path), "c")
    assert (tmp_path / identity.NAME).read_bytes() == content


def test_second_agent_is_kept_off_until_the_first_is_gone(tmp_path: Path) -> None:
    first = identity.lock(tmp_path)
    with pytest.raises(Blocked) as refused:
        identity.lock(tmp_path)
    assert refused.value.reason == "AlreadyRunning"
    os.close(first)
    os.close(identity.lock(tmp_path))


def test_state_dir_that_no_vmm_could_reach_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    state = closed / "state"
    state.mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(Rejected) as refused:
        identity.check_reachable(state)
    assert "chmod o+x" in str(refused.value)
