"""install.json: what stays the same at every start, and what two agents never share."""

import socket
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from controller.errors import Blocked, Rejected
from controller.local import install as installs
from controller.local.cluster import SOURCE
from controller.local.install import MOST_NODES, Install, settle
from controller.settings import NodeSettings, dump, load


def _settle(directory: Path, **chosen: int | None) -> Install:
    return settle(directory, **{"registry_port": 0, **chosen})


def test_second_start_keeps_id_ports_and_choices(place: Path) -> None:
    first = _settle(place, nodes=2, node_pods=7)
    assert settle(place, nodes=None) == first
    assert installs.load(place) == first


def test_port_that_somebody_took_is_replaced(place: Path) -> None:
    first = _settle(place)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.ports.apiserver))
        taken.listen()
        second = settle(place)
    assert second.ports.apiserver != first.ports.apiserver
    assert second.ports.etcd == first.ports.etcd


def test_registry_port_never_changes_by_itself(place: Path) -> None:
    first = _settle(place)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.registry))
        taken.listen()
        with pytest.raises(Blocked, match="--registry-port"):
            settle(place)


def test_more_nodes_keep_the_first_ones_as_they_were(place: Path) -> None:
    one = _settle(place, nodes=1)
    three = settle(place, nodes=3)
    assert three.node_settings(0) == one.node_settings(0)


def test_agents_share_nothing(place: Path) -> None:
    install = _settle(place, nodes=3)
    agents = [install.node_settings(number) for number in range(3)]
    for field in ("install_id", "state_dir", "run_dir", "cgroup_prefix", "metrics_port"):
        assert len({getattr(agent, field) for agent in agents}) == 3, field
    for lower, upper in pairwise(agents):
        assert lower.uid_base + lower.uid_count <= upper.uid_base


@pytest.mark.parametrize("number", ["00000000", "ffffffff", "000007cf"])
def test_uids_of_every_node_are_legal(place: Path, number: str) -> None:
    install = _settle(place).model_copy(update={"id": number})
    last = install.uid_base(MOST_NODES - 1) + installs.UIDS_PER_NODE
    assert 200_000 <= install.uid_base(0) < last < 2**31


def test_sockets_below_the_run_dir_have_short_paths(place: Path) -> None:
    """An Instance's directory there is named by UID, epoch and run."""
    install = _settle(place, nodes=MOST_NODES)
    longest = (
        install.node_settings(MOST_NODES - 1).run_dir / ("u" * 36) / "999999-999999" / "q.sock"
    )
    assert len(str(longest)) < 107


def test_agent_settings_pass_through_their_file(place: Path) -> None:
    settings = _settle(place).node_settings(0)
    (place / "config.yaml").write_text(dump(settings))
    assert load(NodeSettings, place / "config.yaml") == settings


def test_directory_that_vmms_cannot_reach_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(Rejected, match="closed to other users"):
        _settle(closed / "cluster")


def test_bad_choice_is_named(place: Path) -> None:
    with pytest.raises(Rejected, match="nodes: Input should be greater"):
        _settle(place, nodes=0)


def test_damaged_install_is_refused(place: Path) -> None:
    (place / "install.json").write_text("{}")
    with pytest.raises(Rejected, match="damaged"):
        installs.load(place)


def test_examples_name_the_usual_registry() -> None:
    manifests = sorted((SOURCE / "examples").glob("*/instance.yaml"))
    images = [yaml.safe_load(text.read_text())["spec"]["image"] for text in manifests]
    assert images
    assert all(image.startswith(f"127.0.0.1:{installs.REGISTRY_PORT}/") for image in images)
