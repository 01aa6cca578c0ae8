"""What is sent to the API server: the difference, with removals named, and nothing for nothing."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.core.conditions import Failure
from controller.core.desired import Desired, Hardware, Mode, Permit
from controller.core.observed import ABSENT, Lock, Observed, Unknown
from controller.core.state import State
from controller.core.steps import Plan, Waiting
from controller.node import report, tell

LEAVES = st.none() | st.integers(0, 3) | st.text("ab", max_size=2)
VALUES = LEAVES | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=3)
STATUSES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def merge(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386."""
    target = copy.deepcopy(target)
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            below = target.get(key)
            target[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            target[key] = value
    return target


def without_nulls(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if value is not None}


@given(STATUSES.map(without_nulls), STATUSES)
def test_patch_makes_of_the_old_status_the_new_one(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    patched = merge(before, report.changes(before, after))
    untouched = {key: value for key, value in before.items() if key not in after}
    assert patched == {**untouched, **without_nulls(after)}


@given(STATUSES.map(without_nulls), STATUSES)
def test_what_was_written_is_not_written_again(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    patched = merge(before, report.changes(before, after))
    assert report.changes(patched, after) == {}


WISH = Desired(
    uid="00000000-0000-4000-8000-000000000001",
    namespace="default",
    name="a",
    generation=3,
    mode=Mode.RUNNING,
    epoch=1,
    image="registry.example/app:1",
    hardware=Hardware("qemu", 1, 1 << 28, 1 << 28),
    permit=Permit.GRANTED,
)
NOTHING = Observed(
    record=ABSENT, lock=Lock.FREE, vmm=ABSENT, guest=ABSENT, image=ABSENT, kernel="6", overlay=False
)
BLIND = Observed(
    record=Unknown("record cannot be read", "RecordCorrupt", stalled=True),
    lock=Lock.HELD, vmm=ABSENT, guest=ABSENT, image=ABSENT, kernel="6", overlay=False,
)  # fmt: skip
WAITING = Plan(
    State.ABSENT, State.RUNNING, (), (), "because", Waiting("Unscheduled", "waits for memory")
)


def test_status_answers_for_the_generation_it_was_computed_for() -> None:
    status = report.status(WISH, NOTHING, WAITING, None, {})
    assert status["observedGeneration"] == 3
    ready = status["conditions"][0]
    assert (ready["type"], ready["status"], ready["observedGeneration"]) == ("Ready", "False", 3)
    assert ready["reason"] == "Unscheduled"


def test_state_is_never_blank_and_never_absent() -> None:
    assert report.status(WISH, NOTHING, WAITING, None, {})["state"] == "Stopped"
    assert report.status(WISH, BLIND, WAITING, None, {})["state"] == "Unknown"
    assert report.status(WISH, BLIND, WAITING, None, {})["stateError"]


def test_conditions_of_others_are_copied_and_times_move_only_with_the_status() -> None:
    theirs = {"type": "Scheduled", "status": "True", "reason": "Scheduled", "message": "m",
              "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}  # fmt: skip
    old = {"type": "Ready", "status": "False", "reason": "Pending", "message": "m",
           "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}  # fmt: skip
    status = report.status(WISH, NOTHING, WAITING, None, {"conditions": [old, theirs]})
    said = {condition["type"]: condition for condition in status["conditions"]}
    assert said["Scheduled"] == theirs
    assert said["Ready"]["lastTransitionTime"] == old["lastTransitionTime"]
    assert said["Ready"]["observedGeneration"] == 3


def test_without_a_record_what_was_said_of_the_past_stands() -> None:
    """That it has run here is how a disk that vanished is told from one that never was."""
    before = {"startedAt": "2026-01-01T00:00:00Z", "image": {"digest": "sha256:a"}}
    for seen in (NOTHING, BLIND):
        after = report.status(WISH, seen, WAITING, None, before)
        assert merge(before, report.changes(before, after)).items() >= before.items()


def test_failure_that_no_retry_mends_is_stalled_and_another_is_not() -> None:
    for stalled, kind in ((True, "Stalled"), (False, "Reconciling")):
        failure = Failure("NoSpace", "no space left", stalled)
        said = report.status(WISH, NOTHING, WAITING, failure, {})["conditions"]
        assert {(c["type"], c["reason"]) for c in said} == {("Ready", "NoSpace"), (kind, "NoSpace")}


# --- Events ---------------------------------------------------------------------------------------


class Recorder:
    """Remembers Events instead of sending them."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def event(self, obj: Any, kind: str, reason: str, message: str) -> None:
        self.told.append((kind, reason, message))


def ready(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": "x", "reason": reason, "message": "said"}]}


def told(before: str, after: str) -> list[tuple[str, str, str]]:
    recorder = Recorder()
    tell.transition(recorder, {"metadata": {}, "status": ready(before)}, ready(after))  # type: ignore[arg-type]
    return recorder.told


def test_transition_is_told_once_when_it_ends() -> None:
    assert told("Booting", "Running") == [("Normal", "Running", "said")]
    assert told("Running", "Running") == []
    assert told("Running", "Stopping") == []
    assert told("Running", "Failed") == [("Warning", "Failed", "said")]
