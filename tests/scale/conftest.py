"""The figures of one run, and the two clusters they are taken from."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scale.figures import OUTPUT, SMOKE, Figures
from tests.scale.upped import Cluster, upped_cluster

_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """One collection for the run."""
    config.stash[_FIGURES] = Figures()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory; none of it works without root."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.scale)
            item.add_marker(pytest.mark.timeout(2400))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was found, however the run ended."""
    if session.config.stash[_FIGURES].all and not SMOKE:
        session.config.stash[_FIGURES].save()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The table is the last thing printed."""
    figures = config.stash[_FIGURES]
    if figures.all:
        figures.show()
        print("a smoke test: nothing is written" if SMOKE else f"written to {OUTPUT}")


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where a bench notes what it found."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """What ``torpor up`` makes, with QEMU."""
    with upped_cluster() as running:
        yield running
