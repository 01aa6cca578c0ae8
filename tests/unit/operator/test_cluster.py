"""What the operator knows of the cluster: never more than it has seen."""

from controller.core.names import UID_LABEL, node_lease
from controller.core.placement import NodeState
from controller.kube.client import Client
from controller.operator.cluster import Cluster
from controller.settings import OperatorSettings
from tests.fake_apiserver import FakeApiServer
from tests.unit.operator.rig import NAMESPACE, NODE, Rig, renew, running
from tests.waiting import until

SETTINGS = OperatorSettings(node_lease_seconds=40)


def pod(name: str, owner: str, created: str) -> dict[str, object]:
    reference = {"uid": owner, "controller": True, "kind": "Instance", "name": "web"}
    return {
        "metadata": {
            "name": name, "namespace": NAMESPACE, "creationTimestamp": created,
            "labels": {UID_LABEL: owner}, "ownerReferences": [reference],
        },
        "spec": {"containers": [{"name": "reservation"}], "nodeName": NODE},
        "status": {"phase": "Pending", "podIP": "10.0.0.1", "conditions": []},
    }  # fmt: skip


async def test_node_is_unknown_before_everything_was_seen(client: Client) -> None:
    cluster = Cluster(client, SETTINGS, print, print)
    assert cluster.node(NODE) is NodeState.UNKNOWN
    assert cluster.node(None) is NodeState.NONE


async def test_node_without_an_object_is_gone(rig: Rig) -> None:
    assert rig.cluster.node("node-9") is NodeState.GONE


async def test_node_that_came_anew_in_a_relist_is_not_gone(rig: Rig) -> None:
    new = {"metadata": {"name": NODE, "uid": "new", "resourceVersion": "999999"}}
    rig.cluster.nodes._replace([new], 999999)  # old and new changed places while nobody watched
    assert rig.cluster.node(NODE) is NodeState.ALIVE


async def test_node_whose_agent_was_never_heard_is_unknown(rig: Rig, server: FakeApiServer) -> None:
    server.put("nodes", {"metadata": {"name": "node-2"}})
    await until(lambda: rig.cluster.node("node-2") is not NodeState.GONE)
    assert rig.cluster.node("node-2") is NodeState.UNKNOWN


async def test_node_is_silent_when_its_lease_stays_the_same(
    server: FakeApiServer, client: Client
) -> None:
    now = [0.0]
    async with running(server, client, SETTINGS, lambda: now[0]) as rig:
        now[0] = 39.0
        assert rig.cluster.node(NODE) is NodeState.ALIVE
        renew(server, "first")  # an event, but nobody renewed it
        server.put("leases", {"metadata": {"name": "other", "namespace": "torpor-system"}})
        await until(lambda: len(rig.cluster.leases) == 2)
        now[0] = 41.0
        assert rig.cluster.node(NODE) is NodeState.SILENT
        renew(server, "second")
        await until(lambda: rig.cluster.node(NODE) is NodeState.ALIVE)


async def test_renewal_by_a_wrong_clock_counts_from_when_it_was_seen(
    server: FakeApiServer, client: Client
) -> None:
    async with running(server, client, SETTINGS, lambda: 0.0) as rig:
        meta = {"name": node_lease(NODE), "namespace": "torpor-system"}
        long_ago = "1999-01-01T00:00:00.000000Z"
        server.put("leases", {"metadata": meta, "spec": {"renewTime": long_ago}})
        await until(lambda: rig.cluster._renewed[NODE][0] == long_ago)
        assert rig.cluster.lease_left(NODE) == 40
        assert rig.cluster.node(NODE) is NodeState.ALIVE


async def test_pods_of_an_instance_come_oldest_first(rig: Rig, server: FakeApiServer) -> None:
    rig.leading = False
    server.put("pods", pod("b", "owner", "2026-01-01T00:00:02Z"))
    server.put("pods", pod("a", "owner", "2026-01-01T00:00:01Z"))
    await until(lambda: len(rig.cluster.pods_of("owner")) == 2)
    assert [each["metadata"]["name"] for each in rig.cluster.pods_of("owner")] == ["a", "b"]
    assert rig.cluster.instances_with_pods() == ["owner"]


async def test_mirror_of_a_pod_keeps_only_what_placement_reads(
    rig: Rig, server: FakeApiServer
) -> None:
    rig.leading = False
    server.put("pods", pod("a", "owner", "2026-01-01T00:00:01Z"))
    await until(lambda: rig.cluster.pods_of("owner"))
    (kept,) = rig.cluster.pods_of("owner")
    assert kept["spec"] == {"nodeName": NODE}
    assert kept["status"] == {"conditions": [], "phase": "Pending"}


async def test_last_pod_of_an_instance_leaves_no_trace(rig: Rig, server: FakeApiServer) -> None:
    rig.leading = False
    server.put("pods", pod("a", "owner", "2026-01-01T00:00:01Z"))
    await until(lambda: rig.cluster.pods_of("owner"))
    server.remove("pods", "a", NAMESPACE)
    await until(lambda: rig.cluster.instances_with_pods() == [])


async def test_namespace_is_terminating_from_its_deletion_on(
    rig: Rig, server: FakeApiServer
) -> None:
    assert not rig.cluster.namespace_terminating(NAMESPACE)
    meta = {"name": NAMESPACE, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    server.put("namespaces", {"metadata": meta})
    await until(lambda: rig.cluster.namespace_terminating(NAMESPACE))
    assert not rig.cluster.namespace_terminating("other")
