"""A directory that other users can pass through, as a cluster's must be."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """Empty; not pytest's ``tmp_path``, which lies below a directory closed to others."""
    made = Path(tempfile.mkdtemp(prefix="torpor-unit-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)
