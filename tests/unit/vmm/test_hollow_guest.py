"""The inside of a hollow VMM, without a process: its RAM, its journal, and the frames it speaks."""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.guest import wire
from controller.guest.wire import Frame, FrameType, Key
from controller.vmm import hollow_guest, hollow_wire
from controller.vmm.hollow_guest import EVERY, FIRST_FILLED, MIB, SLOTS, Guest, packed

SIZE = 4 * MIB
TOKEN = (int(Key.TOKEN), b"t" * 16)

PAIRS = st.lists(
    st.tuples(st.integers(0, 255), st.binary(max_size=40) | st.integers(-(2**63), 2**63 - 1)),
    max_size=8,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, MIB)
    yield fd
    os.close(fd)


def guest(disk: int = -1, ram: bytes = b"") -> Guest:
    memory = mmap.mmap(-1, SIZE)
    memory[: len(ram)] = ram
    made = Guest(memory, disk)
    if not ram:
        made.boot({"hostname": "h", "machine_id": "m", "nonce": "n"})
    return made


def slots(disk: int) -> list[int]:
    found = struct.unpack(f"<{SLOTS - 1}Q", os.pread(disk, 8 * SLOTS, 0)[8:])
    return [slot for slot in found if slot]


@given(PAIRS)
def test_fields_are_those_of_the_real_guest(pairs: list[tuple[int, bytes | int]]) -> None:
    assert hollow_wire.fields(*pairs) == wire.pack(pairs)
    first: dict[int, bytes] = {}
    for key, value in wire.unpack(wire.pack(pairs)):
        first.setdefault(key, value)
    assert hollow_wire.unpacked(wire.pack(pairs)) == first


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=100))
def test_frames_are_those_of_the_real_guest(kind: int, nonce: int, payload: bytes) -> None:
    assert hollow_wire.frame(kind, nonce, payload) == wire.encode(Frame(kind, nonce, payload))


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_half_a_field_is_none(cut: int) -> None:
    with pytest.raises(ValueError, match="half"):
        hollow_wire.unpacked(hollow_wire.fields((1, b"abc"))[:-cut])


def test_names_and_numbers_are_those_of_the_wire() -> None:
    for name in ("BOOT_ID", "NONCE", "HOSTNAME", "MACHINE_ID", "WALL", "SEED", "TOKEN"):
        assert getattr(hollow_guest, name) == Key[name]
    for name in ("TIME", "RESEED", "IDENTITY"):
        assert getattr(hollow_guest, name) == FrameType[name]
        assert FrameType[f"{name}_REPLY"] == FrameType[name] + 1


def test_all_that_it_is_lies_in_its_ram() -> None:
    one = guest()
    one.tick(journal=False)
    two = guest(ram=one.memory[:FIRST_FILLED])
    assert (two.lives, two.count, two.identity) == (True, 1, one.identity)


def test_empty_ram_holds_no_guest() -> None:
    nobody = Guest(mmap.mmap(-1, SIZE), -1)
    assert (nobody.lives, nobody.count, nobody.identity) == (False, 0, {})


def test_two_boots_are_two_guests_of_one_name() -> None:
    one, two = guest().identity, guest().identity
    assert one["hostname"] == two["hostname"] == "h"
    assert one["urandom"] != two["urandom"]
    assert one["boot_id"] != two["boot_id"]


def test_it_fills_no_more_than_it_has_and_nothing_of_itself() -> None:
    one = guest()
    before = one.memory[:FIRST_FILLED]
    assert one.fill(1000) == 3
    assert one.memory[:FIRST_FILLED] == before
    assert one.memory[FIRST_FILLED : FIRST_FILLED + 3 * MIB].count(0) < 3 * MIB // 100


def test_every_so_many_ticks_are_noted(disk: int) -> None:
    one = guest(disk)
    one.tick(journal=True)
    for _ in range(2 * EVERY):
        one.ticked()
    assert slots(disk) == [1, EVERY, 2 * EVERY]
    assert one.gaps == 0


def test_a_boot_counts_on_from_its_disk(disk: int) -> None:
    one = guest(disk)
    for _ in range(3):
        one.tick(journal=True)
    two = guest(disk)
    two.tick(journal=True)
    assert two.count == 4
    assert slots(disk) == [1, 2, 3, 4]
    assert two.gaps == 0


def test_what_was_on_a_disk_that_has_no_journal_is_no_count(disk: int) -> None:
    os.pwrite(disk, b"\xff" * 4096, 1024)
    one = guest(disk)
    one.tick(journal=True)
    assert slots(disk) == [1]


def test_a_full_journal_takes_no_more(disk: int) -> None:
    one = guest(disk)
    for _ in range(SLOTS + 10):
        one.tick(journal=True)
    assert slots(disk)[-1] == SLOTS - 1
    assert one.gaps == 0
    assert one.count == SLOTS + 10
    assert os.pread(disk, 8, 8 * SLOTS) == bytes(8)


def test_memory_that_is_used_twice_is_a_gap(disk: int) -> None:
    one = guest(disk)
    one.tick(journal=True)
    saved = one.memory[:FIRST_FILLED]
    one.tick(journal=True)
    again = guest(disk, ram=saved)
    again.tick(journal=True)
    assert again.gaps == 1


def test_a_disk_of_another_moment_is_a_gap(disk: int) -> None:
    one = guest(disk)
    one.tick(journal=True)
    old = os.pread(disk, 4096, 0)
    one.tick(journal=True)
    os.pwrite(disk, old, 0)
    one.tick(journal=True)
    assert one.gaps == 1


def test_a_seed_is_mixed_with_what_was_random_before() -> None:
    one = guest()
    was = bytes.fromhex(one.identity["urandom"])
    seed = os.urandom(64)
    request = hollow_wire.fields(TOKEN, (Key.SEED, seed))
    assert one.repair(FrameType.RESEED, request) == 0
    now = bytes.fromhex(one.identity["urandom"])
    assert now == bytes(a ^ b for a, b in zip(was, seed[:16], strict=True))


@given(st.binary(max_size=120))
def test_no_request_breaks_it(payload: bytes) -> None:
    one = Guest(mmap.mmap(-1, SIZE), -1)
    one.boot({})
    was = one.identity
    for kind in (FrameType.TIME, FrameType.RESEED, FrameType.IDENTITY):
        assert one.repair(kind, payload) == hollow_guest.EINVAL
    assert one.identity == was


@given(st.integers(0, 200), st.integers(1, 255))
def test_damaged_device_state_is_noticed(at: int, change: int) -> None:
    state = packed({"sequence": 3, "count": 17, "devices": "x" * 64})
    assert hollow_guest.unpacked_state(state)["count"] == 17
    where = at % len(state)
    damaged = state[:where] + bytes([state[where] ^ change]) + state[where + 1 :]
    assert hollow_guest.unpacked_state(damaged) == {}
    assert hollow_guest.unpacked_state(state[:where]) == {}
