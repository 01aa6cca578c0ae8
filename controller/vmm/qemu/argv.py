"""A Machine as QEMU's arguments: pure, so the same Machine always gives the same device model.

Ids and PCI addresses are explicit and fixed, because device state saved from one process is loaded
into another that must look the same. The layout of bus pcie.0 (slot 0 and 31 are the chipset's):

==== =======================================================================================
slot what
==== =======================================================================================
1    function 0 virtio-serial, 1 random numbers; 2-7 kept for balloon, memory, vsock
2-5  disks in the order of ``Machine.disks``, eight functions a slot: 3 of our own, 23 volumes
6    network interfaces, one a function
7    kept for root ports of devices passed through
==== =======================================================================================

RAM is a private mapping of the memory image. Without an image it is a private mapping of /dev/zero:
an image of holes without end, and the only one that costs nothing, since every page that a guest
touches in a sparse file is kept a second time by the file's page cache (on a tmpfs for ever).

What does not live here: opening anything. Numbers of inherited descriptors come in ``Descriptors``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Bug
from controller.vmm.machine import EMPTY_IMAGE, Disk, Machine

CHANNEL_PORT = "torpor.agent.0"
REPORT_PORT = "torpor.report.0"
LOG_PORT = "torpor.log.0"

MAX_DISKS = 32
MAX_VOLUMES = 23
DISK_LIMIT = "limit0"  # the one throttle group
ENDING_TRACE = "qemu_system_shutdown_request"

_SERIAL_LENGTH = 20  # bytes that virtio-blk shows to the guest
_FIRST_DISK_SLOT = 2
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MACHINE_OPTIONS = (
    "memory-backend=ram0,sata=off,smbus=off,usb=off,vmport=off,suppress-vmdesc=on,"
    "dump-guest-core=off,mem-merge=off"
)


@dataclass(frozen=True)
class Descriptors:
    """Numbers of what the process inherits: listening sockets and write ends of pipes."""

    monitor: int
    people: int
    channel: int
    workload_log: int
    console_log: int
    report: int


@dataclass(frozen=True)
class Topology:
    """How many of what the guest sees; their product is its vCPUs."""

    sockets: int
    cores: int
    threads: int


def topology(vcpus: int, threads_per_core: int) -> Topology:
    """One socket that mirrors the host's threads per core, when there are enough vCPUs to matter.

    With two vCPUs or fewer, or a number that does not divide, each is a core of its own.
    """
    if vcpus > 2 and threads_per_core > 1 and vcpus % threads_per_core == 0:
        return Topology(1, vcpus // threads_per_core, threads_per_core)
    return Topology(1, vcpus, 1)


def argv(binary: str, machine: Machine, fds: Descriptors, *, tb_size: int) -> list[str]:
    """Everything after fork. ``tb_size``: MiB of translated code kept under TCG.

    Raises Bug for a Machine that no guest of ours can have (disks, serials, sizes).
    """
    check(machine)
    return [
        binary,
        *_process(machine),
        *_chipset(machine, tb_size),
        *_boot(machine),
        *_monitors(fds),
        *_serials(fds),
        *_disks(machine),
        *_random(),
        *(("-incoming", "defer") if machine.incoming else ()),
    ]


def check(machine: Machine) -> None:
    """Raise Bug where the Machine breaks a rule that QEMU would only hint at, or not see at all."""
    where = f"machine of {machine.uid}"
    if len(machine.disks) > MAX_DISKS:
        raise Bug(f"{where}: {len(machine.disks)} disks, {MAX_DISKS} fit")
    serials = [disk.serial for disk in machine.disks]
    if len(set(serials)) != len(serials):
        raise Bug(f"{where}: two disks have one serial: {serials}")
    for disk in machine.disks:
        if not 0 < len(disk.serial.encode()) <= _SERIAL_LENGTH:
            raise Bug(f"{where}: disk serial {disk.serial!r} is not 1 to {_SERIAL_LENGTH} bytes")
    if machine.hardware.memory % 4096 or machine.hardware.memory <= 0:
        raise Bug(f"{where}: memory of {machine.hardware.memory} bytes is not whole pages")
    if machine.accelerator not in ("kvm", "tcg"):
        raise Bug(f"{where}: accelerator {machine.accelerator!r} is neither kvm nor tcg")


def _process(machine: Machine) -> Iterator[str]:
    yield from ("-name", f"guest={_comma(machine.name)},debug-threads=on")
    yield from ("-uuid", machine.uid)
    yield from ("-nodefaults", "-no-user-config", "-nographic")
    yield from ("-sandbox", _SECCOMP)
    yield from ("-msg", "timestamp=on")
    # Stopped until told otherwise; after an end the process stays, so that it can be asked why.
    yield from ("-S", "-no-reboot", "-no-shutdown", "-action", "panic=pause")
    # One line when the guest powers off, none when it resets: see state.py.
    yield from ("-trace", f"enable={ENDING_TRACE}", "-D", str(ending_file(machine.run_dir)))


def ending_file(run_dir: Path) -> Path:
    """Where QEMU notes that the guest powered off."""
    return run_dir / "ending"


def _chipset(machine: Machine, tb_size: int) -> Iterator[str]:
    memory = machine.hardware.memory
    image = machine.memory_image or EMPTY_IMAGE
    cpus = topology(machine.hardware.vcpus, machine.threads_per_core)
    yield from ("-machine", f"{machine.machine_type},{_MACHINE_OPTIONS}")
    if machine.accelerator == "kvm":
        yield from ("-accel", "kvm", "-cpu", "host")
    else:
        yield from ("-accel", f"tcg,tb-size={tb_size}", "-cpu", "max")
    yield from (
        "-smp",
        f"cpus={machine.hardware.vcpus},sockets={cpus.sockets},cores={cpus.cores},"
        f"threads={cpus.threads}",
    )
    yield from ("-m", f"size={memory // 1024}k")
    yield from (
        "-object",
        f"memory-backend-file,id=ram0,size={memory},mem-path={_comma(str(image))},"
        "share=off,readonly=on,rom=off",
    )
    # Device state is saved without RAM, and loads only where no configuration section is expected.
    yield from ("-global", "migration.send-configuration=off")
    # A guest that put itself to sleep would be a state that the graph does not have.
    yield from ("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1")


def _boot(machine: Machine) -> Iterator[str]:
    yield from ("-bios", "qboot.rom")
    yield from ("-kernel", str(machine.kernel), "-initrd", str(machine.initrd))
    yield from ("-append", machine.command_line)


def _monitors(fds: Descriptors) -> Iterator[str]:
    for name, fd in (("monitor", fds.monitor), ("people", fds.people)):
        yield from ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off")
        yield from ("-mon", f"chardev={name},mode=control")


def _serials(fds: Descriptors) -> Iterator[str]:
    pipes = {"console": fds.console_log, "report": fds.report, "log": fds.workload_log}
    for number, (name, fd) in enumerate(pipes.items(), start=1):
        # A file chardev on a descriptor set: QEMU makes the pipe non-blocking, so a full one holds
        # back the guest's port, never the VMM.
        yield from ("-add-fd", f"fd={fd},set={number}")
        yield from ("-chardev", f"file,id={name},path=/dev/fdset/{number},append=on")
    yield from ("-device", "isa-serial,id=serial0,chardev=console")
    yield from ("-device", "pvpanic,id=panic0")
    yield from ("-chardev", f"socket,id=channel,fd={fds.channel},server=on,wait=off")
    yield from ("-device", "virtio-serial-pci,id=vser0,max_ports=4,addr=1.0,multifunction=on")
    ports = (("channel", CHANNEL_PORT), ("report", REPORT_PORT), ("log", LOG_PORT))
    for number, (chardev, port) in enumerate(ports, start=1):
        name = f"port{number},nr={number},chardev={chardev},name={port}"
        yield from ("-device", f"virtserialport,bus=vser0.0,id={name}")


def _random() -> Iterator[str]:
    yield from ("-object", "rng-builtin,id=entropy0")
    yield from ("-device", "virtio-rng-pci,id=rng0,rng=entropy0,addr=1.1")


def _disks(machine: Machine) -> Iterator[str]:
    limits = {"bps-total": machine.hardware.disk_bandwidth}
    yield from (
        "-object",
        _json({"qom-type": "throttle-group", "id": DISK_LIMIT, "limits": limits}),
    )
    for position, disk in enumerate(machine.disks):
        yield from ("-blockdev", _json(_blockdev(position, disk)))
        slot, function = _FIRST_DISK_SLOT + position // 8, position % 8
        multifunction = ",multifunction=on" if function == 0 else ""
        yield "-device"
        yield (
            f"virtio-blk-pci,id=blk{position},drive=disk{position},serial={_comma(disk.serial)},"
            f"num-queues=1,werror=enospc,rerror=report,addr={slot:x}.{function}{multifunction}"
        )


def _blockdev(position: int, disk: Disk) -> dict[str, object]:
    """Raw and never probed; under the throttle group from the start where the disk is limited."""
    common: dict[str, object] = {"read-only": disk.read_only}
    if not disk.read_only:
        common["discard"] = "unmap"  # what the guest frees goes back to the host
    file = {
        **common,
        "driver": "file",
        "filename": str(disk.path),
        "locking": "auto" if disk.read_only else "on",
    }
    name = f"disk{position}"
    if not disk.limited:
        return {**common, "driver": "raw", "node-name": name, "file": file}
    raw = {**common, "driver": "raw", "file": file}
    throttle = {"driver": "throttle", "throttle-group": DISK_LIMIT, "file": raw}
    return {**common, **throttle, "node-name": name}


def _comma(text: str) -> str:
    return text.replace(",", ",,")


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))
