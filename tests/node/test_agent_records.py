"""A real agent and records it cannot trust: not acted on, never removed, said on the Instance."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.agentkit import Rig, Zygote, eventually
from tests.agentkit import rig as make_rig

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
async def rig(zygote: Zygote) -> AsyncIterator[Rig]:
    async with make_rig(zygote, orphan_sweep_seconds=0.3) as made:
        yield made


def _newer(text: str) -> str:
    return json.dumps({**json.loads(text), "schema": 2})


def _flipped(text: str) -> str:
    return text.replace('"provisioned": true', '"provisioned": false')


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _emptied(text: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_newer, "RecordNewer"),
        (_flipped, "RecordCorrupt"),
        (_cut, "RecordCorrupt"),
        (_emptied, "RecordCorrupt"),
    ],
)
async def test_record_that_cannot_be_trusted_is_not_acted_on(
    rig: Rig, spoil: Callable[[str], str], reason: str
) -> None:
    rig.restart()
    uid, other = await rig.run("a"), await rig.run("b")
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    path = rig.site.places.instance(uid) / "record.json"
    kept = path.read_text()
    path.write_text(spoil(kept))
    rig.world.ask("a", "Stopped")
    rig.restart()
    ready = await rig.world.until_reason("a", reason)
    assert ready["status"] == "Unknown"
    assert "its guest is left alone" in ready["message"]
    assert rig.world.condition("a", "Stalled")["reason"] == reason
    assert rig.world.state("a") == "Unknown"
    rig.world.delete("a")
    await rig.world.until("b", "Paused")
    third = await rig.run("c")
    indexes = {rig.site.record(each).index for each in (other, third)}
    assert json.loads(kept)["record"]["index"] not in indexes, "its uid was given away"
    assert path.read_text() == spoil(kept)
    assert rig.site.vmm(uid) == vmm
    assert rig.world.get("a")["metadata"]["finalizers"]
    await rig.site.agent.kill()
    path.write_text(kept)
    rig.restart()
    for name in ("a", "b", "c"):
        await rig.world.until_gone(name)
    assert rig.left() == []


async def test_disk_that_vanished_is_said_and_never_made_anew(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    await rig.world.until("a", "Stopped")
    overlay = rig.site.places.overlay(uid)
    kept = overlay.rename(overlay.with_name("kept"))
    rig.world.ask("a", "Running")
    ready = await rig.world.until_reason("a", "DiskMissing")
    assert "bring it back" in ready["message"]
    assert rig.world.condition("a", "Stalled")["status"] == "True"
    assert not overlay.exists()
    kept.rename(overlay)
    rig.world.edit("a", stopTimeoutSeconds=3)
    await rig.world.until("a")


async def test_record_and_disk_that_vanished_are_said_and_never_made_anew(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    await rig.world.until("a", "Stopped")
    await rig.site.agent.kill()
    place = rig.site.places.instance(uid)
    kept = place.rename(Path(rig.site.home / "kept"))
    rig.world.ask("a", "Running")
    rig.restart()
    await rig.world.until_reason("a", "DiskMissing")
    assert [str(path) for path in place.rglob("*")] == []
    await rig.site.agent.kill()
    kept.rename(place)
    rig.restart()
    await rig.world.until("a")
    await eventually(lambda: rig.site.starts(uid) == 2)
