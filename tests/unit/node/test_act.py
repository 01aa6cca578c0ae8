"""A step that the host refuses is a failed step, told like any other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.core.desired import Desired, Hardware, Mode
from controller.core.steps import CreateRecord
from controller.errors import Retry
from controller.node.act import act
from controller.node.record import Records


async def test_disk_that_refuses_a_new_directory_is_told_with_its_path() -> None:
    nowhere = Path("/proc/self/nothing-can-be-made-here")
    parts: Any = SimpleNamespace(
        records=Records(nowhere),
        settings=SimpleNamespace(install_id="i", uid_count=9),
        threads_per_core=1,
    )
    uid = "6f1b9a2e-0000-4000-8000-000000000001"
    wish = Desired(uid, "ns", "web", 1, Mode.RUNNING, 1, "a/b:1", Hardware("qemu", 1, 1, 1))
    with pytest.raises(Retry, match="CreateRecord at /proc/self/nothing") as caught:
        await act(parts, wish, {"metadata": {}}, CreateRecord())
    assert caught.value.reason == "IOError"
