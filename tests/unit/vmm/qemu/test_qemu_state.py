"""What run states mean."""

import pytest

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Retry
from controller.vmm.driver import VmmState
from controller.vmm.qemu.state import vmm_state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("prelaunch", State.CREATED),
        ("inmigrate", State.CREATED),
        ("running", State.RUNNING),
        ("paused", State.PAUSED),
        ("postmigrate", State.PAUSED),
        ("finish-migrate", State.PAUSED),
        ("save-vm", State.PAUSED),
        ("suspended", State.PAUSED),
    ],
)
def test_a_living_guest_has_a_state_and_no_ending(status: str, state: State) -> None:
    assert vmm_state(status, reason=None, noted=False) == VmmState(state)


@pytest.mark.parametrize(
    ("status", "reason", "noted", "ending"),
    [
        ("shutdown", "guest-shutdown", True, Ending.POWERED_OFF),
        ("shutdown", "guest-reset", False, Ending.RESET),
        ("shutdown", "guest-panic", True, Ending.PANICKED),
        ("shutdown", "host-qmp-quit", True, Ending.HOST),
        ("shutdown", "host-signal", True, Ending.HOST),
        # An agent that came later has only the note.
        ("shutdown", None, True, Ending.POWERED_OFF),
        ("shutdown", None, False, Ending.RESET),
        ("shutdown", "something-new", True, Ending.POWERED_OFF),
        ("guest-panicked", None, False, Ending.PANICKED),
        ("guest-panicked", "guest-reset", True, Ending.PANICKED),
        ("internal-error", None, False, Ending.DIED),
    ],
)
def test_an_end_says_why(status: str, reason: str | None, noted: bool, ending: Ending) -> None:
    assert vmm_state(status, reason=reason, noted=noted) == VmmState(State.SHUTDOWN, ending)


def test_a_full_disk_is_a_pause_with_a_reason() -> None:
    assert vmm_state("io-error", reason=None, noted=False) == VmmState(
        State.PAUSED, storage_full=True
    )


def test_a_status_we_do_not_know_is_not_guessed() -> None:
    with pytest.raises(Retry, match="brand-new"):
        vmm_state("brand-new", reason=None, noted=False)
