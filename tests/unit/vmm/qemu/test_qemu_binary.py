"""Which QEMU will do, and what it says of itself."""

from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.vmm.qemu.binary import Binary, build_of, newest_q35, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright",
            "10.0.2",
        ),
        ("QEMU emulator version 8.2.0", "8.2.0"),
        ("QEMU emulator version 8.2", "8.2"),
    ],
)
def test_versions_from_the_floor_up_will_do(text: str, version: str) -> None:
    assert parse_version(text, "/q") == version


@pytest.mark.parametrize("text", ["QEMU emulator version 7.2.22 (Debian)", "version 8.1.99"])
def test_an_old_one_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(Blocked, match="bookworm-backports") as caught:
        parse_version(text, "/q")
    assert caught.value.reason == "VmmTooOld"


def test_the_newest_machine_is_found_by_number_not_by_alphabet() -> None:
    text = (
        "pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n"
        "q35                  Standard PC (alias of pc-q35-10.0)\n"
        "pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)\n"
        "pc-q35-4.0.1         Standard PC (deprecated)\n"
    )
    assert newest_q35(text, "/q") == "pc-q35-10.0"


def test_no_q35_is_refused() -> None:
    with pytest.raises(Blocked):
        newest_q35("microvm  microvm (i386)\n", "/q")


def _program(path: Path, version: str) -> None:
    path.write_text(
        f"#!/bin/sh\n[ $1 = -version ] && echo 'QEMU emulator version {version}' || "
        f"echo 'pc-q35-{version}  Standard PC'\n"
    )
    path.chmod(0o755)


async def test_an_upgrade_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    _program(program, "8.2.1")
    binary = Binary(str(program))
    assert (await binary.version()).version == "8.2.1"
    _program(tmp_path / "new", "10.1.0")
    (tmp_path / "new").rename(program)
    assert (await binary.version()).machine_type == "pc-q35-10.1.0"


async def test_a_missing_binary_is_blocked_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="install qemu-system-x86"):
        await Binary(str(tmp_path / "none")).version()


async def test_a_binary_that_fails_is_blocked(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(Blocked):
        await Binary(str(program)).version()


async def test_another_build_of_one_version_is_told_apart(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    _program(program, "8.2.1")
    binary = Binary(str(program))
    version, build = await binary.version(), await binary.build()
    assert await binary.build() == build
    program.write_text(program.read_text() + "# rebuilt\n")
    assert await binary.version() == version
    assert await binary.build() != build


def test_a_build_is_its_package_and_its_digest() -> None:
    text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003"
    assert build_of(text, "ab" * 32) == "Debian 1:10.0.2+ds-2, " + "ab" * 8
    assert build_of("QEMU emulator version 10.0.2\n", "ab" * 32) == "ab" * 8
