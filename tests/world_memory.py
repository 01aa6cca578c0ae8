"""What the steps of sleep, wake and fork do to the model world, and what no plan may ever break.

A guest's memory is one number here: how far it has come (``Live.age``). The disk knows how far the
guest had come when it last ran (``World.age``). Whoever runs with a memory that is younger than its
disk has gone back in time: that is asserted wherever the virtual CPUs are let go.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from controller.core import steps as s
from controller.core.desired import Desired, Permit
from controller.core.observed import Snapshot, Source
from controller.core.state import State

SNAPSHOT = Snapshot("t", 2**20, 0, 2**18, "qemu 10.0.2")


def resumes(world: Any) -> None:
    """The virtual CPUs are about to be let go: no memory is used twice, none is promised."""
    live = world.vmm
    assert world.kept is None, "a guest runs while its memory is promised on disk"
    assert not live.waits, "a VMM without its memory is let go"
    assert live.age >= world.age, f"a guest goes back from {world.age} to {live.age}"


def _order_save(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    _alive(world)
    if world.full:
        raise _refused()
    return (_save(world, saving=True),)


def _cancel_save(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    return (_save(world, saving=False),)


def _save_memory(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    if world.vmm is None or world.vmm.state is not State.PAUSED:
        raise _refused()
    assert world.kept is None, "a snapshot is overwritten"
    assert world.record.saving, "a save that was not noted"
    if world.full:
        raise _refused()
    return (replace(world, kept=world.vmm.age),)


def _void_snapshot(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    assert world.kept is not None
    return (replace(world, kept=None),)


def _prepare_wake(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    assert world.vmm is None
    assert world.kept is not None, "a wake without a snapshot"
    assert not world.record.run_open, "a run is prepared while another is open"
    record = world.record
    counted = replace(
        _save(
            world, run=record.run + 1, run_open=True, run_prepared=False, boot_ordered=False,
            vmm_noted=False, run_began_at=None, rebooted=False, exit_noted=False,
            stop_ordered=False, stop_ordered_at=None, waking=True, woken=False, repaired=False,
            saving=False,
        ),
        ended=None,
        guest=replace(world.guest, exit=None, panic=None),
    )  # fmt: skip
    made = replace(counted, run_dirs=counted.run_dirs | {(record.epoch, record.run + 1)})
    return (counted, made, _save(made, run_prepared=True))


def _load_memory(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    if world.vmm is None or world.vmm.state is not State.CREATED:
        raise _refused()
    assert world.record.waking
    assert world.record.vmm_noted
    assert world.kept is not None
    full = replace(world.vmm, state=State.PAUSED, age=world.kept, waits=False)
    return (replace(world, vmm=full),)


def _order_wake(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    """One durable write: the snapshot is used up, and the run has begun."""
    assert world.record.waking
    used = _save(
        world, waking=False, woken=True, boot_ordered=True, run_began_at=world.now, exit=None
    )
    return (replace(used, kept=None),)


def _repair_guest(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    if world.vmm is None or world.vmm.state is not State.RUNNING or world.deaf_channel:
        raise _refused()
    return (_save(world, repaired=True),)


def _take_fork(world: Any, wish: Desired, step: s.Step) -> tuple[Any, ...]:
    source = world.source
    if not isinstance(source, Source):
        raise _refused()
    assert not world.record.provisioned, "a fork is made twice"
    inherits = source.state is not State.STOPPED
    half = replace(world, overlay=True)
    made = replace(_save(half, provisioned=True, forked_at="t"), age=5)
    return (half, replace(made, kept=5 if inherits else None))


def start_waking(world: Any, wish: Desired) -> None:
    """Before a VMM is started to receive a snapshot."""
    assert world.kept is not None, "a VMM is started for a snapshot that is gone"
    assert wish.permit is Permit.GRANTED


def _alive(world: Any) -> None:
    if world.vmm is None or world.vmm.state not in (State.RUNNING, State.PAUSED):
        raise _refused()


def _save(world: Any, **changes: Any) -> Any:
    return replace(world, record=replace(world.record, **changes))


def _refused() -> Exception:
    from tests.world import Refused  # the world is made of this module

    return Refused()


MEMORY: dict[type[s.Step], Callable[[Any, Desired, s.Step], tuple[Any, ...]]] = {
    s.OrderSave: _order_save,
    s.CancelSave: _cancel_save,
    s.SaveMemory: _save_memory,
    s.VoidSnapshot: _void_snapshot,
    s.PrepareWake: _prepare_wake,
    s.LoadMemory: _load_memory,
    s.OrderWake: _order_wake,
    s.RepairGuest: _repair_guest,
    s.TakeFork: _take_fork,
}
