"""What happens to a source between the plan of a fork and the source's turn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.core.desired import Desired, Fork, Hardware, Mode, Workload
from controller.core.observed import Exit, Guest, Observed
from controller.errors import Retry
from controller.node import forking
from controller.node.parts import Memory
from controller.node.record import HardwareRecord, Record, Records
from tests.values import a_run, seen_running

SOURCE, FORK = (f"6f1b9a2e-0000-4000-8000-00000000000{n}" for n in (1, 2))
PLAIN = Desired(
    FORK, "ns", "second", 1, Mode.RUNNING, 1, "", Hardware("qemu", 1, 1, 1),
    fork=Fork(SOURCE, SOURCE, 1, from_running=True),
)  # fmt: skip
GIVEN = Workload(env=(("A", "1"),))


def record_of(uid: str, name: str, *, provisioned: bool) -> Record:
    hardware = HardwareRecord(
        hypervisor="qemu", vcpus=1, memory=1, overlay=1, disk_bandwidth=0, threads_per_core=1
    )
    return Record(
        uid=uid, namespace="ns", name=name, id=name, install_id="i", epoch=1, index=0,
        image="a/b:1", hardware=hardware, provisioned=provisioned,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "look", "reason"),
    [
        (PLAIN, seen_running(record=a_run(stop_ordered=True)), "SourceNotReady"),
        (PLAIN, seen_running(guest=Guest(True, Exit(0, "exited 0"))), "SourceNotReady"),
        (PLAIN, seen_running(guest=Guest()), "SourceNotReady"),
        (replace(PLAIN, workload=GIVEN), seen_running(), "WorkloadInherited"),
        (replace(PLAIN, fork=Fork(SOURCE, SOURCE, 1)), seen_running(), "SourceRunning"),
    ],
)
async def test_source_that_moved_on_since_the_plan_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Desired, look: Observed, reason: str
) -> None:
    async def found(*_: Any) -> Observed:
        return look

    monkeypatch.setattr(forking, "observe", found)
    parts: Any = SimpleNamespace(
        records=Records(tmp_path), memory=Memory(), asked=lambda _uid: None
    )
    parts.records.save(record_of(SOURCE, "first", provisioned=True))
    parts.records.save(record_of(FORK, "second", provisioned=False))
    with pytest.raises(Retry) as caught:
        await forking.take(parts, wish)
    assert caught.value.reason == reason
    assert not parts.memory.forks[SOURCE]
