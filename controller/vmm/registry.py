"""Which drivers there are, by the word that specs use. The only place that names them all."""

from collections.abc import Callable, Mapping

from controller.errors import Rejected
from controller.settings import NodeSettings
from controller.vmm.driver import Driver
from controller.vmm.hollow import HollowDriver
from controller.vmm.hollow_herd import HollowHerd
from controller.vmm.qemu.driver import QemuDriver

FAULTS = "hollow-faults"  # in run_dir: orders to hollow VMMs, a file per UID, or "all"


def _qemu(settings: NodeSettings) -> Driver:
    return QemuDriver(settings.qemu_binary, tb_size=settings.tcg_tb_size_mib)


def _hollow(settings: NodeSettings) -> Driver:
    return HollowDriver(settings.run_dir / FAULTS)


def _herd(settings: NodeSettings) -> Driver:
    return HollowHerd(settings.run_dir, settings.run_dir / FAULTS)


_MAKERS: Mapping[str, Callable[[NodeSettings], Driver]] = {
    "qemu": _qemu,
    "hollow": _hollow,
    "hollow-herd": _herd,
}


def drivers(settings: NodeSettings) -> dict[str, Driver]:
    """The drivers that ``settings.hypervisors`` names. Raises Rejected for one there is not."""
    found: dict[str, Driver] = {}
    for name in settings.hypervisors:
        if name not in _MAKERS:
            known = ", ".join(sorted(_MAKERS))
            raise Rejected(f"settings: hypervisors: there is no {name!r}; there are: {known}")
        found[name] = _MAKERS[name](settings)
    return found
