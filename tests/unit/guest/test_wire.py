"""The frame format, and that both ends of it agree."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.guest import wire
from controller.guest.initrd import INIT_SOURCE
from controller.guest.wire import Decoder, Frame, FrameType, WireError, encode, pack, unpack

FRAMES = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_frames_survive_any_split(frames: list[Frame], steps: list[int]) -> None:
    stream = b"".join(map(encode, frames))
    decoder = Decoder()
    heard: list[Frame] = []
    at = 0
    while at < len(stream):
        step = steps[at % len(steps)]
        heard += decoder.feed(stream[at : at + step])
        at += step
    assert heard == frames
    assert decoder.pending == 0


@pytest.mark.parametrize("length", [0, 4, 5 + wire.MAX_PAYLOAD + 1, 2**32 - 1])
def test_impossible_length_is_an_error(length: int) -> None:
    good = Frame(FrameType.PING, 1)
    decoder = Decoder()
    assert decoder.feed(encode(good) + length.to_bytes(4, "little")) == [good]
    assert decoder.broken
    with pytest.raises(WireError):
        decoder.feed(b"")


@given(st.binary(max_size=2000))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data)
    assert decoder.pending <= 4 + 5 + wire.MAX_PAYLOAD


def test_largest_payload_passes_and_one_more_does_not() -> None:
    frame = Frame(FrameType.PING, 1, bytes(wire.MAX_PAYLOAD))
    assert Decoder().feed(encode(frame)) == [frame]
    with pytest.raises(WireError):
        encode(frame._replace(payload=bytes(wire.MAX_PAYLOAD + 1)))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 255), st.one_of(st.binary(max_size=50), st.integers(-(2**63), 2**63 - 1))
        )
    )
)
def test_fields_round_trip(fields: list[tuple[int, bytes | int]]) -> None:
    heard = unpack(pack(fields))
    assert [key for key, _ in heard] == [key for key, _ in fields]
    for (_, raw), (_, value) in zip(heard, fields, strict=True):
        assert (wire.integer(raw) if isinstance(value, int) else raw) == value


def test_cut_fields_are_an_error() -> None:
    raw = pack([(1, b"abc"), (2, 7)])
    for cut in set(range(1, len(raw))) - {8}:  # 8: between the two
        with pytest.raises(WireError):
            unpack(raw[:cut])


@pytest.mark.parametrize(
    ("module", "names"),
    [("frame", wire.FrameType), ("kind", wire.ReportKind), ("key", wire.Key)],
)
def test_guest_has_the_same_numbers(module: str, names: type) -> None:
    source = Path(INIT_SOURCE / "src/wire.rs").read_text()
    found = re.search(rf"pub mod {module} \{{(.*?)\n\}}", source, re.DOTALL)
    assert found
    theirs = dict(re.findall(r"pub const (\w+): \w+ = (\d+);", found[1]))
    assert {name: int(value) for name, value in theirs.items()} == {
        name: int(value) for name, value in names.__members__.items()
    }
