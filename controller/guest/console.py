"""What the guest's kernel console tells about an end: the second witness, bytes of the guest.

Only a kernel panic is read from it, and only when the VMM says there was one or is gone without a
word. Workload output never reaches this console; a root process in the guest may still write to it,
so nothing here outweighs the guest's own report.
"""

import re
from pathlib import Path

_TAIL = 64 * 1024
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")


def last_panic(console: Path) -> str | None:
    """The last panic's message in the file's last 64 KiB, printable ASCII; None without one."""
    try:
        with console.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            found = _PANIC.findall(file.read(_TAIL))
    except FileNotFoundError:
        return None
    if not found:
        return None
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in found[-1]).strip()
