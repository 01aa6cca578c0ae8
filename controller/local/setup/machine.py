"""The steps that make this machine ready, in order.

What does not live here: how a step is run (``steps``) or shown (the CLI), and how a part is built
(the room that owns it).
"""

import os
from pathlib import Path

from controller.guest import artifacts, initrd
from controller.guest.kernel import KernelStore
from controller.host import crate, logs
from controller.local import binaries, toolchain
from controller.local.setup import needs, packages, qemu
from controller.local.setup.steps import Say, Step
from controller.settings import cache_dir

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
            control_plane_is_built,
            _build_control_plane,
        ),
        Step("guest init", "booting guests", init_is_built, _build_init),
        Step("log keeper", "keeping what guests print", keeper_is_built, _build_keeper),
        Step("guest kernel", "booting guests", kernel_is_here, _fetch_kernel),
    ]


def kernels_dir() -> Path:
    """The kernel store that this machine's local clusters and tests share."""
    return cache_dir() / "kernels"


def control_plane_is_built() -> bool:
    """Whether each program of the control plane is found without a build."""
    found = binaries.find()
    return all(name in found for name in (*binaries.SERVERS, *binaries.ALONE))


def init_is_built() -> bool:
    """Whether the guest's init of these sources is in the cache."""
    return crate.place(initrd.INIT_SOURCE, "torpor-init", cache_dir()).exists()


def keeper_is_built() -> bool:
    """Whether the log keeper of these sources is in the cache."""
    source = Path(logs.__file__).parent / "logkeeper"
    return crate.place(source, "torpor-logkeeper", cache_dir()).exists()


def kernel_is_here() -> bool:
    """Whether a kernel for the next cold boot is in the store, with its initrd."""
    store = KernelStore(kernels_dir())
    kernel = store.current()
    return kernel is not None and any(store.home(kernel).glob("initrd-*"))


def _build_control_plane(say: Say) -> None:
    binaries.ensure(say)


def _build_init(say: Say) -> None:
    say("compiling the guest's init")
    initrd.build_init(cache_dir())


def _build_keeper(say: Say) -> None:
    say("compiling the log keeper")
    logs.build_keeper(cache_dir())


def _fetch_kernel(say: Say) -> None:
    packages.ensure_lists(say)  # container images come without them
    say("fetching the newest cloud kernel of this release")
    artifacts.make(kernels_dir(), cache_dir=cache_dir())


def _go_is_settled() -> bool:
    """Go is needed for one build only: where its result is, nobody needs Go."""
    return control_plane_is_built() or toolchain.find() is not None


def _install_go(say: Say) -> None:
    if CONSTRAINTS.is_file():  # pip reads it: the version that is pinned, not the newest
        os.environ.setdefault("PIP_CONSTRAINT", str(CONSTRAINTS))
    toolchain.ensure(say)
