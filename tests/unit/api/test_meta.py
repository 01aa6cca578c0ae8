"""Quantities are exact, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.meta import INT64_MAX, format_quantity, parse_quantity
from controller.errors import Rejected


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("0", 0),
        (7, 7),
        ("+7", 7),
        ("1Ki", 1024),
        ("1k", 1000),
        ("1Gi", 2**30),
        ("1.5Gi", 3 * 2**29),
        (".5Ki", 512),
        ("2.", 2),
        ("1e3", 1000),
        ("1E3", 1000),
        ("5E", 5 * 10**18),
        ("7Ei", 7 * 2**60),
        ("2000m", 2),
        ("1000000000n", 1),
        ("9223372036854775807", INT64_MAX),
        ("0.000000953674316406250Mi", 1),
    ],
)
def test_quantity_is_read_exactly(written: str | int, number: int) -> None:
    assert parse_quantity(written) == number


@pytest.mark.parametrize(
    "written",
    [
        "", " 1Gi", "1Gi ", "1 Gi", "abc", "1gi", "1ki", "1K", "Gi", "1GiB", "0x10", "1_0",
        "\uff11",
        "0.5", "1m", "1.0001Ki", "-1", -1, "9223372036854775808", "8Ei", "1e30", "1e999", "1e9999",
        "9" * 33, True, 1.5, None,
    ],
)  # fmt: skip
def test_what_is_no_whole_number_of_bytes_is_refused(written: object) -> None:
    with pytest.raises(Rejected) as refused:
        parse_quantity(written)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@given(st.integers(0, INT64_MAX))
def test_formatted_quantity_reads_back_as_the_same_number(number: int) -> None:
    assert parse_quantity(format_quantity(number)) == number


@given(st.integers(0, 2**40), st.sampled_from([("Ki", 10), ("Mi", 20)]))
def test_binary_suffix_is_a_shift(number: int, suffix: tuple[str, int]) -> None:
    assert parse_quantity(f"{number}{suffix[0]}") == number << suffix[1]


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_and_never_breaks(text: str) -> None:
    try:
        number = parse_quantity(text)
    except Rejected:
        return
    assert 0 <= number <= INT64_MAX


def test_whole_sizes_are_formatted_with_the_largest_suffix() -> None:
    assert [format_quantity(n) for n in (0, 7, 1024, 1536 * 2**20, 2**30)] == [
        "0", "7", "1Ki", "1536Mi", "1Gi",
    ]  # fmt: skip
