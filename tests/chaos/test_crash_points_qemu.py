"""The same life with a crash at every point, on real guests. Three boots in all."""

import shutil
from pathlib import Path

import pytest

from controller.settings import cache_dir
from tests.agentkit import Rig, eventually, furnish_for_qemu
from tests.chaos.life import Life
from tests.node import bareguest

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]


@pytest.fixture
def qemu(rig: Rig, tmp_path: Path) -> Rig:
    """A rig whose guests are real."""
    bareguest.artifacts()  # the kernel, once for this machine
    rootfs = bareguest.rootfs(tmp_path / "rootfs.erofs")
    furnish_for_qemu(rig.site, rootfs, cache_dir() / "kernels")
    return rig


async def test_one_life_on_qemu_with_a_crash_at_every_point_is_a_life(qemu: Rig) -> None:
    life = Life(qemu, "a", hypervisor="qemu", memory="192Mi")
    await life.live()
    assert life.missed() == set()
    assert qemu.left() == []


async def test_qemu_guest_does_not_notice_that_its_agent_was_killed(qemu: Rig) -> None:
    qemu.restart()
    uid = qemu.world.create("a", hypervisor="qemu", memory="192Mi")
    await qemu.world.until("a", seconds=90)
    vmm, run = qemu.site.vmm(uid), qemu.site.record(uid).run
    for mode in ("Paused", "Running"):
        await qemu.site.agent.kill()
        qemu.restart()
        await qemu.world.until("a", mode)
    assert (qemu.site.vmm(uid), qemu.site.record(uid).run) == (vmm, run)
    await qemu.world.until("a", "Stopped")
    await eventually(lambda: qemu.site.vmm(uid) is None)
    await qemu.world.until_gone("a")
    assert qemu.left() == []
