"""The line splitter: any cut of a stream gives the same lines, and nothing grows without bound."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube.lines import LineSplitter, LineTooLong


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_how_a_stream_is_cut_makes_no_difference(stream: bytes, cuts: list[int]) -> None:
    stream = stream.replace(b"a", b"\n")
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = LineSplitter()
    lines = [line for start, end in pairwise(edges) for line in splitter.feed(stream[start:end])]
    *whole, half = stream.split(b"\n")
    assert lines == whole
    assert splitter.rest == len(half)


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x" * 11 + b"\n"]])
def test_a_line_beyond_the_limit_is_refused(chunks: list[bytes]) -> None:
    splitter = LineSplitter(limit=10)
    *fine, last = chunks
    for chunk in fine:
        assert splitter.feed(chunk) == []
    with pytest.raises(LineTooLong):
        splitter.feed(last)


def test_many_short_lines_are_not_one_long_line() -> None:
    assert len(LineSplitter(limit=10).feed(b"x" * 9 + b"\n" + b"y\n" * 1000)) == 1001
