"""Names on the host come from UIDs and numbers, never from a user's text."""

import pytest

from controller.core import names
from controller.errors import Rejected
from tests.values import UID


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "web", UID.upper(), UID.replace("-", ""), f"{{{UID}}}", f"{UID}\n",
     f"urn:uuid:{UID}", "x" * 100_000],
)  # fmt: skip
def test_what_is_no_canonical_uuid_names_nothing(text: str) -> None:
    assert not names.is_uid(text)
    with pytest.raises(Rejected) as refused:
        names.checked_uid(text)
    assert len(str(refused.value)) < 300


def test_uid_names_itself_and_its_runs() -> None:
    assert names.checked_uid(UID) == UID
    assert names.short_uid(UID) == "6f1b9a2e"
    assert names.machine_id(UID) == "6f1b9a2e0c5d4f7a9a432b8f0e6d1c11"


def test_no_two_runs_share_a_name() -> None:
    found = {names.run_name(UID, epoch, run) for epoch in range(1, 12) for run in range(1, 12)}
    assert len(found) == 121
    assert names.run_name(UID, 1, 11) != names.run_name(UID, 11, 1)


def test_reservation_name_differs_by_uid_and_fits() -> None:
    other = "00000000" + UID[8:]
    assert names.reservation_name("web", UID) == "web-6f1b9a2e"
    assert names.reservation_name("web", UID) != names.reservation_name("web", other)
    assert len(names.reservation_name("a" * 253, UID)) == 253


def test_lease_of_a_node_is_found_by_its_name() -> None:
    assert names.node_lease("n1").removeprefix(names.node_lease("")) == "n1"
