"""What is in the way of a save, said before the guest is disturbed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.errors import Blocked
from controller.memory.manifest import Role, Seen, StoredFile
from controller.memory.store import MemoryStore, References
from controller.node.record import RunRecord
from controller.node.sleeping import check_space, mapped


async def test_guest_whose_image_is_gone_is_not_saved_and_says_what_helps(tmp_path: Path) -> None:
    parts: Any = SimpleNamespace(snapshots=MemoryStore(tmp_path, lambda: References(())))
    seen = Seen(size=1, inode=1, mtime=1, ctime=1, mode=0o440)
    base = StoredFile(role=Role.BASE, gid=7, digest="a" * 64, seen=seen, on_disk=1)
    vmm: Any = SimpleNamespace(
        record=SimpleNamespace(hardware=SimpleNamespace(memory=4096)), run=RunRecord(base=base)
    )
    with pytest.raises(Blocked, match="operatingMode: Stopped") as caught:
        await check_space(parts, vmm)
    assert caught.value.reason == "BaseMissing"
    image = parts.snapshots.path(base)
    image.parent.mkdir()
    image.touch()
    assert mapped(parts, RunRecord(base=base)) == image
