"""The format of images: what is written is read again, and nothing else is."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import Rejected
from controller.memory import capture, image
from controller.memory.chunks import CHUNK_PAGES
from controller.memory.image import Kind, Layout, RunKind
from controller.memory.pages import PAGE
from tests.unit.memory.snapshots import pattern, ram_of, write_base, write_delta

PATH = Path("/store/0/base-x")
BASE = "cd" * 32


def file_of(layout: Layout, body: bytes = b"") -> tuple[int, str]:
    fd = os.memfd_create("image")
    os.write(fd, body)
    os.ftruncate(fd, layout.body_pages * PAGE)
    digest, _ = capture.finish(fd, layout)
    return fd, digest


def delta_of(*rows: tuple[int, int, int, int], ram: int = 8, body: int = 4) -> Layout:
    table = np.array(rows, dtype=np.uint32).reshape(-1, 4)
    return Layout(Kind.DELTA, ram * PAGE, body, table, (bytes(32),), BASE)


def test_a_delta_is_read_as_it_was_written():
    layout = delta_of((0, 0, 2, 0), (3, 0, 1, 1), (5, 2, 2, 0))
    fd, digest = file_of(layout)
    found = image.read(fd, PATH, digest)
    assert found.runs.tolist() == layout.runs.tolist()
    assert (found.kind, found.ram, found.base) == (Kind.DELTA, 8 * PAGE, BASE)
    assert found.digests == layout.digests


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 0, 0, 0)],
        [(0, 0, 2, 0), (1, 2, 1, 0)],
        [(5, 0, 1, 0), (2, 1, 1, 0)],
        [(7, 0, 2, 0)],
        [(0, 0, 5, 0)],
        [(0, 1, 1, 0), (2, 0, 1, 0)],
        [(0, 0, 1, 2)],
        [(2**32 - 1, 0, 2**32 - 1, 1)],
        [(0, 2**32 - 1, 2, 0)],
    ],
    ids=[
        "no pages", "overlap in RAM", "not ascending", "outside of RAM", "behind the body",
        "twice in the body", "no known kind", "number overflow", "overflow in the body",
    ],
)  # fmt: skip
def test_a_run_table_that_makes_no_sense_is_refused(rows):
    fd, digest = file_of(delta_of(*rows))
    with pytest.raises(Rejected) as caught:
        image.read(fd, PATH, digest)
    assert caught.value.reason == "SnapshotCorrupt"
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, b"torporXX"), (1, 2), (2, 3), (3, 8192), (4, 1), (5, 0), (5, 2**63), (5, 4097), (6, 2**60),
     (7, 2**61)],
)  # fmt: skip
def test_a_footer_that_makes_no_sense_is_refused_before_anything_is_read(field, value):
    fd, _ = file_of(delta_of((0, 0, 1, 0)))
    size = os.fstat(fd).st_size
    footer = struct.Struct("<8sIIIIQQQ32s16x")
    values = list(footer.unpack(os.pread(fd, 96, size - 96)))
    values[field] = value
    os.pwrite(fd, footer.pack(*values), size - 96)
    with pytest.raises(Rejected) as caught:
        image.read(fd, PATH, image.digest_of(os.pread(fd, size, 4 * PAGE)))
    assert caught.value.reason == "SnapshotCorrupt"


def test_every_flipped_bit_of_a_trailer_is_found():
    fd, digest = file_of(delta_of((0, 0, 2, 0), (3, 0, 1, 1), (5, 2, 2, 0)))
    size = os.fstat(fd).st_size
    for at in range(4 * PAGE, size):
        (byte,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte ^ 1 << at % 8]), at)
        with pytest.raises(Rejected):
            image.read(fd, PATH, digest)
        os.pwrite(fd, bytes([byte]), at)
    image.read(fd, PATH, digest)


def test_every_shorter_or_longer_file_is_refused():
    fd, digest = file_of(delta_of((0, 0, 2, 0)))
    size = os.fstat(fd).st_size
    whole = os.pread(fd, size, 0)
    for length in (*range(0, size, 97), size - 1, size + 1):
        other = os.memfd_create("cut")
        os.write(other, (whole + b"\0")[:length])
        with pytest.raises(Rejected):
            image.read(other, PATH, digest)
        os.close(other)


def test_a_flipped_bit_is_found_in_its_chunk_and_holes_count_too():
    pages = 3 * CHUNK_PAGES + 5
    ram = ram_of({n: pattern(n) for n in (0, 5, 1023, 2048, 3076)}, pages)  # chunk 1 is empty
    fd = os.memfd_create("base")
    layout = write_base(fd, ram)
    assert image.damaged_chunks(fd, layout) == ()
    for page in (0, 1, 1023, 1500, 2048, 2049, 3075, 3076):
        at = page * PAGE + 4095
        (byte,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte ^ 0x80]), at)
        assert image.damaged_chunks(fd, layout) == (page // CHUNK_PAGES,)
        os.pwrite(fd, bytes([byte]), at)
    assert image.damaged_chunks(fd, layout) == ()


def test_a_copy_without_holes_is_the_same_image():
    ram = ram_of({3: pattern(3)}, 40)
    sparse, dense = os.memfd_create("sparse"), os.memfd_create("dense")
    layout = write_base(sparse, ram)
    os.write(dense, ram)
    assert image.damaged_chunks(dense, layout) == ()


page_kinds = st.lists(st.sampled_from(["zero", "same", "new"]), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(st.data(), page_kinds)
def test_base_and_delta_give_back_the_memory(data, kinds):
    """The zero-page rule: ZERO runs exactly where the base has something."""
    old = {n: pattern(n) for n in range(len(kinds)) if data.draw(st.booleans())}
    new = {n: pattern(n, 5) for n, kind in enumerate(kinds) if kind == "new"}
    new |= {n: old[n] for n, kind in enumerate(kinds) if kind == "same" and n in old}
    before, after = ram_of(old, len(kinds)), ram_of(new, len(kinds))
    base, delta = os.memfd_create("base"), os.memfd_create("delta")
    write_base(base, before)
    layout = write_delta(delta, base, BASE, before, after)
    digest, layout = capture.finish(delta, layout)
    rows = image.read(delta, PATH, digest).runs.tolist()
    out = bytearray(before)
    for page, body, count, kind in rows:
        text = os.pread(delta, count * PAGE, body * PAGE) if kind == RunKind.DATA else None
        out[page * PAGE : (page + count) * PAGE] = text or bytes(count * PAGE)
    assert bytes(out) == after
    zeroed = {p for p, _, count, kind in rows if kind == RunKind.ZERO for p in range(p, p + count)}
    assert zeroed == {n for n in old if n not in new}
    os.close(base)
    os.close(delta)


def test_a_page_that_was_zero_and_is_zero_is_no_run():
    pages = np.array([2, 3, 4, 5, 9], dtype=np.int64)
    stored = np.array([True, False, False, True, False])
    base_has = np.zeros(10, dtype=bool)
    base_has[4] = True
    rows = capture.delta_runs(pages, stored, base_has).tolist()
    assert rows == [[2, 0, 1, RunKind.DATA], [4, 0, 1, RunKind.ZERO], [5, 3, 1, RunKind.DATA]]
