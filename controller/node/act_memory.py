"""The steps of sleep, wake and fork, and the Events that tell of them. See ``act`` for the rules.

What does not live here: what the steps are made of (``sleeping``, ``waking``, ``forking``).
"""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from controller.core.desired import Desired
from controller.core.steps import (
    CancelSave,
    LoadMemory,
    OrderSave,
    OrderWake,
    PrepareWake,
    RepairGuest,
    SaveMemory,
    Step,
    TakeFork,
    VoidSnapshot,
)
from controller.errors import Bug, TorporError
from controller.node import clock, forking, sleeping, snapshots, tell, waking
from controller.node.acting import record_of, vmm_of
from controller.node.parts import Parts
from controller.node.sleeping import Living


def _living(parts: Parts, desired: Desired) -> Living:
    record, driver, handle = vmm_of(parts, desired)
    if record.open is None:
        raise Bug(f"instance {record.uid}: a step needs an open run, and there is none")
    return Living(record, record.open, driver, handle)


async def _order_save(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    await sleeping.order(parts, _living(parts, desired))
    tell.about(parts.events, obj, "SnapshotStarted", "saving its memory")


async def _cancel_save(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    sleeping.cancel(parts, record_of(parts, desired))


async def _save_memory(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    try:
        manifest = await sleeping.save(parts, _living(parts, desired))
    except TorporError as err:
        tell.about(parts.events, obj, "SnapshotFailed", str(err), warning=True)
        raise
    tell.about(parts.events, obj, "SnapshotSucceeded", tell.saved(manifest))


async def _void_snapshot(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    snapshots.give_up(parts, record_of(parts, desired))
    tell.about(parts.events, obj, "SnapshotDiscarded", "its saved memory is given up")


async def _prepare_wake(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    tell.about(parts.events, obj, "Restoring", "waking it from its snapshot")
    await waking.prepare(parts, record_of(parts, desired))


async def _load_memory(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record, driver, handle = vmm_of(parts, desired)
    await waking.load(parts, record, driver, handle)


async def _order_wake(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record, driver, handle = vmm_of(parts, desired)
    if record.open is None:
        raise Bug(f"instance {record.uid}: a wake without an open run")
    await driver.state(handle)  # raises for one that died since the look: it has used nothing
    run = record.open.model_copy(update={"boot_ordered": clock.moment()})
    snapshots.give_up(parts, record, open=run, exit=None, stopped_at=None)


async def _repair_guest(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    record = await waking.repair(parts, record_of(parts, desired))
    tell.about(parts.events, obj, "Restored", "it goes on where it was")
    fork = record.lineage is not None and record.lineage.parent is not None
    if fork and record.open is not None and record.open.wakes == forking.GENERATION:
        message = "the guest has acknowledged its own name, machine id, clock and entropy"
        tell.about(parts.events, obj, "IdentityRepaired", message)


async def _take_fork(parts: Parts, desired: Desired, obj: Any, step: Step) -> None:
    message = "taking what its source has: its disk, and its memory where it sleeps or runs"
    tell.about(parts.events, obj, "ForkStarted", message)
    cost = await forking.take(parts, desired)
    tell.about(parts.events, obj, "Forked", tell.fork(**dataclasses.asdict(cost)))


MEMORY_STEPS: Mapping[
    type[Step], Callable[[Parts, Desired, dict[str, Any], Any], Awaitable[None]]
] = {
    OrderSave: _order_save,
    CancelSave: _cancel_save,
    SaveMemory: _save_memory,
    VoidSnapshot: _void_snapshot,
    PrepareWake: _prepare_wake,
    LoadMemory: _load_memory,
    OrderWake: _order_wake,
    RepairGuest: _repair_guest,
    TakeFork: _take_fork,
}
