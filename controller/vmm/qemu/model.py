"""What a QEMU of ours is to its guest, as values that can be compared: the device model.

Made of the same arguments as the process, so that nothing can be added there and forgotten here.
What does not live here: the arguments themselves (``argv``).
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from controller.vmm.driver import DeviceModel, Version
from controller.vmm.machine import Machine
from controller.vmm.qemu.argv import Descriptors, argv

_CPUINFO = Path("/proc/cpuinfo")
_NOBODY = "00000000-0000-0000-0000-000000000000"
_NOWHERE = Path("/")
_NO_DESCRIPTORS = Descriptors(0, 0, 0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Cpu:
    """The CPU that a guest sees; ``features`` sorted, () where QEMU makes it up itself."""

    model: str
    features: tuple[str, ...] = ()


def cpu_of(accelerator: str) -> Cpu:
    """The CPU of guests under ``accelerator``. KVM shows them the host's. Raises OSError."""
    if accelerator == "tcg":
        return Cpu("max")
    return host_cpu(_CPUINFO.read_text(errors="replace"))


def host_cpu(cpuinfo: str) -> Cpu:
    """The first CPU of a /proc/cpuinfo."""
    first = cpuinfo.strip().partition("\n\n")[0]
    facts = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    stepping = [facts.get(key, "?") for key in ("cpu family", "model", "stepping")]
    features = tuple(sorted(set(facts.get("flags", "").split())))
    return Cpu(f"host: {facts.get('model name', '?')} ({'/'.join(stepping)})", features)


def device_model(machine: Machine, version: Version, build: str, cpu: Cpu) -> DeviceModel:
    """What ``machine`` would be to its guest. Raises Bug as ``argv``."""
    argv_of_anybody = argv("", _anybody(machine), _NO_DESCRIPTORS, tb_size=0)
    return DeviceModel(
        version=version.version,
        build=build,
        machine_type=machine.machine_type or version.machine_type,
        cpu_model=cpu.model,
        cpu_features=cpu.features,
        devices=hashlib.sha256(json.dumps(argv_of_anybody).encode()).hexdigest(),
    )


def _anybody(machine: Machine) -> Machine:
    """``machine`` without who it is, where its files are, and what has a field of its own.

    Kernel, initrd and command line are read once, at boot, and by then are in RAM. How fast a disk
    may be is the host's side of it.
    """
    return dataclasses.replace(
        machine,
        uid=_NOBODY,
        name="",
        hardware=dataclasses.replace(machine.hardware, disk_bandwidth=0),
        machine_type="",
        accelerator="tcg",
        kernel=_NOWHERE,
        initrd=_NOWHERE,
        command_line="",
        memory_image=None,
        disks=tuple(dataclasses.replace(disk, path=_NOWHERE) for disk in machine.disks),
        run_dir=_NOWHERE,
        incoming=False,
    )
