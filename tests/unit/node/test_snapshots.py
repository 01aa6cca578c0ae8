"""What keeps the files of the memory store."""

from pathlib import Path

import pytest

from controller.errors import Retry
from controller.node.places import Places
from controller.node.record import HardwareRecord, Record, Records
from controller.node.snapshots import references

UID = "6f1b9a2e-0000-4000-8000-000000000001"
SLEEPER = Record(
    uid=UID, namespace="ns", name="web", id="i", install_id="i", epoch=1, index=0, image="a/b:1",
    hardware=HardwareRecord(
        hypervisor="qemu", vcpus=1, memory=1, overlay=1, disk_bandwidth=0, threads_per_core=1
    ),
    disk_generation=3, slept=3,
)  # fmt: skip


def test_sleeper_without_its_manifest_keeps_everything_until_it_is_to_go(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path / "run")
    records = Records(places.instances)
    records.save(SLEEPER)
    with pytest.raises(Retry, match=UID) as caught:
        references(places, records)
    assert caught.value.reason == "ReferencesUnknown"
    records.save(SLEEPER.model_copy(update={"tombstone": True}))
    assert references(places, records).homes == (places.instance(UID),)
    records.save(SLEEPER.model_copy(update={"disk_generation": 4}))
    assert references(places, records).homes == (places.instance(UID),)
