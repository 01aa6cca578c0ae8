"""A real guest sleeps and wakes through memory images: it goes on where it was, again and again."""

import asyncio
import dataclasses
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from controller.errors import Blocked
from controller.memory import image
from controller.memory.manifest import Manifest
from controller.memory.pages import PAGE
from tests.node.lab import Lab, handle
from tests.node.rigs import MIB, VMM_UID, Rig, Run
from tests.node.testguest import Shell
from tests.waiting import until

pytestmark = pytest.mark.node

# A loop that never sleeps, so that a guest that stands still is told from one that runs. It notes
# when the number that it wrote last is not the one that it remembers: memory of two moments.
COUNTER = (
    "n=0; echo 0 > /count; (while :; do read was < /count; [ $was = $n ] || echo $n $was >> /gaps;"
    " n=$((n+1)); echo $n > /count; done) &"
)


async def boot(lab: Lab) -> Run:
    """A guest that counts, and keeps something that it can be asked for."""
    run = lab.rig.run()
    await lab.rig.start(lab.driver, run)
    await lab.driver.resume(handle(run))
    said = b""

    def ready() -> bool:
        nonlocal said
        said += run.read("report")
        return b"ready" in said

    await until(ready, 100)
    await Shell(run.channel).run("head -c 1000000 /dev/urandom > /fill", 60)
    await Shell(run.channel).run("yes torpor | head -c 4194304 > /big", 60)
    await Shell(run.channel).run(COUNTER, 60)
    return run


async def count(run: Run) -> int:
    """How far the guest has counted."""
    while not (text := (await Shell(run.channel).run("cat /count", 60)).strip()):
        pass  # it was between opening and writing
    return int(text)


async def counts_on(run: Run, since: int) -> int:
    """Wait until it counts further than ``since``; how far then."""
    async with asyncio.timeout(60):
        while (now := await count(run)) <= since:
            pass
    return now


@dataclasses.dataclass(frozen=True)
class Slept:
    """One guest that was put to sleep, and what it said before. It is woken by every test."""

    manifest: Manifest
    boot_id: str
    digest: str
    count: int


async def facts(run: Run) -> tuple[str, str]:
    """What the kernel calls this boot, and the digest of what the guest keeps in memory."""
    shell = Shell(run.channel)
    boot_id = await shell.run("cat /proc/sys/kernel/random/boot_id")
    return boot_id, await shell.run("sha256sum /fill")


async def no_gaps(run: Run) -> bool:
    """Whether the guest always found the number that it remembered."""
    return "gaps" not in await Shell(run.channel).run("ls /")


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU here")
    made = Rig("qemu")
    try:
        yield made
    finally:
        asyncio.run(made.end())
        made.close()


@pytest.fixture(scope="module")
def slept(rig: Rig) -> Slept:
    async def once() -> Slept:
        lab = Lab(rig)
        run = await boot(lab)
        boot_id, digest = await facts(run)
        last = await counts_on(run, 0)
        manifest = await lab.sleep(run)
        await lab.driver.release(run.machine.uid)
        return Slept(manifest, boot_id, digest, last)

    return asyncio.run(once())


@pytest.fixture
async def lab(rig: Rig, slept: Slept) -> AsyncIterator[Lab]:
    made = Lab(rig)
    try:
        yield made
    finally:
        await made.end()


async def test_a_guest_goes_on_counting_after_every_sleep(lab: Lab, slept: Slept) -> None:
    manifest, last = slept.manifest, slept.count
    assert manifest.delta is None
    for _ in range(3):
        run = await lab.wake(manifest)
        last = await counts_on(run, last)
        assert await facts(run) == (slept.boot_id, slept.digest)
        assert await no_gaps(run)
        manifest = await lab.sleep(run, manifest)
    assert manifest.base == slept.manifest.base
    assert manifest.delta is not None
    assert manifest.delta.on_disk < manifest.base.on_disk / 2, "a delta is what changed"
    assert lab.store.verify(manifest, full=True) == ()


async def test_what_a_woken_guest_finds_is_what_was_saved(lab: Lab, slept: Slept) -> None:
    """All guest RAM, byte for byte, before the first instruction after the wake."""
    run = await lab.wake(slept.manifest)
    await counts_on(run, slept.count)
    await lab.driver.pause(handle(run))
    manifest = await lab.save(run, slept.manifest)
    asleep = lab.ram_of(run, manifest)
    await lab.driver.kill(handle(run))

    twin = await lab.start(incoming=True, memory_image=lab.store.path(manifest.base))
    lab.store.put_back(handle(twin).identity, manifest)
    assert lab.ram_of(twin, manifest) == asleep


async def test_forks_of_one_sleep_go_each_their_own_way(lab: Lab, slept: Slept) -> None:
    forks = [await lab.wake(slept.manifest) for _ in range(2)]
    for number, fork in enumerate(forks):
        await Shell(fork.channel).run(f"echo {number} > /me")
    seen = [(await Shell(fork.channel).run("cat /me")).strip() for fork in forks]
    assert seen == ["0", "1"]
    one, two = [await lab.sleep(fork, slept.manifest) for fork in forks]
    assert one.base == two.base == slept.manifest.base
    assert one.delta != two.delta
    woken = await lab.wake(two)
    assert (await Shell(woken.channel).run("cat /me")).strip() == "1"
    assert await no_gaps(woken)


async def test_memory_that_the_guest_zeroed_is_zero_when_it_wakes(lab: Lab, slept: Slept) -> None:
    run = await lab.wake(slept.manifest)
    zero = "dd if=/dev/zero of=/big bs=1M count=4 conv=notrunc 2>/dev/null"
    await Shell(run.channel).run(zero, 60)
    manifest = await lab.sleep(run, slept.manifest)
    run = await lab.wake(manifest)
    text = await Shell(run.channel).run("sha256sum < /big", 60)
    assert text.split()[0] == hashlib.sha256(bytes(4 * MIB)).hexdigest()
    assert zero_pages(lab, manifest) * PAGE > 3 * MIB


def zero_pages(lab: Lab, manifest: Manifest) -> int:
    """How many pages its delta says are zero now."""
    assert manifest.delta is not None
    path = lab.store.path(manifest.delta)
    with path.open("rb") as file:
        runs = image.read(file.fileno(), path, manifest.delta.digest).runs.tolist()
    return sum(count for _, _, count, kind in runs if kind == image.RunKind.ZERO)


async def test_a_vmm_of_another_lineage_cannot_start_from_it(lab: Lab, slept: Slept) -> None:
    image_path = lab.store.path(slept.manifest.base)
    stranger = lab.rig.run(incoming=True, memory_image=image_path)
    stranger.launch = dataclasses.replace(stranger.launch, uid=VMM_UID - 1, gid=VMM_UID - 1)
    os.chown(stranger.machine.run_dir, VMM_UID - 1, VMM_UID - 1)
    with pytest.raises(Blocked):
        await lab.rig.start(lab.driver, stranger)
    assert b"Permission denied" in stranger.read("vmm")
    assert not stranger.locked
