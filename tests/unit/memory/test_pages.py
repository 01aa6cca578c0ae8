"""Which memory of a process is RAM, and which of its pages are its own."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import Blocked
from controller.memory.pages import FileId, Mapping, assemble, own_pages, parse_maps, runs_of

IMAGE = FileId(os.makedev(0xFE, 1), 77)
MAPS = b"""\
55d0c0000000-55d0c0400000 r-xp 00000000 fe:01 12                         /usr/bin/vmm
7f0000000000-7f0000200000 rw-p 00000000 fe:01 77                         /store/a b 7f-80 r (del)
7f0000200000-7f0000400000 r--p 00200000 fe:01 77                         /store/a b
7f0000400000-7f0000401000 ---p 00000000 00:00 0
7f1000000000-7f1000200000 rw-p 00000000 fe:02 77                         /elsewhere
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
"""


def areas(*lines: str):
    return parse_maps("\n".join(lines).encode())


def test_ram_is_found_by_the_file_and_not_by_its_size():
    mine = [area for area in parse_maps(MAPS) if area.file == IMAGE]
    assert assemble(mine, 0x400000, 1) == Mapping(0x7F0000000000, 0x400000)


def test_every_line_of_a_maps_file_is_read():
    assert [area.file.inode for area in parse_maps(MAPS)] == [12, 77, 77, 0, 77, 0]


def test_areas_of_dev_zero_may_all_have_one_offset():
    found = areas("1000-3000 rw-p 0 00:06 4", "3000-4000 r--p 0 00:06 4")
    assert assemble(found, 0x3000, 1) == Mapping(0x1000, 0x3000)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("1000-3000 rw-s 0 00:06 4",),
        ("1000-2000 rw-p 0 00:06 4",),
        ("1000-4000 rw-p 0 00:06 4", "9000-c000 rw-p 0 00:06 4"),
        ("1000-2000 rw-p 0 00:06 4", "3000-5000 rw-p 1000 00:06 4"),
        ("1000-2000 rw-p 0 00:06 4", "2000-4000 rw-p 7000 00:06 4"),
    ],
    ids=["none", "shared", "too small", "two", "a gap", "other bytes of the image"],
)
def test_memory_that_is_not_as_we_made_it_is_refused(lines):
    with pytest.raises(Blocked) as caught:
        assemble(areas(*lines), 0x3000, 1)
    assert caught.value.reason == "MemoryNotFound"


def test_own_pages_are_present_or_swapped_and_not_of_a_file():
    present, swapped, of_file, soft_dirty = 1 << 63, 1 << 62, 1 << 61, 1 << 55
    entries = [0, present, swapped, present | of_file, soft_dirty, present | soft_dirty, of_file]
    assert own_pages(struct.pack("<7Q", *entries)).tolist() == [1, 2, 5]


@given(st.sets(st.integers(0, 300)))
def test_runs_name_each_page_once(pages):
    rows = runs_of(np.array(sorted(pages), dtype=np.int64)).tolist()
    assert [page for first, count in rows for page in range(first, first + count)] == sorted(pages)
    ends = [first + count for first, count in rows]
    assert all(first > end for end, (first, _) in zip(ends, rows[1:], strict=False))
