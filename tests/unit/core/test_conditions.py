"""What the agent says: every condition, in every mode, as kstatus and people read it."""

from dataclasses import replace
from typing import Any

import pytest

from controller.api.reasons import REASONS
from controller.core import conditions as say
from controller.core.conditions import MESSAGE_LIMIT, Condition, Failure, conditions, merge
from controller.core.desired import Desired, Mode, Permit, Workload
from controller.core.observed import ABSENT, Exit, Guest, Lock, Observed, Unknown
from controller.core.plan import plan
from controller.core.state import State
from tests.values import RULES, a_record, a_vmm, a_wish, seen, seen_running
from tests.world_memory import SNAPSHOT

NOW = 100.0
RUN, PAUSE, STOP = (a_wish(mode) for mode in (Mode.RUNNING, Mode.PAUSED, Mode.STOPPED))
STOPPED = seen(record=a_record(released="pod-1"))
PAUSED = seen_running(vmm=a_vmm(State.PAUSED))
BLIND = Unknown("QMP: no answer in 2 s")
FAILED = Exit(3, "exited 3")
REMEDY = "set operatingMode Stopped, then Running, to run again"


def said(wish: Desired, look: Observed, failure: Failure | None = None) -> dict[str, Condition]:
    found = conditions(wish, look, plan(wish, look, NOW, RULES), failure)
    assert len({condition.type for condition in found}) == len(found)
    for condition in found:
        assert condition.reason in REASONS[condition.type] or failure is not None
        assert condition.message
    return {condition.type: condition for condition in found}


def exited(how: Exit) -> Observed:
    return seen(record=a_record(exited=True, exit=how, released="pod-1"))


@pytest.mark.parametrize(
    ("wish", "look", "reason"),
    [(RUN, seen_running(), "Running"), (PAUSE, PAUSED, "Paused"), (STOP, STOPPED, "Stopped")],
)
def test_ready_in_every_mode_and_nothing_else(wish: Desired, look: Observed, reason: str) -> None:
    found = said(wish, look)
    assert (found["Ready"].status, found["Ready"].reason) == ("True", reason)
    assert {"Reconciling", "Stalled", "Exited", "RestartRequired"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("wish", "look", "status", "reason"),
    [
        (RUN, seen(), "False", "Reconciling"),
        (STOP, seen_running(), "False", "Reconciling"),
        (PAUSE, seen_running(), "False", "Reconciling"),
        (RUN, seen_running(guest=Guest()), "False", "Booting"),
        (RUN, seen_running(vmm=BLIND), "Unknown", "Unknown"),
        (RUN, seen(lock=Lock.UNKNOWN), "Unknown", "Unknown"),
        (replace(RUN, permit=Permit.WITHHELD), seen(), "False", "Unscheduled"),
        (RUN, seen(record=a_record(exit=FAILED, restarts=1, retry_at=120.0)), "False",
         "CrashLoopBackOff"),
        (replace(RUN, permit=Permit.EVICTING), STOPPED, "False", "Evicted"),
        (replace(RUN, draining=True), STOPPED, "False", "NodeStopping"),
    ],
)  # fmt: skip
def test_on_its_way_it_is_reconciling_for_the_same_reason(
    wish: Desired, look: Observed, status: str, reason: str
) -> None:
    found = said(wish, look)
    assert (found["Ready"].status, found["Ready"].reason) == (status, reason)
    assert found["Reconciling"] == replace(found["Ready"], type="Reconciling", status="True")
    assert "Stalled" not in found


@pytest.mark.parametrize(
    ("wish", "look", "reason"),
    [
        (RUN, seen(overlay=False), "DiskMissing"),
        (RUN, seen(record=Unknown("m", "RecordNewer", True)), "RecordNewer"),
        (
            RUN,
            seen(snapshot=replace(SNAPSHOT, reason="SnapshotCorrupt", problem="m")),
            "SnapshotCorrupt",
        ),
    ],
)
def test_what_no_retry_mends_is_stalled_and_not_reconciling(
    wish: Desired, look: Observed, reason: str
) -> None:
    found = said(wish, look)
    assert found["Stalled"].status == "True"
    assert (found["Stalled"].reason, found["Ready"].reason) == (reason, reason)
    assert found["Ready"].status != "True"
    assert "Reconciling" not in found


@pytest.mark.parametrize("stalled", [True, False])
def test_failed_step_is_told_in_its_own_words(stalled: bool) -> None:
    found = said(RUN, seen(), Failure("NoSpace", "no room on /var", stalled))
    assert found["Ready"] == Condition("Ready", "False", "NoSpace", "no room on /var")
    assert ("Stalled" in found) == stalled
    assert ("Reconciling" in found) != stalled


@pytest.mark.parametrize(
    ("how", "reason", "words"),
    [
        (Exit(0, "exited 0"), "Completed", "exited 0"),
        (FAILED, "Failed", "exited 3"),
        (Exit(None, "the VMM died"), "Failed", "the VMM died"),
        (Exit(None, "kernel panic: oops"), "Failed", "kernel panic: oops"),
    ],
)
def test_exit_is_an_end_with_a_remedy_not_a_way(how: Exit, reason: str, words: str) -> None:
    found = said(RUN, exited(how))
    assert found["Ready"] == Condition("Ready", "False", reason, f"{words}; {REMEDY}")
    assert found["Exited"] == Condition("Exited", "True", reason, f"{words}; {REMEDY}")
    assert {"Stalled", "Reconciling"}.isdisjoint(found)


def test_exit_is_over_once_stopped_was_observed() -> None:
    found = said(STOP, seen(record=a_record(exit=FAILED, released="pod-1")))
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "Stopped")
    assert "Exited" not in found


def test_released_is_said_of_the_reservation_in_the_object_only() -> None:
    found = said(STOP, STOPPED)["Scheduled"]
    assert (found.status, found.reason) == ("False", "Released")
    assert "Scheduled" not in said(replace(STOP, reservation="pod-2"), STOPPED)
    assert "Scheduled" not in said(RUN, seen_running())
    assert "Scheduled" not in said(replace(STOP, reservation=None), seen(record=a_record()))


@pytest.mark.parametrize(
    ("wish", "look", "required"),
    [
        (replace(RUN, workload=Workload(args=("x",))), seen_running(), True),
        (RUN, seen_running(), False),
        (replace(STOP, workload=Workload(args=("x",))), STOPPED, False),
    ],
)
def test_restart_is_required_while_the_old_words_run(
    wish: Desired, look: Observed, required: bool
) -> None:
    found = said(wish, look)
    assert ("RestartRequired" in found) == required
    if required:
        assert found["Ready"].status == "True"


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (seen_running(vmm=BLIND), BLIND.why),
        (seen_running(vmm=ABSENT), "its VMM lives but was not found"),
        (seen(record=Unknown("record is torn")), "record is torn"),
        (seen(lock=Lock.UNKNOWN), "cannot tell whether its VMM lives: the run lock cannot be read"),
        (seen(), None),
    ],
)
def test_state_error_says_why_nobody_can_tell(look: Observed, why: str | None) -> None:
    assert say.state_error(look) == why


# --- the list -------------------------------------------------------------------------------------

READY = Condition("Ready", "True", "Running", "it runs")
OLD = {
    "type": "Ready", "status": "True", "reason": "Running", "message": "it runs",
    "observedGeneration": 1, "lastTransitionTime": "then",
}  # fmt: skip
SCHEDULED = {"type": "Scheduled", "status": "True", "reason": "Scheduled", "message": "m"}


def listed(previous: list[Any], *mine: Condition, owned: frozenset[str] | None = None) -> Any:
    return merge(previous, mine, owned or say.AGENT_OWNED, 1, "now")


def test_unchanged_list_is_equal_to_the_one_before() -> None:
    before = listed([OLD, SCHEDULED], READY)
    assert listed(before, READY) == before == [OLD, SCHEDULED]


def test_time_moves_with_the_status_only() -> None:
    (same,) = listed([OLD], replace(READY, reason="Other"))
    assert (same["reason"], same["lastTransitionTime"]) == ("Other", "then")
    (other,) = listed([OLD], replace(READY, status="False"))
    assert other["lastTransitionTime"] == "now"


def test_what_is_anothers_is_copied_and_what_is_ours_vanishes() -> None:
    stalled = {**OLD, "type": "Stalled"}
    foreign = {**OLD, "type": "example.com/Audited"}
    found = listed([stalled, foreign, SCHEDULED, OLD], READY)
    assert [entry["type"] for entry in found] == ["Ready", "Scheduled", "example.com/Audited"]
    assert SCHEDULED in found
    assert foreign in found


def test_ready_comes_first_and_speaks_of_its_generation() -> None:
    found = merge([SCHEDULED], [Condition("Exited", "True", "Failed", "m"), READY],
                  say.AGENT_OWNED, 7, "now")  # fmt: skip
    assert [entry["type"] for entry in found] == ["Ready", "Exited", "Scheduled"]
    assert [entry.get("observedGeneration") for entry in found] == [7, 7, None]


def test_message_is_bounded() -> None:
    (found,) = listed([], replace(READY, message="x" * 10**6))
    assert len(found["message"]) == MESSAGE_LIMIT
