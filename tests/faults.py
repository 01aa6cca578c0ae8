"""What may happen to the model world behind the agent's back, one function each.

Each takes a ``World`` and gives the world after it; where the fault cannot strike, the same world.
"""

from collections.abc import Callable
from dataclasses import replace

from controller.core.observed import ABSENT, Ending, Exit, ImageFailed, ImageReady
from controller.core.state import State
from tests.world import DIED, Mind, Temper, World, hear, shut_down

FACTS = ("record", "lock", "vmm", "guest", "image", "kernel", "overlay", "snapshot")
REBOOTED = Exit(None, "the guest rebooted", reboot=True)
HOST_REBOOTED = Exit(None, "the host was rebooted", reboot=True)


def _ends(world: World, truth: Exit) -> World:
    """Note for the model how the open run ended, unless it had ended or was told to."""
    record = world.record
    if record is None or not record.boot_ordered or world.ended or world.vmm is None:
        return world
    if world.kept is not None:  # its memory is safe
        return world
    if world.vmm.state is State.SHUTDOWN:  # it ended because it was told to
        return world
    return replace(world, ended=world.guest.exit or truth)


def _noted(world: World) -> bool:
    return world.record is not None and world.record.exit_noted


def _running(world: World) -> bool:
    return world.vmm is not None and world.vmm.state is State.RUNNING


def agent_dies(world: World) -> World:
    """All that it remembered is gone; everything else stays."""
    return replace(world, mind=Mind())


def vmm_dies(world: World) -> World:
    """kill -9 of the VMM."""
    world = replace(hear(_ends(world, DIED)), vmm=None)  # its pipes are read to their end
    # Only the VMM knew that its guest had rebooted.
    return replace(world, ended=DIED) if world.ended == REBOOTED and not _noted(world) else world


def host_reboots(world: World) -> World:
    """Boot time starts anew, the run directories (tmpfs) are empty, nothing lives."""
    world = replace(_ends(world, HOST_REBOOTED), vmm=None, last_words=None)
    world = replace(world, mind=Mind(), run_dirs=frozenset())
    witnessed = world.guest.exit or world.guest.panic or _noted(world)
    if world.ended and not witnessed:  # nobody can tell any more that it had ended before
        world = replace(world, ended=HOST_REBOOTED)
    if record := world.record:
        if record.waking or world.kept is not None:  # nothing has run that was not saved
            record = replace(record, retry_at=None, stop_ordered_at=None)
            return replace(world, record=record, now=20.0)
        record = replace(record, run_began_at=None, retry_at=None, stop_ordered_at=None)
        world = replace(world, record=replace(record, rebooted=record.boot_ordered))
    return replace(world, now=20.0)


def workload_exits(world: World, code: int = 3) -> World:
    """It says its exit code and powers off."""
    if not _running(world) or world.guest.exit:
        return world
    said = Exit(code, f"exited {code}")
    return shut_down(_ends(world, said), Ending.POWERED_OFF, said)


def workload_succeeds(world: World) -> World:
    """Exit code 0."""
    return workload_exits(world, 0)


def workload_exits_and_hangs(world: World) -> World:
    """It says its exit code; then the guest never powers off."""
    if not _running(world) or world.guest.exit:
        return world
    said = Exit(4, "exited 4")
    world = _ends(world, said)
    return replace(world, guest=replace(world.guest, exit=said), temper=Temper.DEAF)


def guest_reboots(world: World) -> World:
    """reboot(2) inside the guest."""
    if not _running(world) or world.guest.exit:
        return world
    return shut_down(_ends(world, REBOOTED), Ending.RESET, None)


def guest_panics(world: World) -> World:
    """The kernel's last words are on the console."""
    if not _running(world):
        return world
    world = shut_down(_ends(world, Exit(None, "kernel panic: oops")), Ending.PANICKED, None)
    return replace(world, guest=replace(world.guest, panic="oops"))


def paused_behind_us(world: World) -> World:
    """Somebody typed stop into the second monitor."""
    if world.vmm is None or not _running(world):
        return world
    return replace(world, vmm=replace(world.vmm, state=State.PAUSED))


def resumed_behind_us(world: World) -> World:
    """Somebody typed cont."""
    if world.vmm is None or world.vmm.state is not State.PAUSED:
        return world
    going = replace(world.vmm, state=State.RUNNING, storage_full=False)
    return replace(world, vmm=going, age=max(world.age, going.age))


def disk_fills(world: World) -> World:
    """A write of the guest found no space: the VMM holds it."""
    if world.vmm is None or not _running(world):
        return world
    return replace(world, vmm=replace(world.vmm, state=State.PAUSED, storage_full=True))


def guest_turns_deaf(world: World) -> World:
    """It ignores every request to shut down from now on."""
    return replace(world, temper=Temper.DEAF)


def guest_turns_silent(world: World) -> World:
    """It never says that its workload started."""
    return replace(world, temper=Temper.SILENT)


def image_goes(world: World) -> World:
    """The store lost it; it has to be pulled again."""
    return replace(world, store=ABSENT) if isinstance(world.store, ImageReady) else world


def pull_fails(world: World) -> World:
    """The registry does not answer for a while."""
    if isinstance(world.store, ImageReady):
        return world
    failed = ImageFailed("RegistryUnreachable", "no answer", False, world.now + 20)
    return replace(world, store=failed)


def kernel_changes(world: World) -> World:
    """Another kernel came to the node."""
    return replace(world, kernel="6.2")


def no_space(world: World) -> World:
    """A snapshot finds no room."""
    return replace(world, full=True)


def channel_is_deaf(world: World) -> World:
    """The guest does not answer on its channel."""
    return replace(world, deaf_channel=True)


def goes_blind(fact: str) -> Callable[[World], World]:
    """From now on this fact cannot be looked at."""

    def fault(world: World) -> World:
        return replace(world, blind=world.blind | {fact})

    fault.__name__ = f"{fact}_unknown"
    return fault


def heal(world: World) -> World:
    """Every fault that lasts is over; what has happened stays."""
    calm = replace(world, blind=frozenset(), temper=Temper.OBEYS)
    return replace(calm, full=False, deaf_channel=False)


FAULTS: tuple[Callable[[World], World], ...] = (
    agent_dies, vmm_dies, host_reboots, workload_exits, workload_succeeds,
    workload_exits_and_hangs, guest_reboots, guest_panics, paused_behind_us, resumed_behind_us,
    disk_fills, guest_turns_deaf, guest_turns_silent, image_goes, pull_fails, kernel_changes,
    no_space, channel_is_deaf,
    *map(goes_blind, FACTS),
)  # fmt: skip
