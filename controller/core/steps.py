"""The steps a plan can order: one frozen value for each effect on the host.

Each is idempotent, safe to repeat and safe to abandon: a crash before, in or after it is mended by
looking again. Names are verb + noun. How a step is done lives in ``node.act``; when, in ``plan``.

Order matters in two operations (first line = first step); every one of them writes its intent into
the record before its effect, and the record is the last thing to go:

======== =============================================================================
provision CreateRecord, FetchImage, CreateOverlay, FinishProvision
boot      PrepareRun (run += 1, durable), StartVmm, ResumeVmm
stop      OrderStop (durable), [PowerDown + ResumeVmm when Paused], ShutDownGuest,
          KillVmm at the deadline, CloseRun
release   WriteTombstone, stop, CloseRun, DestroyDisks, RemoveRecord, DropFinalizer
======== =============================================================================
"""

from dataclasses import dataclass


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
    """Ask the guest's init to end its workload, with ``grace`` seconds before it kills it."""

    grace: int


class KillVmm(Step):
    """Kill the VMM process through its pidfd and wait until its run lock is free."""


class CloseRun(Step):
    """The VMM is proven dead: note how the run ended, give back what only it used."""


class ClearExit(Step):
    """Stopped was observed: forget that policy held the Instance, and its failures."""


class ReleaseReservation(Step):
    """Note in the record that this reservation is given back; nothing starts on it again."""


class AdoptEpoch(Step):
    """Take over a higher epoch into the record; only while no VMM lives."""


class WriteTombstone(Step):
    """Note in the record that the Instance is to go. One-way."""


class DestroyDisks(Step):
    """Remove disks, logs and snapshots."""


class RemoveRecord(Step):
    """Remove the record and its directory: the last trace on this host."""


class DropFinalizer(Step):
    """Let the API server finish the deletion."""
