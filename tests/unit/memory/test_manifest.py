"""Manifests: written and read, damaged, newer, and compared with what is now."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import Rejected
from controller.memory.manifest import (
    LIMIT,
    Facts,
    Role,
    Seen,
    StoredFile,
    _checksum,
    decode,
    encode,
    notes,
    problems,
)
from tests.unit.memory.snapshots import DIGEST, UID, manifest_of, platform

SEEN = Seen(size=10, inode=2, mtime=3, ctime=4, mode=0o100440)
MEMORY = 128 << 20


def file(role: Role, digest: str = DIGEST, gid: int = 7) -> StoredFile:
    return StoredFile(role=role, gid=gid, digest=digest, seen=SEEN, on_disk=4096)


MANIFEST = manifest_of(MEMORY, file(Role.BASE), file(Role.DELTA), file(Role.STATE))
NOW = Facts(UID, {"overlay": 4}, platform(MEMORY))


def test_a_manifest_is_read_as_it_was_written():
    assert decode(encode(MANIFEST)) == MANIFEST
    alone = manifest_of(MEMORY, file(Role.BASE), None, file(Role.STATE))
    assert decode(encode(alone)) == alone
    assert [f.role for f in alone.files] == [Role.BASE, Role.STATE]


@given(st.data())
def test_no_flipped_bit_is_read_as_another_manifest(data):
    text = bytearray(encode(MANIFEST))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(text))
    except Rejected:
        return
    assert found == MANIFEST  # it was white space


@given(st.integers(0, len(encode(MANIFEST)) - 3))
def test_no_shorter_manifest_is_read(length):
    with pytest.raises(Rejected):
        decode(encode(MANIFEST)[:length])


@given(st.binary(max_size=200))
def test_rubbish_is_refused(data):
    with pytest.raises(Rejected):
        decode(data)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"1" * 6000, b"x" * (LIMIT + 1), b"null"])
def test_hostile_json_is_refused(text):
    with pytest.raises(Rejected):
        decode(text)


def edited(**changes: object) -> bytes:
    """A manifest with another content and the right checksum."""
    whole = json.loads(encode(MANIFEST))
    whole["manifest"] |= changes
    whole["checksum"] = _checksum(whole["manifest"])
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"base": json.loads(file(Role.DELTA).model_dump_json())},
        {"state": json.loads(file(Role.STATE, gid=8).model_dump_json())},
        {"uid": "../../etc"},
        {"epoch": -1},
        {"epoch": "1"},
        {"surprise": 1},
        {"base": None},
    ],
    ids=["role", "lineage", "uid", "negative", "type", "unknown", "no base"],
)
def test_an_edited_manifest_must_make_sense(changes):
    with pytest.raises(Rejected) as caught:
        decode(edited(**changes))
    assert caught.value.reason == "SnapshotCorrupt"


def test_a_digest_cannot_be_a_path():
    body = json.loads(file(Role.STATE).model_dump_json()) | {"digest": "../../../etc/shadow"}
    with pytest.raises(Rejected):
        decode(edited(state=body))


def test_a_newer_manifest_is_left_alone():
    newer = encode(MANIFEST).replace(b'"schema": 1', b'"schema": 2')
    with pytest.raises(Rejected) as caught:
        decode(newer)
    assert caught.value.reason == "SnapshotIncompatible"


def test_the_same_platform_and_disks_are_no_problem():
    assert problems(MANIFEST, NOW) == ()
    assert notes(MANIFEST, NOW) == ()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hypervisor": "cloud-hypervisor"}, "hypervisor"),
        ({"version": "10.1.2"}, "10.1.2"),
        ({"version": "9.0.2"}, "9.0.2"),
        ({"machine_type": "pc-q35-9.2"}, "pc-q35-9.2"),
        ({"cpu_model": "host"}, "cpu model"),
        ({"cpu_features": ("sse4.2",)}, "avx"),
        ({"accelerator": "kvm"}, "kvm"),
        ({"devices": "ef" * 32}, "devices"),
        ({"memory": MEMORY * 2}, "memory"),
        ({"kernel": "ef" * 32}, "kernel"),
        ({"initrd": "ef" * 32}, "initrd"),
    ],
)
def test_another_platform_is_refused_with_the_way_out(change, word):
    now = dataclasses.replace(NOW, platform=platform(**{"memory": MEMORY} | change))
    (problem,) = problems(MANIFEST, now)
    assert problem.reason == "SnapshotIncompatible"
    assert word in problem.message
    assert "operatingMode: Stopped" in problem.message


@pytest.mark.parametrize("disks", [{"overlay": 5}, {}, {"overlay": 4, "data": 1}])
def test_a_snapshot_belongs_to_one_generation_of_its_disks(disks):
    (problem,) = problems(MANIFEST, dataclasses.replace(NOW, disks=disks))
    assert "generation" in problem.message


def test_a_snapshot_belongs_to_one_instance():
    other = dataclasses.replace(NOW, uid="00000000-0000-0000-0000-000000000009")
    assert "Instance" in problems(MANIFEST, other)[0].message


@pytest.mark.parametrize("change", [{"version": "10.0.9"}, {"build": "deb13u2"}])
def test_another_build_of_the_same_version_is_only_noted(change):
    now = dataclasses.replace(NOW, platform=platform(MEMORY, **change))
    assert problems(MANIFEST, now) == ()
    assert len(notes(MANIFEST, now)) == 1
