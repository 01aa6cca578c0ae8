"""Which memory may be left out when a guest is saved."""

import pytest

from controller.errors import Blocked, Retry
from controller.vmm.qemu.ramblocks import check, names

TITLE = (
    "              Block Name    PSize              Offset               Used              Total"
)
NEWER = TITLE + "                HVA  RO\n"
TAIL = "4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000"
ADDRESS = " 0x00007f699ffff000  rw"
OURS = ("ram0", "/rom@etc/acpi/tables", "pc.rom", "pc.bios", "/rom@etc/table-loader",
        "/rom@etc/acpi/rsdp")  # fmt: skip


def table(*names: str, older: bool = False) -> str:
    title, end = (TITLE + "\n", "") if older else (NEWER, ADDRESS)
    return title + "".join(f"{name:>24} {TAIL:>8}{end}\n" for name in names)


@pytest.mark.parametrize("older", [False, True])
def test_guest_ram_and_what_is_made_again_may_be_saved(older: bool) -> None:
    check(table(*OURS, older=older))
    assert names(table(*OURS, older=older)) == list(OURS)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("more", ["", "0000:00:03.0/vga.vram", "vga ram", "mem1", "ram0"])
def test_any_other_block_is_refused_by_name(more: str, older: bool) -> None:
    with pytest.raises(Blocked, match=more or "without a name") as caught:
        check(table(*OURS, more, older=older))
    assert caught.value.reason == "UnknownMemory"


def test_a_vmm_without_guest_ram_is_refused() -> None:
    with pytest.raises(Blocked, match="0 blocks ram0"):
        check(table(*OURS[1:]))


@pytest.mark.parametrize("text", ["", "\n", "no table", NEWER, NEWER + "ram0 what is this\n"])
def test_an_answer_that_is_no_list_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(Retry):
        check(text)
