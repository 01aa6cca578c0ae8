"""Faults between the API server, the operator and an agent, all real; VMMs are hollow.

Faults F64 and F65 of the fault table, threat T31, reservations that go away, silent nodes.
"""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from controller.host import failpoint
from controller.local.controlplane import ControlPlane
from controller.operator import instances as _  # noqa: F401 - registers its crash points
from tests.agentkit import KILLED, Zygote
from tests.chaos.realcluster import RealCluster, eventually, real_cluster
from tests.clusterkit import running_control_plane
from tests.identities import apply_base

A = "a"
POINTS = {point for point in failpoint.registered() if point.startswith("operator.")}
DIED = re.compile(r"^failpoint (\S+): kill$", re.MULTILINE)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with the project's manifests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("tests on a control plane share one: run them with -n0")
    with running_control_plane(node_grace_seconds=20) as made:
        apply_base(made)
        yield made


@pytest.fixture
async def cluster(plane: ControlPlane, zygote: Zygote) -> AsyncIterator[RealCluster]:
    """A namespace and a Node of it."""
    async with real_cluster(plane, zygote) as made:
        yield made


def only_pod(cluster: RealCluster, uid: str) -> str:
    """The UID of the one reservation Pod there is."""
    (pod,) = cluster.pods(uid)
    return str(pod["metadata"]["uid"])


# --- the operator ---------------------------------------------------------------------------------


async def test_operator_killed_around_each_of_its_writes_changes_no_end(
    cluster: RealCluster,
) -> None:
    died: set[str] = set()

    async def keep_an_operator() -> None:
        while True:
            left = sorted(POINTS - died)
            operator = cluster.operate(",".join(f"{point}=kill" for point in left))
            assert await operator.ended(300) == KILLED
            died.update(DIED.findall(cluster.log.read_text()))

    keeping = asyncio.create_task(keep_an_operator())
    try:
        cluster.site.start()
        uid = cluster.create(A)
        await cluster.until(A)
        first = only_pod(cluster, uid)
        for mode in ("Stopped", "Running"):
            await cluster.until(A, mode)
        assert only_pod(cluster, uid) != first
        assert cluster.get(A)["status"]["epoch"] == 1
        assert cluster.site.record(uid).run == 2
        await cluster.until_gone(A)
        await eventually(lambda: not cluster.pods(uid), lambda: cluster.pods(uid))
        cluster.create("nowhere", nodeSelector={"no": "such-node"})
        await eventually(
            lambda: cluster.condition("nowhere", "Scheduled").get("reason") == "Unschedulable",
            lambda: cluster.get("nowhere"),
        )
        await cluster.until_gone("nowhere")
        await eventually(lambda: died == POINTS, lambda: POINTS - died, 20)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_two_operators_at_once_make_one_reservation_and_one_of_them_may_die(
    cluster: RealCluster,
) -> None:
    pair = [cluster.operate(), cluster.operate()]
    cluster.site.start()
    uids = {name: cluster.create(name) for name in ("a", "b", "c", "d")}
    for name, uid in uids.items():
        await cluster.until(name)
        only_pod(cluster, uid)
        assert cluster.get(name)["status"]["epoch"] == 1
    await pair[0].kill()
    uids["e"] = cluster.create("e")
    await cluster.until("e")
    await cluster.until("a", "Stopped")
    await eventually(lambda: not cluster.pods(uids["a"]), lambda: cluster.pods(uids["a"]))
    await pair[1].kill()
    cluster.operate()
    await cluster.until("a", "Running")
    for uid in uids.values():
        only_pod(cluster, uid)
        assert cluster.site.vmm(uid) is not None


# --- reservations ---------------------------------------------------------------------------------


async def test_evicted_reservation_brings_the_guest_down_and_up_again(
    cluster: RealCluster,
) -> None:
    cluster.operate()
    cluster.site.start()
    uid = cluster.create(A)
    await cluster.until(A)
    first, vmm = only_pod(cluster, uid), cluster.site.vmm(uid)
    inode = cluster.site.places.overlay(uid).stat().st_ino
    (pod,) = cluster.pods(uid)
    cluster.plane.admin.delete(cluster.pod_path(pod))  # as a drain does it, with grace
    await eventually(lambda: cluster.site.record(uid).released == first, lambda: cluster.get(A))
    await eventually(
        lambda: cluster.site.vmm(uid) not in (None, vmm), lambda: cluster.get(A)["status"]
    )
    await cluster.until(A)
    assert only_pod(cluster, uid) != first
    record = cluster.site.record(uid)
    assert (record.run, record.restarts, record.exit) == (2, 0, None), "an eviction is no exit"
    assert cluster.site.places.overlay(uid).stat().st_ino == inode


async def test_reservation_that_was_deleted_by_force_is_made_anew_under_a_living_guest(
    cluster: RealCluster,
) -> None:
    cluster.operate()
    cluster.site.start()
    uid = cluster.create(A)
    await cluster.until(A)
    first, vmm = only_pod(cluster, uid), cluster.site.vmm(uid)
    (pod,) = cluster.pods(uid)
    cluster.plane.admin.delete(f"{cluster.pod_path(pod)}?gracePeriodSeconds=0")
    await eventually(
        lambda: [p["metadata"]["uid"] for p in cluster.pods(uid)] not in ([], [first]),
        lambda: cluster.get(A)["status"],
    )
    second = only_pod(cluster, uid)
    await eventually(
        lambda: cluster.get(A)["status"]["reservation"] == second, lambda: cluster.get(A)["status"]
    )
    await cluster.until(A, "Paused")
    assert cluster.site.vmm(uid) == vmm
    assert cluster.site.record(uid).run == 1


async def test_everything_of_a_deleted_namespace_goes(cluster: RealCluster) -> None:
    cluster.operate()
    cluster.site.start()
    uids = [cluster.create(name) for name in ("a", "b")]
    never = cluster.create("c", nodeSelector={"no": "such-node"})
    for name in ("a", "b"):
        await cluster.until(name)
    space = f"/api/v1/namespaces/{cluster.namespace}"
    cluster.plane.admin.delete(space)
    await eventually(
        lambda: cluster.plane.admin.find(space) is None,
        lambda: cluster.plane.admin.find(space),
        90,
    )
    assert not any(cluster.site.places.instance(uid).exists() for uid in (*uids, never))
    assert cluster.site.vmms() == {}


# --- edits ----------------------------------------------------------------------------------------


async def test_name_that_is_used_again_gets_a_disk_of_its_own(cluster: RealCluster) -> None:
    cluster.operate()
    cluster.site.start()
    first = cluster.create(A)
    await cluster.until(A)
    overlay = cluster.site.places.overlay(first)
    sentinel = secrets.token_bytes(32)
    with overlay.open("r+b") as disk:
        disk.seek(-len(sentinel), os.SEEK_END)
        disk.write(sentinel)
    cluster.plane.admin.delete(cluster.path(A))
    while cluster.find(A) is not None:  # noqa: ASYNC110 - the API server is asked
        await asyncio.sleep(0.005)
    second = cluster.create(A)
    await cluster.until(A)
    assert first != second
    assert not cluster.site.places.instance(first).exists()
    assert sentinel not in cluster.site.places.overlay(second).read_bytes()


async def test_last_of_many_quick_edits_wins(cluster: RealCluster) -> None:
    cluster.operate()
    cluster.site.start()
    uid = cluster.create(A)
    await cluster.until(A)
    for mode in ("Stopped", "Running", "Paused", "Stopped", "Running", "Stopped", "Running"):
        cluster.ask(A, mode)
    await cluster.until(A)
    only_pod(cluster, uid)
    for mode in ("Running", "Paused", "Running", "Stopped"):
        cluster.ask(A, mode)
    await cluster.until(A)
    await eventually(lambda: not cluster.pods(uid), lambda: cluster.pods(uid))
    record = cluster.site.record(uid)
    assert (record.exit, record.restarts) == (None, 0)


# --- nodes ----------------------------------------------------------------------------------------


async def test_silent_node_is_said_once_and_taken_back(cluster: RealCluster) -> None:
    cluster.operate()
    cluster.site.start()
    uid = cluster.create(A)
    await cluster.until(A)
    vmm = cluster.site.vmm(uid)
    await cluster.site.agent.kill()

    def unreachable() -> bool:
        ready = cluster.condition(A, "Ready")
        return (ready["status"], ready["reason"]) == ("Unknown", "NodeUnreachable")

    await eventually(unreachable, lambda: cluster.get(A)["status"])
    version = cluster.get(A)["metadata"]["resourceVersion"]
    await asyncio.sleep(4)  # longer than a Lease: a second word would have come
    assert cluster.get(A)["metadata"]["resourceVersion"] == version
    assert cluster.site.vmm(uid) == vmm
    only_pod(cluster, uid)
    cluster.site.start()
    await cluster.until(A)
    assert cluster.site.vmm(uid) == vmm
