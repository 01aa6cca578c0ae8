"""What must hold of any plan, whoever made it: checked in tests and again before a plan is used.

A plan that breaks one of these is a defect of the planner; nothing of it is carried out.
"""

from controller.core.observed import Lock, Observed, Recorded, Snapshot, Unknown
from controller.core.state import State, can_transition
from controller.core.steps import (
    CloseRun,
    CreateRecord,
    DestroyDisks,
    DropFinalizer,
    KillVmm,
    LoadMemory,
    OrderBoot,
    OrderSave,
    OrderStop,
    OrderWake,
    PauseVmm,
    Plan,
    PrepareRun,
    PrepareWake,
    ReleaseReservation,
    RemoveRecord,
    RepairGuest,
    ResumeVmm,
    SaveMemory,
    StartVmm,
    Step,
    VoidSnapshot,
    WriteTombstone,
)
from controller.errors import Bug

_NEEDS_NO_VMM = (
    CloseRun, DestroyDisks, RemoveRecord, DropFinalizer, ReleaseReservation, PrepareRun,
    PrepareWake, StartVmm,
)  # fmt: skip
_DESTROYS = (DestroyDisks, RemoveRecord)
# the later one may come only with the earlier before it in the plan, or already done
_ORDER: tuple[tuple[type[Step], type[Step]], ...] = (
    (DestroyDisks, RemoveRecord),
    (RemoveRecord, DropFinalizer),
    (PrepareRun, StartVmm),
    (StartVmm, OrderBoot),
    (OrderBoot, ResumeVmm),
    (PrepareWake, StartVmm),
    (StartVmm, LoadMemory),
    (LoadMemory, OrderWake),
    (OrderWake, ResumeVmm),
    (VoidSnapshot, ResumeVmm),
    (ResumeVmm, RepairGuest),
    (OrderSave, PauseVmm),
    (OrderSave, SaveMemory),
    (PauseVmm, SaveMemory),
    (SaveMemory, KillVmm),
    (WriteTombstone, DestroyDisks),
)


def problems(plan: Plan, seen: Observed) -> tuple[str, ...]:
    """One sentence for each rule that ``plan`` breaks on what was ``seen``; empty is right."""
    return (*_graph(plan), *_proof(plan, seen), *_order(plan), *_memory(plan, seen))


def check(plan: Plan, seen: Observed) -> None:
    """Raises Bug if ``plan`` breaks a rule."""
    if found := problems(plan, seen):
        raise Bug(f"the plan is refused: {'; '.join(found)}")


def _graph(plan: Plan) -> tuple[str, ...]:
    return tuple(
        f"{origin.value} -> {target.value} is no hop of the graph"
        for origin, target in zip(plan.way, plan.way[1:], strict=False)
        if not can_transition(origin, target)
    )


def _proof(plan: Plan, seen: Observed) -> tuple[str, ...]:
    found = []
    dead = seen.lock is Lock.FREE
    for step in plan.steps:
        if isinstance(step, KillVmm):
            dead = True  # it returns only when the run lock is free
        elif isinstance(step, _NEEDS_NO_VMM) and not dead:
            found.append(f"{step.name} while a VMM may live")
    unknown = isinstance(seen.record, Unknown)
    if unknown and plan.steps:
        found.append("steps on a record that cannot be read")
    if any(isinstance(step, _DESTROYS) for step in plan.steps) and plan.target is not State.ABSENT:
        found.append("disks are destroyed though the Instance is to stay")
    if seen.lock is Lock.UNKNOWN and plan.steps:
        found.append("steps while nobody can tell whether a VMM lives")
    exists = isinstance(seen.record, Recorded)
    if exists and any(isinstance(step, CreateRecord) for step in plan.steps):
        found.append("a record would be overwritten")
    return tuple(found)


def _memory(plan: Plan, seen: Observed) -> tuple[str, ...]:
    """A committed snapshot and a guest that runs exclude each other."""
    given_up = not isinstance(seen.snapshot, Snapshot)
    found = []
    for step in plan.steps:
        given_up |= isinstance(step, OrderWake | VoidSnapshot)
        if isinstance(step, ResumeVmm) and not given_up:
            found.append("a guest goes on whose memory is still promised on disk")
        if isinstance(step, PrepareRun) and not given_up:
            found.append("a cold boot over a committed snapshot")
    return tuple(found)


def _order(plan: Plan) -> tuple[str, ...]:
    kinds = [type(step) for step in plan.steps]
    found = [
        f"{later.__name__} comes before {earlier.__name__}"
        for earlier, later in _ORDER
        if earlier in kinds and later in kinds and kinds.index(later) < kinds.index(earlier)
    ]
    if plan.origin is State.RUNNING and KillVmm in kinds and OrderStop in kinds:
        found.append("a running guest is killed in the pass that asked it to stop")
    return tuple(found)
