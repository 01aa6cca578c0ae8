"""Which memory a QEMU has: only what we know can be saved, or made again alike. Pure.

Saving takes guest RAM and the state of devices. The contents of every other block are lost, so each
must be one that a new process of the same binary and arguments makes again: firmware, and what it
hands to the guest at boot. A block that somebody added by hand, or that a device brought along
which we do not know (video memory), would come back empty and the guest would break much later.
"""

import re

from controller.errors import Blocked, Retry

GUEST_RAM = "ram0"
_KNOWN = frozenset(
    {
        GUEST_RAM,
        "pc.bios",
        "pc.rom",
        "/rom@etc/acpi/tables",
        "/rom@etc/acpi/rsdp",
        "/rom@etc/table-loader",
    }
)
_TITLE = "Block Name"
# Name (there may be none), page size, offset, used, total; newer ones add address and access.
_BLOCK = re.compile(
    r"^\s*(?P<name>.*?)\s*\b\d+(\.\d+)? ([KMGTPE]i)?B"
    r"\s+0x[0-9a-f]+\s+0x[0-9a-f]+\s+0x[0-9a-f]+(\s+0x[0-9a-f]+\s+r[ow])?\s*$"
)


def check(text: str) -> None:
    """Raise Blocked (UnknownMemory) unless the blocks in ``x-query-ramblock`` are those we know.

    Raises Retry for text that is no such answer.
    """
    found = names(text)
    unknown = sorted({name or "a block without a name" for name in found} - _KNOWN)
    if unknown or found.count(GUEST_RAM) != 1:
        what = ", ".join(unknown[:8]) or f"{found.count(GUEST_RAM)} blocks {GUEST_RAM}"
        raise Blocked(
            f"the VMM has memory that would not be saved: {what}; stop the Instance and start it"
            " again, and add no device by hand",
            reason="UnknownMemory",
        )


def names(text: str) -> list[str]:
    """The name of each block, "" for none. Raises Retry for text that is no such table."""
    title, *lines = text.splitlines() or [""]
    found = [_BLOCK.match(line) for line in lines if line.strip()]
    if _TITLE not in title or not found or None in found:
        raise Retry(
            "the VMM lists its memory in a way that this version cannot read: upgrade",
            reason="VmmSpeaksOtherwise",
        )
    return [match["name"] for match in found if match]
