"""The rules no plan may break: each is broken here once, and must be seen."""

import pytest

from controller.core import steps as s
from controller.core.invariants import check, problems
from controller.core.observed import ABSENT, Exit, Lock, Observed, Unknown
from controller.core.plan import plan
from controller.core.state import State
from controller.errors import Bug
from tests.values import RULES, a_wish, seen, seen_running

ALIVE, DEAD = seen_running(), seen()


def a_plan(
    *steps: s.Step, origin: State = State.STOPPED, target: State = State.STOPPED,
    way: tuple[State, ...] | None = None,
) -> s.Plan:  # fmt: skip
    return s.Plan(origin, target, way or (origin,), steps, "a test says so")


NOTE = s.NoteExit(Exit(0, "exited 0"), exited=True, restarts=1, delay=0.0)


@pytest.mark.parametrize(
    ("made", "look", "words"),
    [
        (a_plan(way=(State.STOPPED, State.RUNNING)), DEAD, "no hop"),
        (a_plan(s.CloseRun()), ALIVE, "CloseRun while a VMM may live"),
        (a_plan(s.StartVmm()), ALIVE, "StartVmm while a VMM may live"),
        (a_plan(s.PrepareRun()), ALIVE, "PrepareRun while a VMM may live"),
        (a_plan(s.ReleaseReservation()), ALIVE, "ReleaseReservation while a VMM may live"),
        (a_plan(s.DestroyDisks(), target=State.ABSENT), ALIVE, "DestroyDisks while a VMM may"),
        (a_plan(s.RemoveRecord(), target=State.ABSENT), ALIVE, "RemoveRecord while a VMM may"),
        (a_plan(s.DropFinalizer(), target=State.ABSENT), ALIVE, "DropFinalizer while a VMM may"),
        (a_plan(s.DestroyDisks()), DEAD, "disks are destroyed though the Instance is to stay"),
        (a_plan(s.RemoveRecord()), DEAD, "disks are destroyed though the Instance is to stay"),
        (a_plan(NOTE), seen(record=Unknown("torn")), "a record that cannot be read"),
        (a_plan(s.KillVmm()), seen(lock=Lock.UNKNOWN), "nobody can tell whether a VMM lives"),
        (a_plan(s.CreateRecord()), DEAD, "a record would be overwritten"),
        (a_plan(s.StartVmm(), s.PrepareRun()), DEAD, "StartVmm comes before PrepareRun"),
        (a_plan(s.ResumeVmm(), s.OrderBoot()), DEAD, "ResumeVmm comes before OrderBoot"),
        (a_plan(s.OrderBoot(), s.StartVmm()), DEAD, "OrderBoot comes before StartVmm"),
        (a_plan(s.RemoveRecord(), s.DestroyDisks(), target=State.ABSENT), DEAD,
         "RemoveRecord comes before DestroyDisks"),
        (a_plan(s.DestroyDisks(), s.WriteTombstone(), target=State.ABSENT), DEAD,
         "DestroyDisks comes before WriteTombstone"),
        (a_plan(s.DropFinalizer(), s.RemoveRecord(), target=State.ABSENT), DEAD,
         "DropFinalizer comes before RemoveRecord"),
        (a_plan(s.OrderStop(), s.KillVmm(), origin=State.RUNNING), ALIVE, "a running guest"),
    ],
)  # fmt: skip
def test_broken_rule_is_named_and_refused(made: s.Plan, look: Observed, words: str) -> None:
    assert words in "; ".join(problems(made, look))
    with pytest.raises(Bug, match="refused"):
        check(made, look)


@pytest.mark.parametrize(
    ("made", "look"),
    [
        (a_plan(), DEAD),
        (a_plan(), seen(lock=Lock.UNKNOWN)),
        (a_plan(s.KillVmm(), s.CloseRun(), origin=State.SHUTDOWN), ALIVE),
        (a_plan(s.CreateRecord()), seen(record=ABSENT)),
        (a_plan(s.WriteTombstone(), s.DestroyDisks(), s.RemoveRecord(), target=State.ABSENT), DEAD),
        (plan(a_wish(), DEAD, 100.0, RULES), DEAD),
    ],
)
def test_lawful_plan_has_no_problem(made: s.Plan, look: Observed) -> None:
    assert problems(made, look) == ()
    check(made, look)
