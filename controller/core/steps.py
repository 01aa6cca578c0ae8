"""The steps a plan can order, one frozen value for each effect on the host, and the plan itself.

Each is idempotent, safe to repeat and safe to abandon: a crash before, in or after it is mended by
looking again. Names are verb + noun. How a step is done lives in ``node.act``; when, in ``plan``.

Order matters in two operations (first line = first step); every one of them writes its intent into
the record before its effect, and the record is the last thing to go:

======== =============================================================================
provision CreateRecord, CreateOverlay, FinishProvision
boot      PinImage, PrepareRun (run += 1), StartVmm, OrderBoot, ResumeVmm
stop      OrderStop, [PowerDown + ResumeVmm when Paused], ShutDownGuest, KillVmm at the
          deadline, CloseRun
end       NoteExit, KillVmm (a VMM that has shut down), CloseRun
sleep     OrderSave, PauseVmm, SaveMemory (its commit is one rename), KillVmm, CloseRun
wake      PrepareWake (run += 1), StartVmm, LoadMemory, OrderWake (the snapshot is consumed),
          ResumeVmm, RepairGuest
discard   VoidSnapshot
fork      CreateRecord, TakeFork (its commit is the record), then as what it was forked from
release   WriteTombstone, stop, CloseRun, DestroyDisks, RemoveRecord, DropFinalizer
======== =============================================================================
"""

from dataclasses import dataclass

from controller.core.observed import Exit
from controller.core.state import State


@dataclass(frozen=True)
class Step:
    """One effect. Subclasses add the arguments the planner settled."""

    @property
    def name(self) -> str:
        """The step's name as it stands in plans, logs and crash points."""
        return type(self).__name__


class CreateRecord(Step):
    """Write the first record: index, epoch, frozen hardware."""


class FetchImage(Step):
    """See that the image is being pulled. Returns at once; the store tells when it is there."""


class PinImage(Step):
    """Write the digest of the pulled image into the record."""


class CreateOverlay(Step):
    """Make the writable disk: a sparse file with an empty filesystem."""


class FinishProvision(Step):
    """Note in the record that nothing is left of provision."""


class PrepareRun(Step):
    """Count the run in the record, then make run directory and config disk for it."""


class StartVmm(Step):
    """Take the run lock and spawn the VMM, stopped before its first instruction."""


class OrderBoot(Step):
    """Note in the record that the virtual CPUs are about to be let go for the first time."""


class ResumeVmm(Step):
    """Let the virtual CPUs run: the boot of a Created guest, the continuation of a Paused one."""


class PauseVmm(Step):
    """Stop the virtual CPUs."""


class OrderStop(Step):
    """Note in the record that the stop which follows is ours, and when it was ordered."""


class PowerDown(Step):
    """Press the guest's power button through the VMM (works on a paused guest)."""


@dataclass(frozen=True)
class ShutDownGuest(Step):
    """Ask the guest's init to end its workload, with ``grace`` seconds before it kills it.

    Over the agent channel; a guest that does not answer there gets the power button.
    """

    grace: int


class KillVmm(Step):
    """Kill the VMM process through its pidfd and wait until its run lock is free."""


@dataclass(frozen=True)
class NoteExit(Step):
    """Write into the record how the run ended by itself, before its last witness is killed."""

    exit: Exit
    exited: bool  # restartPolicy does not restart it
    restarts: int  # runs in a row that ended by themselves, this one included
    delay: float  # seconds before it may be started again


class CloseRun(Step):
    """The VMM is proven dead: give back what only this run used, note when it stopped."""


class ClearExit(Step):
    """Stopped was observed: forget that policy held the Instance, and its back-off."""


class ReleaseReservation(Step):
    """Note in the record that this reservation is given back; nothing starts on it again."""


class AdoptEpoch(Step):
    """Take over a higher epoch into the record; only while no VMM lives."""


class WriteTombstone(Step):
    """Note in the record that the Instance is to go. One-way."""


class DestroyDisks(Step):
    """Remove disks, logs and snapshots; note in the record that they are gone."""


class RemoveRecord(Step):
    """Remove the record and its directory: the last trace on this host."""


class DropFinalizer(Step):
    """Let the API server finish the deletion."""


class OrderSave(Step):
    """See that there is space, note in the record that a save begins, close the agent channel."""


class CancelSave(Step):
    """Forget a save that was begun and is not wanted any more; open the agent channel again."""


class SaveMemory(Step):
    """Write device state and changed pages, sync them and the disk, commit the snapshot.

    A failure before the commit lets the guest go on that ran before.
    """


class VoidSnapshot(Step):
    """Give the snapshot up: raise the disk generation in the record, then remove the manifest."""


class PrepareWake(Step):
    """Count the run in the record, then make its directories; the disks stay as they are."""


class LoadMemory(Step):
    """Put the changed pages into the VMM that waits for them, then load the device state."""


class OrderWake(Step):
    """Note in the record that the memory is used now; by that the snapshot is consumed."""


class RepairGuest(Step):
    """Step the guest's clock, reseed its kernel, tell it who it is; each acknowledged."""


class TakeFork(Step):
    """Take disk, and memory where there is some, from the source; the record makes it so."""


@dataclass(frozen=True)
class Waiting:
    """Why nothing more can be done now. ``stalled``: not before somebody changes something."""

    reason: str
    message: str
    stalled: bool = False


@dataclass(frozen=True)
class Plan:
    """The ordered steps from ``origin`` towards ``target``, with one sentence saying why."""

    origin: State
    target: State
    way: tuple[State, ...]
    steps: tuple[Step, ...]
    because: str
    waiting: Waiting | None = None
    wake_at: float | None = None  # boot time at which to look again, if nothing happens before

    @property
    def settled(self) -> bool:
        """Nothing to do and nothing to wait for: actual matches desired."""
        return not self.steps and self.waiting is None and self.origin is self.target

    @property
    def sentence(self) -> str:
        """What this pass decided, for the log, the condition and the Event alike."""
        if self.waiting is not None:
            return self.waiting.message
        if self.steps:
            return f"{self.because}: {', '.join(step.name for step in self.steps)}"
        return self.because
