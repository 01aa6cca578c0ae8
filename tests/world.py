"""A model of one host and one Instance on it: pure values, for tests of the decisions.

``World`` is what is true; ``look`` is what the agent can see of it (as ``node.observe`` does),
``effects`` what a step does to it, one durable effect after the other (as ``node.act`` does), so
that a crash may fall between any two. ``breathe`` is what goes on by itself. Rules that no plan may
ever break are asserted where the effect happens. Faults are in ``tests/faults.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from controller.core import steps as s
from controller.core.desired import Desired, Mode, Permit
from controller.core.exits import restarts
from controller.core.observed import (
    ABSENT,
    Absent,
    Ending,
    Exit,
    Guest,
    ImageFact,
    ImageFailed,
    ImagePulling,
    ImageReady,
    Lock,
    Observed,
    Recorded,
    Source,
    Unknown,
    Vmm,
)
from controller.core.state import State
from tests.values import DIGEST, a_record, a_vmm
from tests.world_memory import MEMORY, SNAPSHOT, resumes, start_waking

DIED = Exit(None, "the VMM died")


class Temper(Enum):
    """How the guest takes what it is told."""

    OBEYS = "Obeys"
    DEAF = "Deaf"  # ignores every request to shut down
    SILENT = "Silent"  # never says that its workload started


@dataclass(frozen=True)
class Live:
    """A VMM process."""

    state: State = State.CREATED
    ending: Ending | None = None
    storage_full: bool = False
    asked: bool = False  # the guest heard that it is to shut down
    pressed: bool = False  # the button was pressed while it was paused
    age: int = 0  # how far the guest has come, which only its memory knows
    waits: bool = False  # for a memory that lies on disk


@dataclass(frozen=True)
class Mind:
    """What the agent forgets when it dies."""

    fetching: bool = False
    stopping: bool = False


@dataclass(frozen=True)
class World:
    """Everything that is true on one host about one Instance."""

    record: Recorded | None = None
    overlay: bool = False
    vmm: Live | None = None
    guest: Guest = field(default_factory=Guest)  # the reports and console of the open run
    last_words: Exit | None = None  # said, and not yet written down
    store: ImageFact = ABSENT
    kernel: str | Absent = "6.1"
    mind: Mind = Mind()
    temper: Temper = Temper.OBEYS
    now: float = 100.0  # boot time
    blind: frozenset[str] = frozenset()  # facts that cannot be looked at now
    finalizer: bool = True
    run_dirs: frozenset[tuple[int, int]] = frozenset()
    # what only the model knows
    ended: Exit | None = None  # how the open run truly ended by itself
    held: bool = False  # restartPolicy left it so, and Stopped was not asked for since
    given_back: frozenset[str] = field(default_factory=frozenset)
    kept: int | None = None  # the age of the memory in the committed snapshot; None: there is none
    age: int = 0  # how far the guest had come when it last ran, as its disk shows
    full: bool = False  # no space for a snapshot
    deaf_channel: bool = False  # the guest does not answer on its channel
    source: Source | Absent = ABSENT


class Refused(Exception):
    """The step could not be done now; nothing happened."""


# --- looking --------------------------------------------------------------------------------------


def look(world: World, wish: Desired) -> Observed:
    """What one look finds, unknown where it is blind."""
    lock = Lock.HELD if world.vmm else Lock.FREE
    if "lock" in world.blind:
        lock = Lock.UNKNOWN
    image = _or_unknown(world, "image", _image(world, wish))
    kernel = _or_unknown(world, "kernel", world.kernel)
    if "record" in world.blind or world.record is None:
        record = _or_unknown(world, "record", ABSENT)
        return Observed(
            record, lock, ABSENT, ABSENT, image, kernel, overlay=False, source=world.source
        )
    return Observed(
        record=world.record,
        lock=lock,
        vmm=_or_unknown(world, "vmm", _vmm(world)) if lock is Lock.HELD else ABSENT,
        guest=_or_unknown(world, "guest", _guest(world)) if world.record.run_open else ABSENT,
        image=image,
        kernel=kernel,
        overlay=_or_unknown(world, "overlay", world.overlay),
        snapshot=_or_unknown(world, "snapshot", ABSENT if world.kept is None else SNAPSHOT),
        stopping=world.mind.stopping,
        source=world.source,
    )


def ageless(world: World) -> World:
    """The same with ages counted from the disk's: how far a guest came is no change to wait for."""
    vmm = replace(world.vmm, age=world.vmm.age - world.age) if world.vmm else None
    kept = None if world.kept is None else world.kept - world.age
    return replace(world, vmm=vmm, kept=kept, age=0)


def _or_unknown(world: World, fact: str, value: Any) -> Any:
    return Unknown(f"the {fact} cannot be read") if fact in world.blind else value


def _vmm(world: World) -> Vmm:
    assert world.vmm is not None
    live = world.vmm
    return a_vmm(live.state, ending=live.ending, storage_full=live.storage_full)


def _guest(world: World) -> Guest:
    record = _rec(world)
    started = world.guest.started or record.waking or record.woken
    return replace(world.guest, started=started, unheard=world.last_words is not None)


def _image(world: World, wish: Desired) -> ImageFact:
    pinned = (world.record.image_digest if world.record else None) or wish.pinned
    if isinstance(world.store, ImageReady) and (pinned or world.mind.fetching):
        return world.store
    return world.store if world.mind.fetching else ABSENT


# --- what goes on by itself -----------------------------------------------------------------------


def breathe(world: World, seconds: float = 1.0) -> World:
    """What happens while the agent waits: pulls end, guests boot, shut down, get space again."""
    world = replace(hear(world), now=world.now + seconds)
    if isinstance(world.store, ImagePulling):
        world = replace(world, store=ImageReady(DIGEST))
    store = world.store
    if isinstance(store, ImageFailed) and world.mind.fetching and world.now >= store.retry_at:
        world = replace(world, store=ImagePulling("0 %"))
    live = world.vmm
    if live is None:
        return world
    if live.storage_full:
        return replace(world, vmm=replace(live, storage_full=False))
    if live.state is not State.RUNNING:
        return world
    if seconds:
        world = replace(world, vmm=replace(live, age=live.age + 1), age=live.age + 1)
        live = replace(live, age=live.age + 1)
    if live.asked and world.temper is not Temper.DEAF:
        return shut_down(world, Ending.POWERED_OFF, Exit(143, "killed by signal 15"))
    if not world.guest.started and world.guest.exit is None and world.temper is not Temper.SILENT:
        return replace(world, guest=replace(world.guest, started=True))
    return world


def shut_down(world: World, ending: Ending, report: Exit | None) -> World:
    """The guest comes to its end; the VMM stays as a witness."""
    said = None if world.guest.exit else report
    return replace(world, vmm=Live(State.SHUTDOWN, ending), last_words=said)


def hear(world: World) -> World:
    """The log keeper has written down what the guest said last."""
    if world.last_words is None:
        return world
    guest = replace(world.guest, exit=world.last_words)
    return replace(world, guest=guest, last_words=None)


# --- acting ---------------------------------------------------------------------------------------


def effects(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    """The worlds after each durable effect of ``step``, in order. Raises Refused."""
    return _DO[type(step)](world, wish, step)


def _rec(world: World) -> Recorded:
    assert world.record is not None, "a step needs a record"
    return world.record


def _save(world: World, **changes: Any) -> World:
    return replace(world, record=replace(_rec(world), **changes))


def _live(world: World, *states: State) -> Live:
    if world.vmm is None or world.vmm.state not in states:
        raise Refused
    return world.vmm


def _no_vmm(world: World, step: s.Step) -> None:
    assert world.vmm is None, f"{step.name} while a VMM lives"


def _create_record(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    assert world.record is None, "a record is overwritten"
    record = a_record(epoch=wish.epoch, provisioned=False, image_digest=wish.pinned)
    if wish.fork is not None:
        record = replace(record, image_digest=DIGEST)
    return (replace(world, record=record),)


def _create_overlay(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    return (replace(world, overlay=True),)


def _finish_provision(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    return (_save(world, provisioned=True),)


def _fetch_image(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    world = replace(world, mind=replace(world.mind, fetching=True))
    idle = isinstance(world.store, Absent) or (
        isinstance(world.store, ImageFailed) and world.now >= world.store.retry_at
    )
    return (replace(world, store=ImagePulling("0 %")) if idle else world,)


def _pin_image(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    if not isinstance(world.store, ImageReady):
        raise Refused
    return (
        replace(
            _save(world, image_digest=DIGEST),
            mind=replace(world.mind, fetching=False),
        ),
    )


def _prepare_run(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert not _rec(world).run_open, "a run is prepared while another is open"
    assert world.kept is None, "a cold boot over a committed snapshot"
    if not isinstance(world.store, ImageReady) or isinstance(world.kernel, Absent):
        raise Refused
    record = _rec(world)
    counted = replace(
        _save(
            world, run=record.run + 1, run_open=True, run_prepared=False, boot_ordered=False,
            vmm_noted=False, run_began_at=None, rebooted=False, exit_noted=False,
            stop_ordered=False,
            stop_ordered_at=None, waking=False, woken=False, repaired=False, saving=False,
            workload=wish.workload, kernel_version=world.kernel,
            kernel_digest="d",
        ),
        guest=Guest(),
        ended=None,
    )  # fmt: skip
    run_dirs = counted.run_dirs | {(record.epoch, record.run + 1)}
    made = replace(counted, run_dirs=run_dirs)
    return (counted, made, _save(made, run_prepared=True))


def _start_vmm(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert wish.permit is Permit.GRANTED, "a start without permission"
    assert wish.reservation not in world.given_back, "a start on a released reservation"
    assert not world.held, "a start though restartPolicy left it ended"
    assert world.overlay, "a start without its disk"
    starting = _save(world, run_prepared=False)
    record = _rec(world)
    other_kernel = record.kernel_version != world.kernel and not record.waking
    if (record.epoch, record.run) not in world.run_dirs or other_kernel:
        raise Stopped(starting)  # the host was rebooted, or the kernel changed, in between
    if record.waking:
        start_waking(world, wish)
    spawned = replace(starting, vmm=Live(age=world.age, waits=record.waking))
    return (starting, spawned, _save(spawned, vmm_noted=True))


class Stopped(Refused):
    """The step failed after a part of it was done."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world


def _order_boot(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    return (_save(world, boot_ordered=True, run_began_at=world.now, started_at="t", exit=None),)


def _resume_vmm(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    live = _live(world, State.CREATED, State.PAUSED, State.RUNNING)
    assert _rec(world).vmm_noted, "a VMM runs that the record does not name"
    if live.state is not State.RUNNING:
        resumes(world)
    going = replace(live, state=State.RUNNING, asked=live.asked or live.pressed, pressed=False)
    return (replace(world, vmm=going),)


def _pause_vmm(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    live = _live(world, State.RUNNING, State.PAUSED)
    return (replace(world, vmm=replace(live, state=State.PAUSED)),)


def _order_stop(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    assert _rec(world).run_open
    return (_save(world, stop_ordered=True, stop_ordered_at=world.now),)


def _power_down(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    live = _live(world, State.PAUSED, State.RUNNING)
    told = replace(world, vmm=replace(live, pressed=True))
    return (told, replace(told, mind=replace(told.mind, stopping=True)))


def _shut_down_guest(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    live = _live(world, State.RUNNING)
    told = replace(world, vmm=replace(live, asked=True))
    return (told, replace(told, mind=replace(told.mind, stopping=True)))


def _kill_vmm(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    return (replace(hear(world), vmm=None),)


def _note_exit(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    assert isinstance(step, s.NoteExit)
    truth = world.ended
    assert truth is not None, f"{step.exit} is noted of a run that did not end by itself"
    assert truth.reboot == step.exit.reboot, f"{step.exit} is noted of {truth}"
    held = not restarts(wish.restart, truth)
    assert step.exited == held, f"restartPolicy {wish.restart.value} is misread for {truth}"
    world = replace(world, held=held)
    noted = None if step.exit.reboot else replace(step.exit)
    retry = world.now + step.delay if step.delay else None
    return (
        _save(
            world, exit_noted=True, exit=noted, exited=step.exited, restarts=step.restarts,
            retry_at=retry,
        ),
    )  # fmt: skip


def _close_run(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    record = _rec(world)
    truthful(world, record)
    cleared = replace(
        world,
        mind=replace(world.mind, stopping=False),
        run_dirs=world.run_dirs - {(record.epoch, record.run)},
    )
    closed = _save(
        cleared, run_open=False, run_prepared=False, boot_ordered=False, run_began_at=None,
        vmm_noted=True, rebooted=False, exit_noted=False, stop_ordered=False,
        stop_ordered_at=None, stopped_at="t", waking=False, woken=False, repaired=False,
        saving=False,
    )  # fmt: skip
    return (cleared, replace(closed, ended=None))


def truthful(world: World, record: Recorded) -> None:
    """The record tells of the run's end what truly happened."""
    if not record.boot_ordered or record.tombstone or world.kept is not None:
        return
    truth = world.ended
    if record.stop_ordered and not record.exit_noted:
        assert record.exit is None, "an ordered stop left an exit"
    elif truth is None or truth.reboot:
        assert record.exit is None, f"an exit was made up: {record.exit}"
        assert not record.exited or world.held
    else:
        assert record.exit is not None, f"the exit was lost: {truth}"
        assert record.exit.code == truth.code, f"{record.exit} is said of {truth}"


def _clear_exit(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    assert wish.mode is Mode.STOPPED
    return (_save(world, exited=False, restarts=0, retry_at=None),)


def _release_reservation(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert wish.reservation is not None
    released = _save(world, released=wish.reservation)
    return (replace(released, given_back=world.given_back | {wish.reservation}),)


def _adopt_epoch(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert wish.epoch > _rec(world).epoch, "the epoch goes back"
    return (_save(world, epoch=wish.epoch),)


def _write_tombstone(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    assert wish.mode is Mode.GONE, "a tombstone for what is to stay"
    return (_save(world, tombstone=True),)


def _destroy_disks(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert _rec(world).tombstone, "disks are destroyed without a tombstone"
    gone = replace(world, overlay=False, kept=None)
    return (gone, _save(gone, provisioned=False))


def _remove_record(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert _rec(world).tombstone, "a record is removed without a tombstone"
    assert not _rec(world).run_open or not world.run_dirs
    return (replace(world, record=None, overlay=False, kept=None, mind=Mind()),)


def _drop_finalizer(world: World, wish: Desired, step: s.Step) -> tuple[World, ...]:
    _no_vmm(world, step)
    assert wish.mode is Mode.GONE
    assert world.record is None, "the object goes before its record"
    assert not world.overlay, "the object goes before its disk"
    assert not world.run_dirs, f"run directories are left: {world.run_dirs}"
    return (replace(world, finalizer=False),)


_DO: dict[type[s.Step], Callable[[World, Desired, s.Step], tuple[World, ...]]] = {
    s.CreateRecord: _create_record,
    s.CreateOverlay: _create_overlay,
    **MEMORY,
    s.FinishProvision: _finish_provision,
    s.FetchImage: _fetch_image,
    s.PinImage: _pin_image,
    s.PrepareRun: _prepare_run,
    s.StartVmm: _start_vmm,
    s.OrderBoot: _order_boot,
    s.ResumeVmm: _resume_vmm,
    s.PauseVmm: _pause_vmm,
    s.OrderStop: _order_stop,
    s.PowerDown: _power_down,
    s.ShutDownGuest: _shut_down_guest,
    s.KillVmm: _kill_vmm,
    s.NoteExit: _note_exit,
    s.CloseRun: _close_run,
    s.ClearExit: _clear_exit,
    s.ReleaseReservation: _release_reservation,
    s.AdoptEpoch: _adopt_epoch,
    s.WriteTombstone: _write_tombstone,
    s.DestroyDisks: _destroy_disks,
    s.RemoveRecord: _remove_record,
    s.DropFinalizer: _drop_finalizer,
}
