"""What nobody owns any more is taken down with proof, and nothing else ever is.

Faults F44 and F45 of the fault table. The sweep's period is a setting, short here.
"""

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.agentkit import NAMESPACE, Rig, eventually

PERIOD = 0.2
EMPTY = {"kind": "InstanceList", "metadata": {"resourceVersion": "1"}, "items": []}


def lists(rig: Rig) -> int:
    """How many lists of *all* Instances were asked for: one a walk."""
    return sum(
        seen.method == "GET"
        and not seen.is_watch
        and seen.path.endswith("/v1alpha1/instances")
        and "fieldSelector" not in seen.query
        and "continue" not in seen.query
        for seen in rig.world.server.requests
    )


async def walks(rig: Rig, count: int) -> None:
    before = lists(rig)
    await eventually(lambda: lists(rig) >= before + count)


class Lying:
    """A server whose lists of all Instances say ``body``, with ``status``, while this lasts."""

    def __init__(self, rig: Rig, status: int, body: Any = None) -> None:
        self._server = rig.world.server
        self._fault = self._server.fail(
            status, method="GET", path="/instances", watch=False, times=10**6, body=body
        )

    def once(self) -> "Lying":
        self._fault.times = 1
        return self

    def told(self) -> bool:
        return self._fault.times == 0

    def stop(self) -> None:
        self._fault.times = 0


@pytest.mark.parametrize("lie", ["500", "429", "partial", "html", "empty-of-another-cluster"])
async def test_no_lie_about_who_exists_costs_anybody_anything(rig: Rig, lie: str) -> None:
    rig.restart(orphan_sweep_seconds=PERIOD)
    uid = await rig.run("a")
    vmm, server = rig.site.vmm(uid), rig.world.server
    await walks(rig, 2)
    if lie == "partial":  # a first page without it, and no second one
        first = {**EMPTY, "metadata": {"resourceVersion": "1", "continue": "1/1"}}
        server.fail(200, method="GET", path="/instances", watch=False, body=first)
        fault = Lying(rig, 500)
    elif lie == "html":
        fault = Lying(rig, 200, "<html>sign in</html>")
    elif lie == "empty-of-another-cluster":
        system = server.get("namespaces", "kube-system")
        real = system["metadata"]["uid"]
        system["metadata"]["uid"] = str(uuid.uuid4())
        server.objects["namespaces"][("", "kube-system")] = system
        fault = Lying(rig, 200, EMPTY)
    else:
        fault = Lying(rig, int(lie))
    await eventually(lambda: rig.site.log.read_text().count("nothing was removed") >= 3, seconds=60)
    fault.stop()
    if lie == "empty-of-another-cluster":
        system["metadata"]["uid"] = real
        server.objects["namespaces"][("", "kube-system")] = system
    await walks(rig, 2)
    assert rig.site.vmm(uid) == vmm
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm


async def test_one_empty_list_costs_nobody_anything(rig: Rig) -> None:
    rig.restart(orphan_sweep_seconds=PERIOD)
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    await walks(rig, 2)
    for _ in range(3):  # never two in a row
        fault = Lying(rig, 200, EMPTY).once()
        await eventually(fault.told)
        await walks(rig, 1)
    assert rig.site.vmm(uid) == vmm
    assert "taking it down" not in rig.site.log.read_text()


async def test_watch_that_lists_nothing_tears_nothing_down(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    kept = rig.world.get("a")
    rig.world.server.remove("instances", "a", NAMESPACE)  # as when nodeName moved away
    await walks(rig, 0)
    rig.world.server.put("instances", kept)
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm


async def test_instance_that_truly_is_gone_is_taken_down_after_two_lists(rig: Rig) -> None:
    rig.restart(orphan_sweep_seconds=PERIOD)
    uid, other = await rig.run("a"), await rig.run("b")
    vmm = rig.site.vmm(other)
    await rig.site.agent.kill()
    rig.world.server.remove("instances", "a", NAMESPACE)  # its finalizer was removed by force
    rig.restart()
    await eventually(lambda: not rig.site.places.instance(uid).exists())
    assert rig.site.vmm(other) == vmm
    assert "exists no more, as two full lists said" in rig.site.log.read_text()
    await rig.world.until_gone("b")
    assert rig.left() == []


async def test_directory_without_a_record_is_removed_and_one_in_use_is_not(rig: Rig) -> None:
    rig.restart(orphan_sweep_seconds=PERIOD)
    uid = await rig.run("a")
    await rig.site.agent.kill()
    rig.world.server.remove("instances", "a", NAMESPACE)
    record = rig.site.places.instance(uid) / "record.json"
    kept = record.read_bytes()
    record.unlink()  # a VMM lives there, and nobody knows what it is
    planted = rig.site.places.instances / str(uuid.uuid4())
    planted.mkdir()
    (planted / "half").write_bytes(b"x")
    foreign = rig.site.places.instances / "lost+found"
    foreign.mkdir()
    vmm = rig.site.vmm(uid)
    rig.restart()
    await eventually(lambda: not planted.exists())
    await walks(rig, 3)
    assert rig.site.vmm(uid) == vmm
    assert "a VMM lives there that has no record" in rig.site.log.read_text()
    assert foreign.exists()
    foreign.rmdir()
    await rig.site.agent.kill()
    record.write_bytes(kept)
    rig.restart()
    await eventually(lambda: not rig.site.places.instance(uid).exists())
    assert rig.left() == []


async def test_image_that_an_instance_needs_outlives_every_walk(rig: Rig) -> None:
    rig.restart(orphan_sweep_seconds=PERIOD, image_store_bytes=0)
    await rig.run("a")
    await walks(rig, 3)
    assert list(Path(rig.site.places.images).glob("*/rootfs.erofs"))
