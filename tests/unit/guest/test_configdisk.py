"""The config disk: exact, bounded, and never half believed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import Rejected
from controller.guest import configdisk
from controller.guest.configdisk import GuestConfig

BYTES = st.binary(max_size=40).filter(lambda raw: b"\0" not in raw)
NAMES = BYTES.filter(lambda raw: raw and b"=" not in raw)


def config(**changes: object) -> GuestConfig:
    values: dict[str, object] = {"hostname": "h", "machine_id": "0" * 32, "nonce": "n"}
    return GuestConfig(**{**values, "argv": ("sh",), **changes})  # type: ignore[arg-type]


@given(
    st.lists(BYTES, min_size=1, max_size=5),
    st.lists(st.tuples(NAMES, BYTES), max_size=5),
    BYTES,
)
def test_any_bytes_come_back_exactly(
    argv: list[bytes], env: list[tuple[bytes, bytes]], workdir: bytes
) -> None:
    before = config(argv=tuple(argv), env=tuple(env), workdir=workdir, stop_timeout=2.5)
    after = configdisk.decode(configdisk.encode(before))
    assert after == before
    assert [str(arg).encode("utf-8", "surrogateescape") for arg in after.argv] == argv


def test_quotes_newlines_and_unicode_need_no_care() -> None:
    odd = ("", " ", "'\"`$\\", "a\nb\r\n", "\u00fc\u2603\U0001f40e", "=")
    after = configdisk.decode(configdisk.encode(config(argv=odd, env=(("A", "b=\n"),))))
    assert (after.argv, after.env) == (odd, (("A", "b=\n"),))


@given(st.integers(0, 4095), st.integers(1, 255))
def test_damage_is_found(at: int, flip: int) -> None:
    before = config(argv=("x" * 4076,), env=())
    disk = bytearray(configdisk.encode(before))
    disk[at] ^= flip
    with pytest.raises(Rejected):
        configdisk.decode(bytes(disk))


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"env": (("", "x"),)},
        {"env": (("A=B", "x"),)},
        {"env": (("A", "\0"),)},
        {"hostname": "x" * 65},
        {"stop_signal": 0},
        {"stop_timeout": -1.0},
        {"stop_timeout": float("nan")},
        {"argv": ("\ud800",)},
        {"argv": ("x" * configdisk.MAX_BYTES,)},
    ],
)
def test_what_no_process_can_be_given_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Rejected):
        configdisk.encode(config(**changes))


@pytest.mark.parametrize("disk", [b"", b"TORPORCF", bytes(4096)])
def test_disk_that_is_none_is_refused(disk: bytes) -> None:
    with pytest.raises(Rejected):
        configdisk.decode(disk)


def test_file_is_whole_blocks_and_private(tmp_path: Path) -> None:
    configdisk.write(tmp_path / "config", config())
    configdisk.write(tmp_path / "config", config(argv=("other",)))
    stat = (tmp_path / "config").stat()
    assert stat.st_size % 4096 == 0
    assert stat.st_mode & 0o777 == 0o600
    assert configdisk.decode((tmp_path / "config").read_bytes()).argv == ("other",)
    assert [path.name for path in tmp_path.iterdir()] == ["config"]
