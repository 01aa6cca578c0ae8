"""The device model: equal for an Instance and its forks, different for whatever a guest can see."""

import dataclasses
from pathlib import Path

import pytest

from controller.core.desired import Hardware
from controller.vmm.driver import DeviceModel, Version
from controller.vmm.machine import Disk, Machine
from controller.vmm.qemu.model import Cpu, device_model, host_cpu

VERSION = Version("10.0.2", "pc-q35-10.0")
MAX = Cpu("max")
DISKS = (
    Disk("rootfs", Path("/s/root.erofs"), read_only=True),
    Disk("overlay", Path("/i/1/overlay"), read_only=False, limited=True),
)
SOURCE = Machine(
    uid="6f1b0c1e-0000-4000-8000-000000000001",
    name="ns/source",
    hardware=Hardware("qemu", 4, 512 * 1024 * 1024, 10**10, disk_bandwidth=8_000_000),
    threads_per_core=2,
    machine_type="pc-q35-10.0",
    accelerator="tcg",
    kernel=Path("/s/vmlinuz"),
    initrd=Path("/s/initrd"),
    command_line="console=ttyS0 quiet",
    memory_image=None,
    disks=DISKS,
    run_dir=Path("/run/t/1"),
)
FORK = dataclasses.replace(
    SOURCE,
    uid="6f1b0c1e-0000-4000-8000-000000000002",
    name="ns/fork,of",
    memory_image=Path("/m/2000/base-1"),
    disks=(DISKS[0], dataclasses.replace(DISKS[1], path=Path("/i/2/overlay"))),
    run_dir=Path("/run/t/2"),
    incoming=True,
)


def model(
    machine: Machine = SOURCE, version: Version = VERSION, build: str = "b", cpu: Cpu = MAX
) -> DeviceModel:
    return device_model(machine, version, build, cpu)


def test_a_fork_is_to_its_guest_what_its_source_is() -> None:
    assert model(FORK) == model(SOURCE)


def test_the_newest_machine_type_is_named_where_none_was() -> None:
    assert model(dataclasses.replace(SOURCE, machine_type="")) == model(SOURCE)


def _hardware(**changes: int) -> Machine:
    hardware = dataclasses.replace(SOURCE.hardware, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(SOURCE, hardware=hardware)


def _disks(*disks: Disk) -> Machine:
    return dataclasses.replace(SOURCE, disks=disks)


VISIBLE = {
    "vcpus": _hardware(vcpus=2),
    "memory": _hardware(memory=1024 * 1024 * 1024),
    "threads": dataclasses.replace(SOURCE, threads_per_core=1),
    "one disk less": _disks(DISKS[0]),
    "one disk more": _disks(*DISKS, Disk("more", Path("/x"), read_only=True)),
    "other order": _disks(*reversed(DISKS)),
    "other serial": _disks(DISKS[0], dataclasses.replace(DISKS[1], serial="other")),
    "other access": _disks(DISKS[0], dataclasses.replace(DISKS[1], read_only=True)),
}


@pytest.mark.parametrize("machine", VISIBLE.values(), ids=VISIBLE.keys())
def test_what_the_guest_can_see_makes_other_devices(machine: Machine) -> None:
    other = model(machine)
    assert other.devices != model().devices
    assert dataclasses.replace(other, devices=model().devices) == model()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (model(version=Version("10.1.0", "pc-q35-10.0")), "version"),
        (model(build="c"), "build"),
        (model(dataclasses.replace(SOURCE, machine_type="pc-q35-9.2")), "machine_type"),
        (model(cpu=Cpu("EPYC")), "cpu_model"),
        (model(cpu=Cpu("max", ("avx",))), "cpu_features"),
    ],
)
def test_each_other_difference_shows_in_its_own_field_only(other: DeviceModel, field: str) -> None:
    assert getattr(other, field) != getattr(model(), field)
    assert dataclasses.replace(other, **{field: getattr(model(), field)}) == model()


@pytest.mark.parametrize(
    "machine",
    [
        _hardware(disk_bandwidth=1),
        _hardware(overlay=1),
        dataclasses.replace(SOURCE, kernel=Path("/other"), initrd=Path("/another")),
    ],
)
def test_what_is_no_device_makes_no_difference(machine: Machine) -> None:
    assert model(machine) == model()


CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
stepping\t: 1
flags\t\t: vme fpu de avx2

processor\t: 1
model name\t: another
flags\t\t: none
"""


def test_the_hosts_cpu_is_named_with_its_features_in_order() -> None:
    assert host_cpu(CPUINFO) == Cpu(
        "host: AMD EPYC 7763 64-Core Processor (25/1/1)", ("avx2", "de", "fpu", "vme")
    )


def test_a_cpu_that_says_nothing_is_not_taken_for_another() -> None:
    assert host_cpu("") == Cpu("host: ? (?/?/?)")
    assert host_cpu("") != host_cpu(CPUINFO)
