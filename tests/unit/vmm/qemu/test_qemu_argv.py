"""QEMU's arguments: the device model is fixed, explicit and complete."""

import dataclasses
import json
from pathlib import Path

import pytest

from controller.core.desired import Hardware
from controller.errors import Bug
from controller.vmm.machine import Disk, Machine
from controller.vmm.qemu.argv import MAX_DISKS, Descriptors, Topology, argv, topology

FDS = Descriptors(10, 11, 12, 13, 14, 15)
MACHINE = Machine(
    uid="6f1b0c1e-0000-4000-8000-000000000001",
    name="ns/web,1",
    hardware=Hardware("qemu", 4, 512 * 1024 * 1024, 10**10, disk_bandwidth=8_000_000),
    threads_per_core=2,
    machine_type="pc-q35-10.0",
    accelerator="tcg",
    kernel=Path("/s/vmlinuz"),
    initrd=Path("/s/initrd"),
    command_line="console=ttyS0 quiet",
    memory_image=None,
    disks=(
        Disk("rootfs", Path("/s/root.erofs"), read_only=True),
        Disk("overlay", Path("/s/overlay"), read_only=False, limited=True),
        Disk("config", Path("/s/config"), read_only=True),
    ),
    run_dir=Path("/run/t/x"),
)


def words(machine: Machine = MACHINE, tb_size: int = 32) -> list[str]:
    return argv("/usr/bin/qemu", machine, FDS, tb_size=tb_size)


def after(option: str, machine: Machine = MACHINE) -> list[str]:
    """Every value of that option, in order."""
    given = words(machine)
    return [given[n + 1] for n, word in enumerate(given) if word == option]


def blockdevs(machine: Machine = MACHINE) -> list[dict[str, object]]:
    return [json.loads(text) for text in after("-blockdev", machine)]


@pytest.mark.parametrize(
    ("vcpus", "threads", "expected"),
    [
        (1, 2, Topology(1, 1, 1)),
        (2, 2, Topology(1, 2, 1)),  # too few to matter
        (3, 2, Topology(1, 3, 1)),  # does not divide
        (4, 2, Topology(1, 2, 2)),
        (6, 2, Topology(1, 3, 2)),
        (8, 1, Topology(1, 8, 1)),
        (8, 4, Topology(1, 2, 4)),
        (64, 2, Topology(1, 32, 2)),
    ],
)
def test_topology_mirrors_the_hosts_threads_where_it_divides(
    vcpus: int, threads: int, expected: Topology
) -> None:
    assert topology(vcpus, threads) == expected


@pytest.mark.parametrize("vcpus", range(1, 65))
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_topology_multiplies_to_the_vcpus(vcpus: int, threads: int) -> None:
    shape = topology(vcpus, threads)
    assert shape.sockets * shape.cores * shape.threads == vcpus


def test_the_same_machine_gives_the_same_arguments() -> None:
    assert words() == words(dataclasses.replace(MACHINE))


def test_machine_type_is_versioned_and_stripped_of_what_no_guest_needs() -> None:
    (machine,) = after("-machine")
    assert machine.split(",")[0] == "pc-q35-10.0"
    for option in ("memory-backend=ram0", "sata=off", "smbus=off", "usb=off", "vmport=off",
                   "suppress-vmdesc=on"):  # fmt: skip
        assert option in machine.split(",")
    assert after("-bios") == ["qboot.rom"]


def test_ram_is_a_private_read_only_mapping_of_the_image() -> None:
    (ram,) = [text for text in after("-object") if "ram0" in text]
    assert ram == (
        "memory-backend-file,id=ram0,size=536870912,mem-path=/dev/zero,share=off,readonly=on,rom=off"
    )
    woken = dataclasses.replace(MACHINE, memory_image=Path("/m/base,1"))
    (ram,) = [text for text in after("-object", woken) if "ram0" in text]
    assert "mem-path=/m/base,,1,share=off,readonly=on,rom=off" in ram
    assert after("-m") == ["size=524288k"]
    assert "migration.send-configuration=off" in after("-global")


def test_it_starts_stopped_and_every_boot_is_a_new_process() -> None:
    given = words()
    for option in ("-S", "-no-reboot", "-no-shutdown", "-nodefaults", "-no-user-config"):
        assert option in given
    assert "-incoming" not in given
    assert after("-incoming", dataclasses.replace(MACHINE, incoming=True)) == ["defer"]
    assert after("-uuid") == [MACHINE.uid]


def test_seccomp_denies_all_that_can_be_denied() -> None:
    assert after("-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]


@pytest.mark.parametrize(
    ("accelerator", "expected", "cpu"), [("kvm", "kvm", "host"), ("tcg", "tcg,tb-size=32", "max")]
)
def test_accelerator_and_cpu_go_together(accelerator: str, expected: str, cpu: str) -> None:
    machine = dataclasses.replace(MACHINE, accelerator=accelerator)
    assert after("-accel", machine) == [expected]
    assert after("-cpu", machine) == [cpu]


def test_disks_are_raw_never_probed_and_locked_when_writable() -> None:
    rootfs, overlay, config = blockdevs()
    assert rootfs["driver"] == config["driver"] == "raw"
    assert rootfs["read-only"] is config["read-only"] is True
    assert overlay["driver"] == "throttle"
    inner = overlay["file"]
    assert isinstance(inner, dict)
    assert inner["driver"] == "raw"
    assert inner["file"]["locking"] == "on"
    assert inner["file"]["filename"] == "/s/overlay"


@pytest.mark.parametrize("bandwidth", [0, 8_000_000])
def test_the_throttle_group_is_there_from_the_start(bandwidth: int) -> None:
    hardware = dataclasses.replace(MACHINE.hardware, disk_bandwidth=bandwidth)
    machine = dataclasses.replace(MACHINE, hardware=hardware)
    (group,) = [json.loads(text) for text in after("-object", machine) if "throttle" in text]
    assert group["limits"] == {"bps-total": bandwidth}
    assert blockdevs(machine)[1]["throttle-group"] == group["id"]


def test_devices_have_addresses_of_their_own_with_room_for_23_volumes() -> None:
    disks = (*MACHINE.disks, *(Disk(f"vol{n}", Path(f"/v/{n}"), False) for n in range(23)))
    full = dataclasses.replace(MACHINE, disks=disks)
    pci = [text for text in after("-device", full) if ",addr=" in text]
    addresses = [text.split(",addr=")[1].split(",")[0] for text in pci]
    assert len(addresses) == len(set(addresses)) == len(disks) + 2
    assert all(1 <= int(address.split(".")[0], 16) <= 5 for address in addresses)
    # A slot with functions needs its function 0, and that one says so.
    for slot in {address.split(".")[0] for address in addresses}:
        (first,) = [text for text in pci if f",addr={slot}.0" in text]
        assert "multifunction=on" in first


def test_a_volume_more_moves_no_device() -> None:
    more = dataclasses.replace(
        MACHINE, disks=(*MACHINE.disks, Disk("vol0", Path("/v/0"), read_only=False))
    )
    assert [text for text in after("-device", more) if text in after("-device")] == after("-device")


def test_user_text_cannot_add_options() -> None:
    assert after("-name") == ["guest=ns/web,,1,debug-threads=on"]


@pytest.mark.parametrize(
    "change",
    [
        {"disks": tuple(Disk(f"d{n}", Path("/d"), True) for n in range(MAX_DISKS + 1))},
        {"disks": (Disk("a", Path("/1"), True), Disk("a", Path("/2"), True))},
        {"disks": (Disk("x" * 21, Path("/1"), True),)},
        {"disks": (Disk("", Path("/1"), True),)},
        {"hardware": Hardware("qemu", 1, 4097, 0)},
        {"hardware": Hardware("qemu", 1, 0, 0)},
        {"accelerator": "kvm:tcg"},
    ],
)
def test_a_machine_that_cannot_be_is_a_bug(change: dict[str, object]) -> None:
    with pytest.raises(Bug):
        words(dataclasses.replace(MACHINE, **change))  # type: ignore[arg-type]
