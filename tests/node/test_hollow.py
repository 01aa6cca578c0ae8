"""Hollow VMMs: the faults they can be ordered to have, the guest they pretend, and the herd."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Blocked, Retry, Timeout
from controller.guest.channel import Channel
from controller.guest.configdisk import GuestConfig, write
from controller.guest.wire import Decoder, Frame, Key, ReportKind, integer, unpack
from controller.host import process
from controller.vmm.driver import Driver, EventKind, NotAllowed
from controller.vmm.hollow_herd import HollowHerd
from controller.vmm.machine import Disk
from tests.node.rigs import VMM_UID, Heard, Rig, Run
from tests.waiting import until

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig("hollow")
    yield made
    asyncio.run(made.end())
    made.close()


@pytest.fixture
async def driver(rig: Rig) -> AsyncIterator[Driver]:
    made = rig.driver()
    yield made
    for run in rig.runs:
        await made.release(run.machine.uid)


def order(rig: Rig, *faults: str) -> None:
    """Order faults for every VMM of the rig; none takes them back."""
    (rig.faults / "all").write_text("\n".join(faults))


def reports(run: Run) -> list[tuple[int, dict[int, bytes]]]:
    """The reports that arrived, as (kind, fields)."""
    frames: list[Frame] = Decoder().feed(run.read("report"))
    found = [dict(unpack(frame.payload)) for frame in frames]
    return [(integer(one[Key.KIND]), one) for one in found]


async def people(run: Run, line: str) -> None:
    """Order something to happen to the guest."""
    reader, writer = await asyncio.open_unix_connection(str(run.machine.run_dir / "people.sock"))
    writer.write(f"{line}\n".encode())
    assert await reader.readline() == b"ok\n"
    writer.close()


async def test_its_reports_are_those_of_the_real_init(rig: Rig, driver: Driver) -> None:
    run = rig.run()
    vmm = await rig.start(driver, run)
    assert reports(run) == []
    await driver.resume(vmm)
    assert [kind for kind, _ in reports(run)] == [ReportKind.BOOTED, ReportKind.STARTED]
    await people(run, "exit 3")
    ((kind, exit_),) = reports(run)
    assert kind == ReportKind.EXIT
    assert (integer(exit_[Key.CODE]), integer(exit_[Key.SIGNAL])) == (3, 0)
    seen = await driver.state(vmm)
    assert (seen.state, seen.ending) == (State.SHUTDOWN, Ending.POWERED_OFF)


async def test_its_channel_is_that_of_the_real_init(rig: Rig, driver: Driver) -> None:
    config = rig.home / "config"
    write(config, GuestConfig(hostname="h", machine_id="m", nonce="abc", argv=("x",)))
    os.chown(config, VMM_UID, VMM_UID)
    run = rig.run(disks=(Disk("config", config, read_only=True),))
    vmm = await rig.start(driver, run)
    await driver.resume(vmm)
    channel = await Channel.connect(run.channel, deadline=2.0)
    assert (await channel.info(2.0)).nonce == "abc"
    await channel.shutdown(1)
    await until(lambda: any(kind == ReportKind.EXIT for kind, _ in reports(run)))
    assert (await driver.state(vmm)).ending is Ending.POWERED_OFF
    await channel.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("pause=refuse", NotAllowed),
        ("pause=garbage", Retry),
        ("pause=close", Retry),
        ("pause=die", Retry),
    ],
)
async def test_ordered_faults_come_as_errors_and_pass(
    rig: Rig, driver: Driver, fault: str, error: type[Exception]
) -> None:
    run = rig.run()
    vmm = await rig.start(driver, run)
    await driver.resume(vmm)
    order(rig, fault)
    with pytest.raises(error):
        await driver.pause(vmm)
    order(rig)
    if fault.endswith("die"):
        await until(lambda: not run.locked)
    else:
        await driver.pause(vmm)
        assert (await driver.state(vmm)).state is State.PAUSED


async def test_a_hanging_answer_is_a_timeout(
    rig: Rig, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.vmm.hollow_link.SECONDS", 0.2)
    vmm = await rig.start(driver, rig.run())
    order(rig, "resume=hang")
    with pytest.raises(Timeout):
        await driver.resume(vmm)
    order(rig)
    await driver.resume(vmm)


async def test_an_ordered_death_at_start_leaves_nothing(rig: Rig, driver: Driver) -> None:
    order(rig, "start=die")
    run = rig.run()
    with pytest.raises(Blocked):
        await rig.start(driver, run)
    assert not run.locked


# --- the herd -------------------------------------------------------------------------------------


@pytest.fixture
async def herd(rig: Rig) -> AsyncIterator[HollowHerd]:
    os.chown(rig.home, VMM_UID, VMM_UID)
    made = HollowHerd(rig.home, rig.faults)
    yield made
    for run in rig.runs:
        await made.release(run.machine.uid)


async def test_a_herd_is_one_process_with_a_lock_for_each_vmm(rig: Rig, herd: HollowHerd) -> None:
    heard = Heard()
    herd.on_event = heard
    runs = [rig.run() for _ in range(20)]
    vmms = [await rig.start(herd, run) for run in runs]
    assert len({vmm.identity for vmm in vmms}) == 1
    assert all(run.locked for run in runs)
    await herd.resume(vmms[0])
    assert (await herd.state(vmms[0])).state is State.RUNNING
    assert (await herd.state(vmms[1])).state is State.CREATED
    await herd.kill(vmms[0])
    assert [run.locked for run in runs] == [False] + [True] * 19
    with pytest.raises(Retry):
        await herd.state(vmms[0])
    await herd.kill(vmms[0])
    assert process.is_alive(vmms[1].identity)
    # A later agent finds the same herd and its VMMs.
    await herd.release(vmms[1].uid)
    later = HollowHerd(rig.home, rig.faults)
    await later.adopt(vmms[1])
    more = rig.run()
    assert (await rig.start(later, more)).identity == vmms[1].identity
    await later.release(vmms[1].uid)
    await later.release(more.machine.uid)
    os.kill(vmms[1].identity.pid, signal.SIGKILL)
    await until(lambda: all(heard.has(run, EventKind.DIED) for run in runs[2:]))
    assert not any(run.locked for run in runs)


async def test_a_hollow_process_is_small(rig: Rig, driver: Driver) -> None:
    vmm = await rig.start(driver, rig.run())
    rollup = Path(f"/proc/{vmm.identity.pid}/smaps_rollup").read_text()
    own = sum(
        int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:")
    )
    assert own < 8 * 1024  # KiB; what many of them share is not counted
