"""Records: what is written is read, what is spoilt is never believed, never overwritten."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.observed import Unknown
from controller.errors import Bug, Rejected, Retry
from controller.node.record import (
    NAME,
    SCHEMA,
    ExitRecord,
    HardwareRecord,
    KernelRecord,
    Moment,
    ProcessRecord,
    Record,
    Records,
    RunRecord,
    VmmRecord,
    WorkloadRecord,
    decode,
    encode,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBER = st.integers(0, 2**53)
UIDS = st.uuids().map(str)
MOMENTS = st.builds(Moment, boot_id=TEXT, seconds=st.floats(0, 1e9, allow_nan=False), wall=TEXT)
PROCESSES = st.builds(ProcessRecord, pid=NUMBER, start_time=NUMBER, boot_id=TEXT)
VMMS = st.builds(
    VmmRecord, process=PROCESSES, keeper=PROCESSES, pipes=st.dictionaries(TEXT, NUMBER, max_size=4)
)
ARGV = st.none() | st.lists(TEXT, max_size=4).map(tuple)
RECORDS = st.builds(
    Record,
    uid=UIDS,
    namespace=TEXT,
    name=TEXT,
    id=TEXT,
    install_id=TEXT,
    epoch=NUMBER,
    index=NUMBER,
    run=NUMBER,
    image=TEXT,
    image_digest=st.none() | TEXT,
    hardware=st.builds(
        HardwareRecord,
        hypervisor=TEXT,
        vcpus=NUMBER,
        memory=NUMBER,
        overlay=NUMBER,
        disk_bandwidth=NUMBER,
        threads_per_core=NUMBER,
    ),
    kernel=st.none() | st.builds(KernelRecord, version=TEXT, digest=TEXT),
    workload=st.none()
    | st.builds(
        WorkloadRecord,
        command=ARGV,
        args=ARGV,
        env=st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple),
    ),
    open=st.none()
    | st.builds(
        RunRecord,
        prepared=st.booleans(),
        vmm=st.none() | VMMS,
        boot_ordered=st.none() | MOMENTS,
        stop_ordered=st.none() | MOMENTS,
    ),
    exit=st.none() | st.builds(ExitRecord, code=st.none() | st.integers(-255, 255), message=TEXT),
    restarts=NUMBER,
    retry_after=st.none() | MOMENTS,
    released=st.none() | UIDS,
    tombstone=st.booleans(),
)


def record(uid: str = "", **changes: Any) -> Record:
    hardware = HardwareRecord(
        hypervisor="qemu", vcpus=1, memory=1, overlay=1, disk_bandwidth=0, threads_per_core=1
    )
    fields: dict[str, Any] = {
        "uid": uid or str(uuid.uuid4()),
        "namespace": "default",
        "name": "a",
        "id": "x",
        "install_id": "0badcafe",
        "epoch": 1,
        "index": 0,
        "image": "registry.example/app:1",
        "hardware": hardware,
    }
    return Record(**{**fields, **changes})


@given(RECORDS)
def test_every_record_comes_back_as_it_was(one: Record) -> None:
    assert decode(encode(one)) == one


@given(RECORDS, st.data())
def test_no_flipped_byte_is_believed(one: Record, data: st.DataObject) -> None:
    raw = bytearray(encode(one))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 6))
    with contextlib.suppress(Rejected):
        # white space may change, or a key that nobody reads: no word of the record
        assert decode(bytes(raw)) == one


@given(RECORDS, st.data())
def test_no_record_that_was_cut_is_believed(one: Record, data: st.DataObject) -> None:
    raw = encode(one).rstrip()
    with pytest.raises(Rejected) as refused:
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    assert refused.value.reason == "RecordCorrupt"


def test_record_of_a_newer_agent_says_which_agent_is_needed() -> None:
    whole = json.loads(encode(record()))
    whole["schema"] = SCHEMA + 1
    whole["record"]["of_tomorrow"] = True
    with pytest.raises(Rejected) as refused:
        decode(json.dumps(whole).encode())
    assert refused.value.reason == "RecordNewer"
    assert "run that agent again" in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', "1", '{"schema": "1", "record": {}}'])
def test_json_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        decode(text.encode())


def loaded(root: Path) -> Records:
    records = Records(root)
    records.load()
    return records


def test_what_was_saved_is_there_after_a_restart_and_only_root_may_read_it(
    tmp_path: Path,
) -> None:
    one = loaded(tmp_path).save(record())
    assert loaded(tmp_path).get(one.uid) == one
    assert (tmp_path / one.uid / NAME).stat().st_mode & 0o777 == 0o600


def test_save_leaves_nothing_beside_the_record(tmp_path: Path) -> None:
    records = loaded(tmp_path)
    one = records.save(record())
    for run in range(3):
        records.save(one.model_copy(update={"run": run}))
    assert [path.name for path in (tmp_path / one.uid).iterdir()] == [NAME]


def test_save_that_fails_leaves_the_old_one_standing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = loaded(tmp_path)
    one = records.save(record())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    later = one.model_copy(update={"run": 7})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Retry) as failed:
            records.save(later)
    assert failed.value.reason == "NoSpace"
    assert records.get(one.uid) == one
    assert loaded(tmp_path).get(one.uid) == one


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_record_that_cannot_be_read_is_unknown_and_is_never_overwritten(
    tmp_path: Path, content: bytes
) -> None:
    one = loaded(tmp_path).save(record())
    path = tmp_path / one.uid / NAME
    path.write_bytes(content)
    records = loaded(tmp_path)
    found = records.get(one.uid)
    assert isinstance(found, Unknown)
    assert found.stalled
    with pytest.raises(Bug):
        records.save(one)
    assert path.read_bytes() == content
    assert records.known() == []


def test_directory_without_a_record_and_names_that_are_no_uid_are_no_records(
    tmp_path: Path,
) -> None:
    (tmp_path / str(uuid.uuid4())).mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "file").write_text("")
    assert loaded(tmp_path).items() == []


def test_removed_record_leaves_no_trace(tmp_path: Path) -> None:
    records = loaded(tmp_path)
    one = records.save(record())
    (tmp_path / one.uid / "disk").mkdir()
    records.remove(one.uid)
    records.remove(one.uid)
    assert records.get(one.uid) is None
    assert list(tmp_path.iterdir()) == []


def test_index_is_the_lowest_free_one_and_there_is_an_end_of_them(tmp_path: Path) -> None:
    records = loaded(tmp_path)
    for index in (0, 1, 3):
        records.save(record(index=index))
    assert records.free_index(5) == 2
    records.save(record(index=2))
    with pytest.raises(Retry) as refused:
        records.free_index(4)
    assert refused.value.reason == "NoFreeUid"


def test_index_of_a_record_that_cannot_be_read_is_not_given_away(tmp_path: Path) -> None:
    records = loaded(tmp_path)
    spoilt = records.save(record(index=0))
    records.save(record(index=1))
    (tmp_path / spoilt.uid / NAME).write_bytes(b"")
    assert loaded(tmp_path).free_index(10) not in (0, 1)


def test_uid_that_is_a_path_is_refused(tmp_path: Path) -> None:
    records = loaded(tmp_path)
    for uid in ("../x", "", "a/b", "x" * 36):
        with pytest.raises(Rejected):
            records.directory(uid)


def test_moment_of_another_boot_is_no_time() -> None:
    moment = Moment(boot_id="one", seconds=5.0, wall="2026-01-01T00:00:00Z")
    assert (moment.within("one"), moment.within("two")) == (5.0, None)
