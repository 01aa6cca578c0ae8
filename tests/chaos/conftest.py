"""Fixtures for tests that break things: a zygote for agents, and a rig for each test."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.agentkit import Rig, Zygote
from tests.agentkit import rig as make_rig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory; it needs root."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Makes agents and operators in milliseconds."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
async def rig(zygote: Zygote) -> AsyncIterator[Rig]:
    """A small cluster with one node, whose agent is not started yet."""
    async with make_rig(zygote) as made:
        yield made
