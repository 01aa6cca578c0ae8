"""Moving pages between files: the engine, apart from processes."""

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.memory import copier
from controller.memory.chunks import (
    CHUNK,
    CHUNK_PAGES,
    EMPTY,
    ChunkDigest,
    data_extents,
    pages_with_data,
    stretches,
)
from controller.memory.pages import PAGE
from tests.unit.memory.snapshots import pattern


def memfd(data: bytes = b"") -> int:
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


@st.composite
def piece_rows(draw):
    """(source page, body page, count), sorted in the body and not overlapping there."""
    rows, at = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 9))):
        count = draw(st.sampled_from([1, 2, 63, 64, 65, 700, 1024, 1500]))
        rows.append((draw(st.integers(0, 500)), at, count))
        at += count + draw(st.sampled_from([0, 0, 1, 3, 4, 300, 1024]))
    return rows, at + draw(st.integers(0, 2))


@settings(max_examples=15, deadline=None)
@given(piece_rows())
def test_a_copy_holds_every_page_where_it_belongs(given_rows):
    rows, size = given_rows
    whole = b"".join(pattern(n) if n % 7 else bytes(PAGE) for n in range(2100))
    source, target = memfd(whole), memfd()
    os.ftruncate(target, size * PAGE)
    pieces = copier.pieces(0, [(page * PAGE, body, count) for page, body, count in rows])
    copied = copier.copy(copier.Order([source], pieces, size, target))
    expected = bytearray(size * PAGE)
    for page, body, count in rows:
        expected[body * PAGE : (body + count) * PAGE] = whole[page * PAGE : (page + count) * PAGE]
    assert os.pread(target, size * PAGE, 0) == bytes(expected)
    assert copied.stored.tolist() == [any(expected[n * PAGE : n * PAGE + 16]) for n in range(size)]
    assert list(copied.digests) == [naive_digest(expected, n) for n in range(len(copied.digests))]
    os.close(source)
    os.close(target)


def naive_digest(body: bytes | bytearray, chunk: int) -> bytes:
    """The scheme, written down a second time."""
    data = bytes(body[chunk * CHUNK : (chunk + 1) * CHUNK])
    pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    kept = [n for n, page in enumerate(pages) if any(page)]
    bits = sum(1 << n for n in kept)
    if not kept:
        return EMPTY
    text = b"".join(pages[n] for n in kept) + bits.to_bytes(CHUNK_PAGES // 8, "little")
    return hashlib.sha256(text).digest()


@given(rows=piece_rows())
def test_cut_pieces_say_the_same_and_cross_no_chunk(rows):
    pieces = copier.pieces(3, [(page * PAGE, body, count) for page, body, count in rows[0]])
    cut = copier.split(pieces).tolist()

    def each(table):
        return [
            (source, offset + n * PAGE, body + n)
            for source, offset, body, count in table
            for n in range(count)
        ]

    assert each(cut) == each(pieces.tolist())
    assert all(
        body // CHUNK_PAGES == (body + count - 1) // CHUNK_PAGES for _, _, body, count in cut
    )


def test_pages_of_zeros_become_holes():
    source = memfd(pattern(1) + bytes(600 * PAGE) + pattern(2))
    target = memfd()
    os.ftruncate(target, 602 * PAGE)
    copier.copy(copier.Order([source], copier.pieces(0, [(0, 0, 602)]), 602, target))
    assert data_extents(target, 602 * PAGE) == [(0, 1), (601, 602)]


@given(st.integers(0, PAGE - 1), st.integers(0, 7))
def test_one_bit_anywhere_makes_a_page_count(at, bit):
    page = bytearray(2 * PAGE)
    page[PAGE + at] = 1 << bit
    assert pages_with_data(memoryview(page)).tolist() == [False, True]


@given(st.lists(st.booleans(), max_size=70))
def test_stretches_cover_what_is_set(flags):
    covered = [n for a, b in stretches(np.array(flags, dtype=bool)) for n in range(a, b)]
    assert covered == [n for n, flag in enumerate(flags) if flag]


def test_the_same_pages_at_other_places_have_another_digest():
    def digest(stored):
        made = ChunkDigest()
        data = b"".join(pattern(1) if flag else bytes(PAGE) for flag in stored)
        made.add(0, memoryview(data), np.array(stored))
        return made.finish()

    assert digest([True, False]) != digest([False, True])
    assert digest([False, False]) == EMPTY


def test_a_copy_stops_when_it_is_cancelled():
    source = memfd(pattern(1) * 16)
    order = copier.Order([source], copier.pieces(0, [(0, 0, 16)]), 16, cancelled=lambda: True)
    with pytest.raises(copier.Cancelled):
        copier.copy(order)


def test_a_source_that_is_too_short_is_an_error():
    source = memfd(pattern(1))
    with pytest.raises(EOFError):
        copier.copy(copier.Order([source], copier.pieces(0, [(0, 0, 2)]), 2))


def test_pages_are_written_back_and_zeros_too():
    target = memfd(pattern(9) * 3000)
    source = memfd(b"".join(pattern(n) for n in range(1500)))
    copier.write_back(source, [(2 * PAGE, 0, 1500), (2000 * PAGE, -1, 900)], target)
    expected = pattern(9) * 2 + b"".join(pattern(n) for n in range(1500)) + pattern(9) * 498
    expected += bytes(900 * PAGE) + pattern(9) * 100
    assert os.pread(target, 3000 * PAGE, 0) == expected
