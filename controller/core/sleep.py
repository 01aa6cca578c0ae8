"""Sleeping and waking: when memory is saved, used and given up. Three rules hold here:

1. A committed snapshot and a guest that runs exclude each other. Whatever lets the virtual CPUs go
   gives the snapshot up before (``to_run``), durably; whatever finds them running though a snapshot
   is there takes it that somebody else let them go, and gives it up at once (``overtaken``).
2. A VMM that holds memory which also lies on disk is worth nothing: to sleep again it is killed.
3. Space is looked for before the guest is disturbed, and nothing is destroyed before the commit.

======= ============== ===================================== ==================================
sleep   step           effect                                a crash before it leaves
======= ============== ===================================== ==================================
1       OrderSave      record: a save begins                 a running guest
2       PauseVmm       the guest stands still                a running guest, the mark: 2 follows
3       SaveMemory     files, disks synced, **commit**       a paused guest, temporary files
4       KillVmm        VMM proven dead                       a paused guest and a snapshot: 4
5       CloseRun       run directory gone, record closed     a dead VMM and a snapshot: Standby
======= ============== ===================================== ==================================

======= ============== ===================================== ==================================
wake    step           effect                                a crash before it leaves
======= ============== ===================================== ==================================
1       PrepareWake    record: run += 1, from snapshot N     Standby
2       StartVmm       a VMM that waits for its memory       a prepared run: 2 follows
3       LoadMemory     delta and device state are in it      that VMM: 3 is repeated, or it dies
                                                             and 1 follows
4       OrderWake      **record: generation N+1**            a paused guest, the snapshot unused
5       ResumeVmm      the guest runs                        a paused guest: 5 follows. Dead: its
                                                             memory is consumed
6       RepairGuest    clock, entropy, identity              a running guest: 6 is repeated
======= ============== ===================================== ==================================

What does not live here: bytes (``memory``), and the states between (``state``).
"""

from dataclasses import replace

from controller.core import boot
from controller.core.desired import Desired
from controller.core.observed import Ending, Guest, Lock, Observed, Recorded, Snapshot, Unknown, Vmm
from controller.core.state import State
from controller.core.steps import (
    CancelSave,
    CloseRun,
    KillVmm,
    LoadMemory,
    OrderSave,
    OrderWake,
    PauseVmm,
    Plan,
    PrepareWake,
    RepairGuest,
    ResumeVmm,
    SaveMemory,
    StartVmm,
    Step,
    VoidSnapshot,
)
from controller.core.waiting import wait

_RAN = frozenset({Ending.POWERED_OFF, Ending.RESET, Ending.PANICKED})  # only a guest does these


def to_run(record: Recorded, seen: Observed) -> tuple[Step, ...]:
    """What has to come before the virtual CPUs are let go, so that no memory is used twice."""
    if record.waking:
        return (OrderWake(),)
    if isinstance(seen.snapshot, Snapshot):
        return (VoidSnapshot(),)
    return ()


def overtaken(record: Recorded, seen: Observed, target: State) -> tuple[Step, ...]:
    """What to note when the guest has moved on by somebody else's hand, or the wish has."""
    if _ran(seen) and (given_up := to_run(record, seen)):
        return given_up
    alive = seen.state in (State.RUNNING, State.PAUSED)
    if alive and record.saving and target is not State.STANDBY:
        return (CancelSave(),)
    return ()


def outlived(record: Recorded, seen: Observed) -> tuple[Step, ...]:
    """What to note when the memory that was saved is of a workload that had ended already.

    It said so at the last moment. The exit counts, as it has not been noted, and no such memory is
    woken: it would only power off.
    """
    ended = isinstance(seen.guest, Guest) and seen.guest.exit is not None
    if ended and record.owes_exit and isinstance(seen.snapshot, Snapshot):
        return (VoidSnapshot(),)
    return ()


def undecided(draft: Plan, seen: Observed, now: float) -> Plan | None:
    """The wait while nobody can tell whether a snapshot is committed; None: it is known."""
    if isinstance(seen.snapshot, Unknown):
        fact = seen.snapshot
        return wait(draft, now, fact.reason, fact.why, stalled=fact.stalled)
    return None


def fall_asleep(draft: Plan, record: Recorded, seen: Observed) -> Plan:
    """From Running (its workload started) or Paused to Standby."""
    if isinstance(seen.snapshot, Snapshot) and seen.snapshot.reason:
        return replace(draft, steps=to_run(record, seen))  # it is whole in this VMM only: save anew
    if isinstance(seen.snapshot, Snapshot):  # in this VMM is nothing that is not on disk
        return replace(draft, steps=(KillVmm(), CloseRun()))
    order: tuple[Step, ...] = () if record.saving else (OrderSave(),)
    pause: tuple[Step, ...] = (PauseVmm(),) if draft.origin is State.RUNNING else ()
    return replace(draft, steps=(*order, *pause, SaveMemory(), KillVmm(), CloseRun()))


def from_standby(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float
) -> Plan:
    """Wake, stay asleep or give the snapshot up. A VMM that lives here waits for its memory."""
    if draft.target not in (State.RUNNING, State.PAUSED):
        return _stay_down(draft, seen)
    if seen.lock is Lock.HELD:
        if record.stop_ordered or not record.vmm_noted:
            return replace(draft, steps=(KillVmm(),))
        return replace(draft, steps=(LoadMemory(), *_go_on(draft)))
    if isinstance(seen.snapshot, Snapshot) and seen.snapshot.reason:
        found = seen.snapshot
        return wait(draft, now, found.reason, found.problem, stalled=True)
    if missing := boot.cannot_start(draft, desired, record, seen, now):
        return missing
    first: tuple[Step, ...] = () if record.run_prepared else (PrepareWake(),)
    return replace(draft, steps=(*first, StartVmm(), LoadMemory(), *_go_on(draft)))


def repair(draft: Plan, record: Recorded) -> Plan | None:
    """A woken guest runs: it is not there before it has acknowledged who and when it is."""
    if record.woken and not record.repaired:
        return replace(draft, steps=(RepairGuest(),))
    return None


def _stay_down(draft: Plan, seen: Observed) -> Plan:
    if seen.lock is Lock.HELD:
        return replace(draft, steps=(KillVmm(),))
    if draft.target is State.STOPPED:
        return replace(draft, steps=(VoidSnapshot(),))
    return draft


def _go_on(draft: Plan) -> tuple[Step, ...]:
    if draft.target is State.PAUSED:
        return ()
    return (OrderWake(), ResumeVmm(), RepairGuest())


def _ran(seen: Observed) -> bool:
    if not isinstance(seen.vmm, Vmm):
        return False
    return seen.vmm.state is State.RUNNING or seen.vmm.ending in _RAN
