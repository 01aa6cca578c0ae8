"""Who may say what, and when memory is needed: the table of both processes."""

from typing import Any

import pytest

from controller.core.desired import Mode, Permit
from controller.core.ownership import (
    condition,
    is_true,
    mode,
    needs_memory,
    permit,
    ready_is_operators,
)

OPERATOR, AGENT = "operator", "agent"


def an_object(
    asked: str = "Running",
    node: bool = True,
    state: str = "Stopped",
    scheduled: tuple[str, str] | None = None,
    exited: bool = False,
    deleted: bool = False,
    reservation: bool = True,
    asleep: bool = False,
    fork: bool = False,
    forked: bool = False,
) -> dict[str, Any]:
    conditions = []
    if scheduled:
        conditions.append({"type": "Scheduled", "status": scheduled[0], "reason": scheduled[1]})
    if exited:
        conditions.append({"type": "Exited", "status": "True", "reason": "Completed"})
    status: dict[str, Any] = {"state": state, "conditions": conditions}
    if node:
        status |= {"nodeName": "n1", "epoch": 1}
    if reservation:
        status["reservation"] = "pod-1"
    if asleep:
        status["snapshot"] = {"bytes": 1}
    spec: dict[str, Any] = {"operatingMode": asked}
    if fork or forked:
        spec["forkFrom"] = {"name": "source"}
        status["lineage"] = {"parent": "u-1", "root": "u-1", "depth": 1}
    if forked:
        status["lineage"]["forkedAt"] = "2026-01-01T00:00:00Z"
    meta = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    return {"metadata": meta, "spec": spec, "status": status}


TRUE = ("True", "Scheduled")
EVICTING = ("False", "Evicting")
RELEASED = ("False", "Released")
LOST = ("False", "ReservationLost")
ENDING = ("False", "NamespaceTerminating")
NOT_NEEDED = ("False", "NotNeeded")
NO_ROOM = ("False", "Unschedulable")


@pytest.mark.parametrize(
    ("situation", "obj", "owner"),
    [
        ("fresh, needs memory", an_object(node=False), OPERATOR),
        ("fresh, Stopped", an_object("Stopped", node=False), OPERATOR),
        ("bound, about to boot", an_object(scheduled=TRUE), AGENT),
        ("runs", an_object(state="Running", scheduled=TRUE), AGENT),
        ("paused", an_object("Paused", state="Paused", scheduled=TRUE), AGENT),
        ("to be stopped", an_object("Stopped", state="Running", scheduled=TRUE), AGENT),
        ("stopped, released", an_object("Stopped", scheduled=RELEASED), AGENT),
        ("asked to run again", an_object(scheduled=RELEASED), OPERATOR),
        ("waits for room", an_object(scheduled=NO_ROOM), OPERATOR),
        ("wakes, waits for room", an_object(state="Standby", scheduled=NO_ROOM), OPERATOR),
        ("evicted, still running", an_object(state="Running", scheduled=EVICTING), AGENT),
        ("evicted, stopped", an_object(scheduled=EVICTING), AGENT),
        ("evicted, released", an_object(scheduled=RELEASED), OPERATOR),
        ("namespace ends, still running", an_object(state="Running", scheduled=ENDING), AGENT),
        ("namespace ends, stopped", an_object(scheduled=ENDING), AGENT),
        ("asleep, released", an_object("Standby", state="Standby", scheduled=RELEASED,
                                       asleep=True), AGENT),
        ("asleep, to wake", an_object(state="Standby", scheduled=RELEASED, asleep=True), OPERATOR),
        ("asleep, to be stopped", an_object("Stopped", state="Standby", scheduled=RELEASED,
                                            asleep=True), AGENT),
        ("stopped, to be pre-warmed", an_object("Standby", scheduled=RELEASED), OPERATOR),
        ("fork without a node", an_object("Standby", node=False, fork=True), OPERATOR),
        ("fork that needs no memory", an_object("Standby", scheduled=NOT_NEEDED, fork=True), AGENT),
        ("fork that boots to sleep", an_object("Standby", scheduled=TRUE, fork=True), AGENT),
        ("fork asked to run instead", an_object(scheduled=NOT_NEEDED, fork=True), OPERATOR),
        ("fork, Stopped, not done yet", an_object("Stopped", scheduled=NOT_NEEDED, fork=True),
         AGENT),
        ("reservation lost, runs", an_object(state="Running", scheduled=LOST), AGENT),
        ("reservation lost, stopped", an_object(scheduled=LOST), OPERATOR),
        ("exited", an_object(scheduled=RELEASED, exited=True), AGENT),
        ("deleted", an_object(scheduled=RELEASED, deleted=True), AGENT),
        ("True without a reservation", an_object(scheduled=TRUE, reservation=False), OPERATOR),
    ],
)  # fmt: skip
def test_ready_is_written_by_one(situation: str, obj: dict[str, Any], owner: str) -> None:
    assert ready_is_operators(obj) == (owner == OPERATOR), situation


@pytest.mark.parametrize(
    ("obj", "needed"),
    [
        (an_object("Running"), True),
        (an_object("Paused"), True),
        (an_object("Stopped"), False),
        (an_object("Standby"), True),
        (an_object("Standby", state="Standby", asleep=True), False),
        (an_object("Standby", state="Standby"), True),  # its memory is gone: it boots again
        (an_object("Running", state="Standby", asleep=True), True),
        (an_object("Stopped", state="Standby", asleep=True), False),
        (an_object("Standby", node=False, fork=True), True),  # until its source is known
        (an_object("Standby", scheduled=NOT_NEEDED, fork=True), False),
        (an_object("Standby", scheduled=TRUE, fork=True), True),
        (an_object("Standby", scheduled=NO_ROOM, fork=True), True),
        (an_object("Standby", scheduled=NOT_NEEDED, forked=True), True),  # had none to inherit
        (an_object("Standby", scheduled=NOT_NEEDED, forked=True, asleep=True), False),
        (an_object("Running", scheduled=NOT_NEEDED, fork=True), True),
        (an_object("Stopped", scheduled=NOT_NEEDED, fork=True), False),
        (an_object("Running", exited=True), False),
        (an_object("Running", deleted=True), False),
        ({"metadata": {}}, True),
    ],
)
def test_memory_is_needed_when_something_is_to_be_in_it(obj: dict[str, Any], needed: bool) -> None:
    assert needs_memory(obj) == needed


@pytest.mark.parametrize(
    ("obj", "permitted"),
    [
        (an_object(scheduled=TRUE), Permit.GRANTED),
        (an_object(scheduled=TRUE, reservation=False), Permit.WITHHELD),
        (an_object(scheduled=EVICTING), Permit.EVICTING),
        (an_object(scheduled=ENDING), Permit.ENDING),
        (an_object(scheduled=("True", "NamespaceTerminating"), reservation=False),
         Permit.WITHHELD),
        (an_object(scheduled=RELEASED), Permit.WITHHELD),
        (an_object(scheduled=LOST), Permit.WITHHELD),
        (an_object(scheduled=("Unknown", "Evicting")), Permit.WITHHELD),
        (an_object(), Permit.WITHHELD),
        ({"metadata": {}}, Permit.WITHHELD),
    ],
)  # fmt: skip
def test_permit_is_read_from_scheduled(obj: dict[str, Any], permitted: Permit) -> None:
    assert permit(obj) is permitted


def test_deletion_is_a_mode_that_wins() -> None:
    assert mode(an_object("Paused", deleted=True)) is Mode.GONE
    assert mode(an_object("Paused")) is Mode.PAUSED
    assert mode({"metadata": {}}) is Mode.RUNNING


def test_condition_that_is_not_there_is_empty() -> None:
    assert condition({"metadata": {}}, "Ready") == {}
    assert not is_true(an_object(scheduled=RELEASED), "Scheduled")
    assert is_true(an_object(scheduled=TRUE), "Scheduled")
