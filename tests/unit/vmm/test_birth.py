"""The last words of a VMM that did not come up."""

from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.vmm.birth import last_message
from controller.vmm.machine import socket_path


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        (
            "2026-11-23T14:00:00.1Z qemu-system-x86_64: could not open kernel file\n",
            "could not open kernel file",
        ),
        (
            '2026-11-23T14:00:00.1Z qemu: -blockdev {"driver":"raw","x":{"y":1}}: Failed to get'
            ' "write" lock\nIs another process using the image [/d]?\n',
            'Failed to get "write" lock Is another process using the image [/d]?',
        ),
        ("ftruncate: Invalid argument\n", ""),
        ("bad \x1b[31mred\x07 \u202e\n", "bad [31mred "),
    ],
)
def test_the_last_message_is_one_printable_line(log: str, message: str) -> None:
    assert last_message(log) == message


def test_a_flood_is_cut() -> None:
    assert len(last_message("x" * 10_000)) == 300


def test_a_socket_path_has_107_bytes_at_most() -> None:
    name = "s.sock"
    fits = Path("/" + "d" * (107 - len(name) - 2))
    assert len(str(socket_path(fits, name))) == 107
    with pytest.raises(Blocked, match="107") as caught:
        socket_path(Path(f"{fits}d"), name)
    assert caught.value.reason == "RunDirTooLong"
