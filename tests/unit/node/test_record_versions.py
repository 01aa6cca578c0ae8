"""A record that this agent does not wholly understand is told apart from a damaged one."""

import json

import pytest

from controller.errors import Rejected
from controller.node import record as records
from controller.node.record import HardwareRecord, Record, decode, encode

RECORD = Record(
    uid="5f0c8f0e-7a44-4a2a-9e57-1b2f0a6a2c11",
    namespace="default",
    name="web",
    id="a1",
    install_id="0123abcd",
    epoch=1,
    index=0,
    image="registry:5000/app:1",
    hardware=HardwareRecord(
        hypervisor="qemu", vcpus=1, memory=1, overlay=1, disk_bandwidth=0, threads_per_core=1
    ),
)


def rewritten(change) -> bytes:
    """The record as another release would have written it: changed, with a checksum that fits."""
    whole = json.loads(encode(RECORD))
    change(whole)
    whole["checksum"] = records._checksum(whole["record"])
    return json.dumps(whole).encode()


def test_a_field_of_a_newer_agent_is_not_called_damage():
    data = rewritten(lambda whole: whole["record"].update(novelty=1))
    with pytest.raises(Rejected, match="novelty") as refused:
        decode(data)
    assert refused.value.reason == "RecordNewer"


def test_a_newer_schema_is_not_called_damage():
    data = rewritten(lambda whole: whole.update(schema=records.SCHEMA + 1))
    with pytest.raises(Rejected, match="left alone") as refused:
        decode(data)
    assert refused.value.reason == "RecordNewer"


def test_a_record_of_an_older_agent_that_lacks_a_field_with_a_default_is_read():
    data = rewritten(lambda whole: whole["record"].pop("disk_generation"))
    assert decode(data) == RECORD


def test_a_field_of_the_wrong_kind_is_damage():
    data = rewritten(lambda whole: whole["record"].update(epoch="one"))
    with pytest.raises(Rejected, match="epoch") as refused:
        decode(data)
    assert refused.value.reason == "RecordCorrupt"
