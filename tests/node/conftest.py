"""What every test on a real host gets: root or a skip, and an accounting of what it left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests below this directory need root; say so instead of failing one by one."""
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def leak_scope(tmp_path_factory: pytest.TempPathFactory) -> leaks.Scope:
    """What is ours in this run. Name cgroups, namespaces and devices ``ttPID-…`` to be seen."""
    return leaks.Scope(paths=(tmp_path_factory.getbasetemp(),), names=(f"tt{os.getpid()}-",))


@pytest.fixture(autouse=True)
def no_leaks(leak_scope: leaks.Scope) -> Iterator[None]:
    """Fail a test that leaves a process, mount, socket, cgroup, namespace or device behind."""
    before = leaks.snapshot(leak_scope)
    yield
    if left := leaks.settle(before, leak_scope):
        leaks.kill_left_over(before, leak_scope)
        pytest.fail("left behind:\n" + "\n".join(left))
