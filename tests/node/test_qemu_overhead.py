"""How much memory a QEMU takes beyond its guest's RAM: the number that reservations are made of.

Anonymous memory outside the mapping of guest RAM, after a guest has kept the translator busy; TCG
with a buffer of 32 MiB. Seen: 66 MiB with 1 vCPU and 3 disks, 75 MiB with 2 vCPUs and 26 disks.
"""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.host.process import Identity
from controller.vmm.machine import Disk
from controller.vmm.qemu.driver import QemuDriver
from tests.node.rigs import MIB, Rig, sparse
from tests.node.testguest import Shell
from tests.waiting import until

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
BUSY = "n=0; while [ $n -lt 30 ]; do dd if=/dev/vda of=/dev/null bs=64k; ps; n=$((n+1)); done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig("qemu")
    yield made
    asyncio.run(made.end())
    made.close()


def beyond_ram(who: Identity) -> int:
    """Bytes of anonymous memory outside the mapping of guest RAM."""
    total, counts = 0, True
    for line in Path(f"/proc/{who.pid}/smaps").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            counts = not line.endswith("/dev/zero")
        elif word == "Anonymous:" and counts:
            total += int(rest.split()[0]) * 1024
    return total


@pytest.mark.parametrize(("vcpus", "disks"), [(1, 3), (2, 26)])
async def test_the_reservation_covers_what_qemu_takes_beyond_guest_ram(
    rig: Rig, vcpus: int, disks: int
) -> None:
    driver = QemuDriver(tb_size=32)
    run = rig.run(
        disks=tuple(
            Disk(f"disk{n}", sparse(rig.home / f"disk{n}", 4 * MIB), read_only=False)
            for n in range(disks)
        )
    )
    hardware = dataclasses.replace(run.machine.hardware, vcpus=vcpus, memory=256 * MIB)
    run.machine = dataclasses.replace(run.machine, hardware=hardware)
    vmm = await rig.start(driver, run)
    await driver.resume(vmm)
    said = bytearray()
    await until(lambda: said.extend(run.read("report")) or b"ready" in said, 60)
    await Shell(run.channel).run(BUSY, 60)  # fills the translation buffer
    taken = beyond_ram(vmm.identity)
    print(f"{vcpus} vcpus, {disks} disks: {taken / MIB:.1f} MiB beyond guest RAM")
    await driver.kill(vmm)
    await driver.release(vmm.uid)
    reserved = driver.capabilities.memory_overhead
    assert reserved / 3 < taken < reserved
