"""How a run ended, what policy makes of it, and how long the next try waits."""

import pytest

from controller.core import exits
from controller.core.backoff import Backoff
from controller.core.desired import RestartPolicy
from controller.core.observed import ABSENT, Ending, Exit, Guest, Lock, Observed, Recorded, Unknown
from controller.core.state import State
from tests.values import a_run, a_vmm, seen_running

SHUT = State.SHUTDOWN
CLEAN, FAILED = Exit(0, "exited 0"), Exit(3, "exited 3")
REBOOT = Exit(None, "the guest rebooted", reboot=True)


def over(ending: Ending | None, guest: object = None, **record: object) -> Observed:
    """A look at a run that is over; ``ending`` None: its VMM is gone."""
    vmm = ABSENT if ending is None else a_vmm(SHUT, ending=ending)
    return seen_running(
        vmm=vmm, lock=Lock.FREE if ending is None else Lock.HELD,
        guest=Guest(started=True) if guest is None else guest, record=a_run(**record),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "code", "message", "reboot"),
    [
        (over(Ending.POWERED_OFF, Guest(exit=FAILED)), 3, "exited 3", False),
        (over(Ending.PANICKED, Guest(exit=FAILED, panic="x")), 3, "exited 3", False),
        (over(None, Guest(exit=FAILED), rebooted=True), 3, "exited 3", False),
        (over(Ending.POWERED_OFF), 0, "the guest powered itself off", False),
        (over(Ending.RESET), None, "the guest rebooted", True),
        (over(Ending.PANICKED), None, "kernel panic", False),
        (over(Ending.PANICKED, Guest(panic="oops")), None, "kernel panic: oops", False),
        (over(None, Guest(panic="oops"), rebooted=True), None, "kernel panic: oops", False),
        (over(Ending.HOST), None, "the VMM was told to quit by somebody on the host", False),
        (over(Ending.DIED), None, "the VMM died", False),
        (over(None), None, "the VMM died", False),
        (over(None, ABSENT), None, "the VMM died", False),
        (over(None, rebooted=True), None, "the host was rebooted", True),
    ],
)
def test_end_is_told_by_its_best_witness(
    seen: Observed, code: int | None, message: str, reboot: bool
) -> None:
    assert isinstance(seen.record, Recorded)
    assert exits.ending_of(seen, seen.record) == Exit(code, message, reboot)


@pytest.mark.parametrize(
    ("policy", "clean", "failed", "died"),
    [
        (RestartPolicy.NEVER, False, False, False),
        (RestartPolicy.ON_FAILURE, False, True, True),
        (RestartPolicy.ALWAYS, True, True, True),
    ],
)
def test_policy_restarts_what_it_says(
    policy: RestartPolicy, clean: bool, failed: bool, died: bool
) -> None:
    ended = (CLEAN, FAILED, Exit(None, "the VMM died"))
    assert tuple(exits.restarts(policy, how) for how in ended) == (clean, failed, died)
    assert exits.restarts(policy, REBOOT)


@pytest.mark.parametrize(
    ("policy", "restarts", "lasted", "exited", "count", "delay"),
    [
        (RestartPolicy.NEVER, 0, 5, True, 1, 0.0),
        (RestartPolicy.ON_FAILURE, 0, 5, False, 1, 10.0),
        (RestartPolicy.ON_FAILURE, 2, 5, False, 3, 40.0),
        (RestartPolicy.ON_FAILURE, 9, 5, False, 10, 300.0),
        (RestartPolicy.ON_FAILURE, 9, 600, False, 1, 10.0),
    ],
)
def test_note_counts_and_delays(
    policy: RestartPolicy, restarts: int, lasted: int, exited: bool, count: int, delay: float
) -> None:
    record = a_run(restarts=restarts)
    seen = over(Ending.POWERED_OFF, Guest(exit=FAILED))
    noted = exits.note(policy, seen, record, 10.0 + lasted, Backoff())
    assert (noted.exit, noted.exited, noted.restarts, noted.delay) == (FAILED, exited, count, delay)


@pytest.mark.parametrize(
    ("restarts", "lasted", "count", "delay"), [(0, 5, 1, 0.0), (1, 5, 2, 10.0), (4, 700, 1, 0.0)]
)
def test_guest_that_reboots_boots_at_once_but_does_not_spin(
    restarts: int, lasted: int, count: int, delay: float
) -> None:
    for policy in RestartPolicy:
        seen = over(Ending.RESET)
        noted = exits.note(policy, seen, a_run(restarts=restarts), 10.0 + lasted, Backoff())
        assert (noted.exited, noted.restarts, noted.delay) == (False, count, delay)


def test_host_that_reboots_counts_for_nothing() -> None:
    seen = over(None, rebooted=True)
    noted = exits.note(RestartPolicy.NEVER, seen, a_run(restarts=3, rebooted=True), 20.0, Backoff())
    assert (noted.exited, noted.restarts, noted.delay) == (False, 3, 0.0)


def test_back_off_doubles_up_to_its_cap() -> None:
    waits = [Backoff().delay(tries) for tries in range(8)]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert Backoff().delay(10**9) == 300
    assert Backoff().delay(-1) == 0


@pytest.mark.parametrize(
    ("before", "lasted", "count"), [(0, 1.0, 1), (4, 599.9, 5), (4, 600.0, 1), (4, None, 5)]
)
def test_run_that_lasted_starts_the_count_anew(
    before: int, lasted: float | None, count: int
) -> None:
    assert Backoff().count(before, lasted) == count


def test_unknown_witness_is_no_witness() -> None:
    seen = over(None, Unknown("report.log: I/O error"))
    assert exits.ending_of(seen, a_run()).message == "the VMM died"
