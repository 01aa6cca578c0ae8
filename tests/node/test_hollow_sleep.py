"""Hollow guests asleep: what they keep in RAM and on disk, and what they make of being woken."""

import asyncio
import dataclasses
import json
import os
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from controller.core.state import State
from controller.errors import Blocked, Retry, Timeout
from controller.guest.channel import Channel
from controller.guest.configdisk import GuestConfig, write
from controller.host import process
from controller.vmm.driver import NotAllowed
from controller.vmm.hollow_herd import HollowHerd
from controller.vmm.machine import Disk
from tests.node.lab import LINEAGE, Lab, handle
from tests.node.rigs import MIB, VMM_UID, Rig, Run, sparse, status_of
from tests.waiting import until

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig("hollow")
    yield made
    asyncio.run(made.end())
    made.close()


@pytest.fixture
async def lab(rig: Rig) -> AsyncIterator[Lab]:
    made = Lab(rig)
    yield made
    await made.end()


def order(rig: Rig, *orders: str) -> None:
    """Orders for every VMM of the rig; none takes them back."""
    (rig.faults / "all").write_text("\n".join(orders))


async def ask(run: Run, line: str) -> str:
    """Say one line on the monitor for people; its answer."""
    reader, writer = await asyncio.open_unix_connection(str(run.machine.run_dir / "people.sock"))
    try:
        writer.write(f"{line}\n".encode())
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()


async def count(run: Run) -> int:
    return int((await ask(run, "count")).removeprefix("ok "))


async def gaps(run: Run) -> int:
    return int((await ask(run, "gaps")).removeprefix("ok "))


async def identity(run: Run) -> dict[str, str]:
    found: dict[str, str] = json.loads(await ask(run, "identity"))
    return found


async def counts_to(run: Run, number: int) -> None:
    """Wait until it has counted that far."""
    async with asyncio.timeout(20):
        while await count(run) < number:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


def overlay(rig: Rig, name: str = "overlay") -> Disk:
    return Disk("overlay", sparse(rig.home / name, MIB), read_only=False)


def journal(disk: Disk) -> list[int]:
    """What the guest wrote, in order."""
    slots = struct.unpack("<4095Q", disk.path.read_bytes()[8 : 8 * 4096])
    return list(slots[: slots.index(0)])


async def test_a_guest_goes_on_counting_from_where_it_slept(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    assert await count(run) == 1
    assert await ask(run, "fill 8") == "ok 8"
    first = await lab.sleep(run)
    assert first.delta is None
    woken = await lab.wake(first)
    assert await count(woken) == 2
    second = await lab.sleep(woken, first)
    assert second.base == first.base
    assert second.delta is not None
    assert second.delta.on_disk < 64 * 1024, "a delta is what changed"
    again = await lab.wake(second)
    assert await count(again) == 3
    assert await identity(again) == await identity(again)


@pytest.mark.parametrize("uid", [VMM_UID, VMM_UID - 1])
async def test_a_base_is_closed_to_whoever_has_not_its_group(lab: Lab, uid: int) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    manifest = await lab.sleep(run)
    base = lab.store.path(manifest.base)
    stranger = lab.rig.run(incoming=True, memory_image=base)
    stranger.launch = dataclasses.replace(stranger.launch, uid=uid, gid=uid, groups=())
    os.chown(stranger.machine.run_dir, uid, uid)
    with pytest.raises(Blocked):
        await lab.rig.start(lab.driver, stranger)
    assert b"Permission denied" in stranger.read("vmm")
    assert not stranger.locked
    read = ["setpriv", f"--reuid={uid}", "--clear-groups", "cat", str(base)]
    done = subprocess.run(read, capture_output=True, text=True, timeout=10)  # noqa: ASYNC221
    assert "Permission denied" in done.stderr
    assert done.stdout == ""
    woken = await lab.wake(manifest)
    assert str(LINEAGE) in status_of(handle(woken).identity)["Groups"].split()
    assert str(base) in Path(f"/proc/{handle(woken).identity.pid}/maps").read_text()


async def test_every_byte_of_ram_is_there_again(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    await ask(run, "fill 4")
    first = await lab.sleep(run)
    run = await lab.wake(first)
    await ask(run, "fill 2")
    await lab.driver.pause(handle(run))
    second = await lab.save(run, first)
    before = lab.ram_of(run, second)
    woken = await lab.wake(second, resume=False)
    assert lab.ram_of(woken, second) == before
    assert before.count(0) < len(before)


async def test_a_guest_ticks_only_when_ordered_and_only_while_it_runs(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    await lab.driver.pause(handle(run))
    order(lab.rig, "tick=on")
    await lab.driver.resume(handle(run))
    await counts_to(run, 5)
    await lab.driver.pause(handle(run))
    stands = await count(run)
    await asyncio.sleep(0.2)
    assert await count(run) == stands
    order(lab.rig)
    await lab.driver.resume(handle(run))
    await asyncio.sleep(0.2)
    assert await count(run) == stands + 1


async def test_an_idle_guest_takes_no_cpu(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    stat = Path(f"/proc/{handle(run).identity.pid}/schedstat")
    switches = stat.read_text().split()[2]
    await asyncio.sleep(0.5)
    assert stat.read_text().split()[2] == switches


async def test_the_journal_on_disk_goes_on_over_sleep_and_boot(lab: Lab) -> None:
    order(lab.rig, "tick=on")
    disk = overlay(lab.rig)
    run = await lab.start(disks=(disk,))
    await lab.driver.resume(handle(run))
    await counts_to(run, 21)
    manifest = await lab.sleep(run)
    slept = journal(disk)
    assert slept[:2] == [1, 20]
    run = await lab.wake(manifest, disks=(disk,))
    await counts_to(run, slept[-1] + 22)
    woken = journal(disk)
    assert woken[: len(slept)] == slept
    assert len(woken) >= len(slept) + 2
    await lab.driver.kill(handle(run))
    run = await lab.start(disks=(disk,))
    await lab.driver.resume(handle(run))
    await until(lambda: len(journal(disk)) > len(woken))
    assert await gaps(run) == 0
    every = journal(disk)
    assert every == sorted(set(every))


async def test_memory_that_is_older_than_its_disk_is_noticed(lab: Lab) -> None:
    order(lab.rig, "tick=on")
    disk = overlay(lab.rig)
    run = await lab.start(disks=(disk,))
    await lab.driver.resume(handle(run))
    manifest = await lab.sleep(run)
    for _ in range(2):  # the same snapshot twice: what must never happen
        run = await lab.wake(manifest, disks=(disk,))
        found = await gaps(run)
        await lab.driver.kill(handle(run))
    assert found == 1


async def test_a_disk_that_is_older_than_its_memory_is_noticed(lab: Lab) -> None:
    order(lab.rig, "tick=on")
    disk = overlay(lab.rig)
    run = await lab.start(disks=(disk,))
    await lab.driver.resume(handle(run))
    old = disk.path.read_bytes()
    await lab.driver.pause(handle(run))
    await lab.driver.resume(handle(run))
    manifest = await lab.sleep(run)
    disk.path.write_bytes(old)
    run = await lab.wake(manifest, disks=(disk,))
    assert await gaps(run) == 1


async def test_ram_of_another_moment_than_its_device_state_hangs_the_guest(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    first = await lab.sleep(run)
    second = await lab.sleep(await lab.wake(first), first)
    mixed = second.model_copy(update={"state": first.state})
    woken = await lab.wake(mixed)
    assert (await lab.driver.state(handle(woken))).state is State.RUNNING
    assert await count(woken) == 2
    with pytest.raises(Timeout):
        await Channel.connect(woken.channel, deadline=0.3)


# --- who it is ------------------------------------------------------------------------------------


async def booted(lab: Lab) -> Run:
    """A guest with a name."""
    config = lab.rig.home / "config"
    write(config, GuestConfig(hostname="source", machine_id="a" * 32, nonce="one", argv=("x",)))
    os.chown(config, VMM_UID, VMM_UID)
    run = await lab.start(disks=(Disk("config", config, read_only=True),))
    await lab.driver.resume(handle(run))
    return run


async def test_a_woken_guest_is_its_source_until_it_is_told_otherwise(lab: Lab) -> None:
    run = await booted(lab)
    was = await identity(run)
    assert (was["hostname"], was["machine_id"], was["nonce"]) == ("source", "a" * 32, "one")
    manifest = await lab.sleep(run)
    forks = [await lab.wake(manifest, disks=run.machine.disks) for _ in range(2)]
    for fork in forks:
        assert await identity(fork) == was
    for number, fork in enumerate(forks):
        channel = await Channel.connect(fork.channel, deadline=2.0)
        assert channel.nonce == "one"
        assert fork.read("report") == b""
        await channel.step_clock(1_000_000_000 + number, 2.0)
        await channel.reseed(os.urandom(64), 2.0)
        await channel.identify(f"fork-{number}", f"{number:032x}", f"run-{number}", 2.0)
        assert (await channel.info(2.0)).nonce == f"run-{number}"
        await channel.close()
        assert fork.read("report"), "a new run's report file must be whole"
    one, two = [await identity(fork) for fork in forks]
    assert one["boot_id"] == two["boot_id"] == was["boot_id"]
    assert (one["hostname"], one["machine_id"], one["clock"]) == ("fork-0", "0" * 32, "1000000000")
    assert len({one["urandom"], two["urandom"], was["urandom"]}) == 3
    # It is kept in RAM, so it lasts.
    again = await lab.wake(await lab.sleep(forks[0], manifest), disks=run.machine.disks)
    assert await identity(again) == one


@pytest.mark.parametrize("fault", ["hang", "refuse"])
async def test_a_repair_that_is_ordered_to_fail_changes_nothing(lab: Lab, fault: str) -> None:
    run = await booted(lab)
    was = await identity(run)
    channel = await Channel.connect(run.channel, deadline=2.0)
    order(lab.rig, f"repair={fault}")
    error = Timeout if fault == "hang" else Retry
    with pytest.raises(error):
        await channel.step_clock(1, 0.3)
    with pytest.raises(error):
        await channel.reseed(bytes(64), 0.3)
    with pytest.raises(error):
        await channel.identify("h", "b" * 32, "n", 0.3)
    assert await identity(run) == was
    order(lab.rig)
    await channel.identify("h", "b" * 32, "n", 2.0)
    assert (await identity(run))["hostname"] == "h"
    await channel.close()


async def test_a_repair_that_makes_no_sense_is_refused(lab: Lab) -> None:
    run = await booted(lab)
    was = await identity(run)
    channel = await Channel.connect(run.channel, deadline=2.0)
    for attempt in (
        channel.step_clock(-1, 2.0),
        channel.reseed(bytes(63), 2.0),
        channel.reseed(bytes(513), 2.0),
        channel.identify("a/b", "b" * 32, "n", 2.0),
        channel.identify("h", "b" * 31, "n", 2.0),
        channel.identify("h", "b" * 32, "", 2.0),
    ):
        with pytest.raises(Retry):
            await attempt
    assert await identity(run) == was
    await channel.close()


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "lives"),
    [
        ("refuse", Retry, True),
        ("unknown", Blocked, True),
        ("garbage", Retry, True),
        ("hang", Timeout, True),
        ("die", Retry, False),
    ],
)
async def test_a_save_that_fails_leaves_the_guest_able_to_go_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[Exception], lives: bool
) -> None:
    monkeypatch.setattr("controller.vmm.hollow_link.SECONDS", 0.3)
    run = await lab.start()
    await lab.driver.resume(handle(run))
    await lab.driver.pause(handle(run))
    order(lab.rig, f"save={fault}")
    with pytest.raises(error) as caught:
        await lab.save(run)
    assert not isinstance(caught.value, NotAllowed)
    order(lab.rig)
    if lives:
        await lab.driver.resume(handle(run))
        assert await count(run) == 2
    else:
        await until(lambda: not run.locked)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("refuse", Blocked), ("garbage", Retry), ("hang", Retry), ("die", Retry), ("close", Retry)],
)
async def test_a_load_that_fails_leaves_a_dead_vmm_and_a_good_snapshot(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[Exception]
) -> None:
    monkeypatch.setattr("controller.vmm.hollow_link.SECONDS", 0.3)
    run = await lab.start()
    await lab.driver.resume(handle(run))
    manifest = await lab.sleep(run)
    order(lab.rig, f"load={fault}")
    with pytest.raises(error) as caught:
        await lab.wake(manifest)
    assert caught.value.reason.startswith("DeviceState")  # type: ignore[attr-defined]
    assert not lab.rig.runs[-1].locked
    order(lab.rig, "load=0.1")
    assert await count(await lab.wake(manifest)) == 2


async def test_a_guest_that_was_ordered_to_hang_after_its_wake_does(lab: Lab) -> None:
    run = await lab.start()
    await lab.driver.resume(handle(run))
    manifest = await lab.sleep(run)
    order(lab.rig, "wake=hang")
    woken = await lab.wake(manifest)
    with pytest.raises(Timeout):
        await Channel.connect(woken.channel, deadline=0.3)
    await lab.driver.power_down(handle(woken))
    assert (await lab.driver.state(handle(woken))).state is State.RUNNING


# --- the herd -------------------------------------------------------------------------------------


async def test_a_guest_of_a_herd_sleeps_and_wakes_and_is_not_mistaken(lab: Lab) -> None:
    os.chown(lab.rig.home, VMM_UID, VMM_UID)
    herd = lab.driver = HollowHerd(lab.rig.home, lab.rig.faults)
    run, other = await lab.start(), await lab.start()
    herded = handle(run).identity
    try:
        await herd.resume(handle(run))
        await herd.pause(handle(run))
        with pytest.raises(Blocked) as caught:
            await lab.save(run)
        assert caught.value.reason == "UnknownMemory"
        await herd.kill(handle(other))
        manifest = await lab.sleep(run)
        woken = await lab.wake(manifest)
        assert handle(woken).identity == herded
        assert await count(woken) == 2
        await herd.kill(handle(woken))
    finally:
        for each in (run, other):
            await herd.release(each.machine.uid)
        process.kill(herded, signal.SIGKILL)
