"""The steps that make this machine ready, in order.

Each builder is imported when its step runs: the set-up must start on a machine where nothing is
there yet. What does not live here: how a step is run (``steps``) or shown (the CLI).
"""

import os
from pathlib import Path

from controller.local import binaries, toolchain
from controller.local.setup import needs, packages, qemu
from controller.local.setup.steps import Say, Step

CONSTRAINTS = Path(__file__).resolve().parents[3] / "constraints.txt"


def steps() -> list[Step]:
    """Everything, from system packages to the guest's kernel."""
    return [
        Step(
            "system packages",
            "building images, guests and tests",
            lambda: not needs.unmet(),
            packages.install_missing,
        ),
        Step("QEMU 8.2 or newer", "running guests", needs.qemu_met, qemu.install),
        Step("Go toolchain", "building the control plane", _go_is_settled, _install_go),
        Step(
            "control plane",
            "torpor up, and tests against it",
            _control_plane_is_there,
            _build_control_plane,
        ),
    ]


def _control_plane_is_there() -> bool:
    found = binaries.find()
    return all(name in found for name in (*binaries.SERVERS, *binaries.ALONE))


def _build_control_plane(say: Say) -> None:
    binaries.ensure(say)


def _go_is_settled() -> bool:
    """Go is needed for one build only: where its result is, nobody needs Go."""
    return _control_plane_is_there() or toolchain.find() is not None


def _install_go(say: Say) -> None:
    if CONSTRAINTS.is_file():  # pip reads it: the version that is pinned, not the newest
        os.environ.setdefault("PIP_CONSTRAINT", str(CONSTRAINTS))
    toolchain.ensure(say)
