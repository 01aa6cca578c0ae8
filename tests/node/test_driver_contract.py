"""The contract of ``controller.vmm.driver``, kept by every driver: real QEMU and hollow VMMs."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from controller.core.observed import Ending
from controller.core.state import State
from controller.errors import Blocked, Bug, Retry, Timeout
from controller.host import process
from controller.host.process import Identity
from controller.vmm.driver import (
    BOOT_EDGES,
    SNAPSHOT_EDGES,
    Driver,
    EventKind,
    Handle,
    NotAllowed,
)
from controller.vmm.machine import Disk
from tests import leaks
from tests.node.rigs import MIB, VMM_UID, Heard, Rig, Run, keeper_of, sparse, status_of
from tests.node.testguest import Shell
from tests.waiting import until

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
KINDS = ("qemu", "hollow")


@pytest.fixture(params=KINDS, scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """One per kind of driver."""
    made = Rig(request.param)
    try:
        yield made
    finally:
        asyncio.run(made.end())
        made.close()


@pytest.fixture
async def driver(rig: Rig) -> AsyncIterator[Driver]:
    """A driver as a new agent makes it; its VMMs are let go of at the end."""
    made = rig.driver()
    yield made
    for run in rig.runs:
        await made.release(run.machine.uid)


@pytest.fixture
async def created(rig: Rig, driver: Driver) -> AsyncIterator[Run]:
    """A VMM that has not run yet, dead at the end."""
    run = rig.run()
    await rig.start(driver, run)
    yield run
    await driver.kill(handle(run))


@pytest.fixture(scope="module")
def booted(rig: Rig) -> Run:
    """A guest that runs, with all the disks one can have; its starter is gone. It stays running."""
    disks = [
        Disk(f"disk{n}", sparse(_home_of(rig, n) / f"disk{n}", 4 * MIB), n == 0, limited=n == 1)
        for n in range(26)
    ]
    run = rig.run(disks=tuple(disks))
    hardware = dataclasses.replace(run.machine.hardware, disk_bandwidth=2 * MIB)
    run.machine = dataclasses.replace(run.machine, hardware=hardware)
    asyncio.run(_boot(rig, run))
    return run


def _home_of(rig: Rig, number: int) -> Path:
    return rig.small if number == 25 else rig.home


@pytest.fixture(autouse=True)
def no_leaks(booted: Run, leak_scope: leaks.Scope) -> Iterator[None]:
    """As for every test here, but the booted guest belongs to all of them."""
    before = leaks.snapshot(leak_scope)
    yield
    if left := leaks.settle(before, leak_scope):
        leaks.kill_left_over(before, leak_scope)
        pytest.fail("left behind:\n" + "\n".join(left))


async def _boot(rig: Rig, run: Run) -> None:
    starter = rig.driver()
    await rig.start(starter, run)
    await starter.resume(handle(run))
    await up(rig, run)
    await starter.release(run.machine.uid)


async def up(rig: Rig, run: Run) -> None:
    """Wait until the guest says that it is there."""
    said = b""
    word = b"ready" if rig.kind == "qemu" else b"\x02\x00\x00\x00\x00\x00\x00\x00"  # STARTED

    def heard() -> bool:
        nonlocal said
        said += run.read("report")
        return word in said

    await until(heard, 60)


def handle(run: Run) -> Handle:
    """The handle of a run that was started."""
    assert run.handle is not None
    return run.handle


async def people(rig: Rig, run: Run, hollow: str, qemu: str = "", **arguments: object) -> object:
    """Use the monitor that is kept for people."""
    reader, writer = await asyncio.open_unix_connection(str(run.machine.run_dir / "people.sock"))
    try:
        if rig.kind == "hollow":
            writer.write(f"{hollow}\n".encode())
            return await reader.readline()
        await reader.readline()
        answer: dict[str, object] = {}
        for word, given in (("qmp_capabilities", {}), (qemu, arguments)):
            writer.write(json.dumps({"execute": word, "arguments": given}).encode())
            answer = {}
            while "return" not in answer:
                answer = json.loads(await reader.readline())
                assert "error" not in answer, answer
        return answer["return"]
    finally:
        writer.close()


# --- one life -------------------------------------------------------------------------------------


async def test_a_vmm_is_born_created_and_goes_through_its_states(
    rig: Rig, driver: Driver, created: Run
) -> None:
    vmm = handle(created)
    assert (await driver.state(vmm)).state is State.CREATED
    for order, state in (
        (driver.resume, State.RUNNING),
        (driver.pause, State.PAUSED),
        (driver.resume, State.RUNNING),
    ):
        for _ in range(2):  # each is idempotent
            await order(vmm)
            assert (await driver.state(vmm)).state is state
    assert created.locked
    await driver.kill(vmm)
    assert not created.locked


async def test_calls_that_the_state_does_not_allow_change_nothing(
    driver: Driver, created: Run, tmp_path: Path
) -> None:
    vmm = handle(created)
    fd = os.open(tmp_path / "state", os.O_CREAT | os.O_RDWR)
    with pytest.raises(NotAllowed):
        await driver.pause(vmm)
    with pytest.raises(NotAllowed):
        await driver.save(vmm, fd)
    with pytest.raises(NotAllowed):
        await driver.load(vmm, fd)
    os.close(fd)
    assert (await driver.state(vmm)).state is State.CREATED


async def test_a_dead_vmm_is_killed_again_without_complaint(driver: Driver, created: Run) -> None:
    vmm = handle(created)
    await driver.kill(vmm)
    await driver.kill(vmm)
    with pytest.raises(Retry):
        await driver.state(vmm)
    assert not process.is_alive(vmm.identity)


async def test_release_lets_the_vmm_live_and_is_repeatable(driver: Driver, created: Run) -> None:
    await driver.release(created.machine.uid)
    await driver.release(created.machine.uid)
    assert process.is_alive(handle(created).identity)
    assert (await driver.state(handle(created))).state is State.CREATED


async def test_capabilities_offer_what_every_driver_must(driver: Driver) -> None:
    assert driver.capabilities.edges >= BOOT_EDGES | SNAPSHOT_EDGES
    assert driver.capabilities.snapshot
    assert driver.capabilities.max_volumes == 23
    assert (State.SHUTDOWN, State.RUNNING) not in driver.capabilities.edges
    assert (await driver.probe()).machine_type


# --- a start that fails ---------------------------------------------------------------------------


async def test_failed_start_leaves_no_process_frees_the_lock_and_says_why(
    rig: Rig, driver: Driver
) -> None:
    run = rig.run(disks=(Disk("gone", rig.home / "no-such-disk", read_only=True),))
    with keeper_of(run, rig.home / "vmm.log") as log:
        run.launch = dataclasses.replace(run.launch, vmm_log_file=log)
        with pytest.raises(Blocked, match="no-such-disk") as caught:
            await rig.start(driver, run)
    assert caught.value.reason == "VmmRefused"
    assert "\n" not in str(caught.value)
    assert not run.locked


async def test_two_vmms_cannot_write_one_disk(rig: Rig, driver: Driver) -> None:
    if rig.kind == "hollow":
        pytest.skip("hollow VMMs lock no disks")
    disk = Disk("shared", sparse(rig.home / "shared", MIB), read_only=False)
    first, second = rig.run(disks=(disk,)), rig.run(disks=(disk,))
    await rig.start(driver, first)
    try:
        with keeper_of(second, rig.home / "second.log") as log:
            second.launch = dataclasses.replace(second.launch, vmm_log_file=log)
            with pytest.raises(Retry, match=r"Failed to get .* lock"):
                await rig.start(driver, second)
        assert not second.locked
    finally:
        await driver.kill(handle(first))


async def test_a_run_directory_too_long_for_sockets_is_refused(rig: Rig, driver: Driver) -> None:
    deep = rig.home / ("d" * 100)
    deep.mkdir()
    run = rig.run(run_dir=deep)
    with pytest.raises(Blocked, match="shorter run_dir"):
        await rig.start(driver, run)
    assert not run.locked


# --- adoption -------------------------------------------------------------------------------------

_STARTER = """
import asyncio, dataclasses, os, pickle, sys
sys.path.insert(0, {root!r})
from tests.node.rigs import Rig
async def main():
    rig = pickle.loads(bytes.fromhex(sys.argv[1]))
    run = pickle.loads(bytes.fromhex(sys.argv[2]))
    vmm = await rig.driver().start(run.machine, run.launch)
    print(vmm.identity.pid, vmm.identity.start_time, vmm.identity.boot_id, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_vmm_whose_starter_was_killed_is_adopted_unharmed(rig: Rig) -> None:
    import pickle

    run = rig.run()
    inherited = (
        run.launch.run_lock, run.launch.workload_log, run.launch.console_log, run.launch.vmm_log,
        run.launch.report, *run.launch.keep_open,
    )  # fmt: skip
    starter = subprocess.Popen(  # noqa: ASYNC220 - it is there at once
        [
            sys.executable, "-c", _STARTER.format(root=str(Path(__file__).parents[2])),
            pickle.dumps(rig).hex(), pickle.dumps(run).hex(),
        ],
        pass_fds=inherited,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert starter.stdout is not None
    pid, start_time, boot_id = (await asyncio.to_thread(starter.stdout.readline)).split()
    starter.kill()
    starter.wait()
    starter.stdout.close()
    rig.forget_ours(run)
    run.handle = Handle(
        run.machine.uid, Identity(int(pid), int(start_time), boot_id), run.machine.run_dir
    )
    assert run.locked
    heard, driver = Heard(), rig.driver()
    driver.on_event = heard
    await driver.adopt(run.handle)
    await driver.adopt(run.handle)
    assert (await driver.state(run.handle)).state is State.CREATED
    # Its death is told too, though it is nobody's child here.
    os.kill(int(pid), signal.SIGKILL)
    await until(lambda: heard.has(run, EventKind.DIED), 1.0)
    assert not run.locked
    await driver.release(run.machine.uid)


async def test_another_instances_vmm_is_a_bug_and_left_alone(
    rig: Rig, driver: Driver, created: Run
) -> None:
    await driver.release(created.machine.uid)
    wrong = dataclasses.replace(handle(created), uid="11111111-2222-3333-4444-555555555555")
    with pytest.raises(Bug):
        await driver.adopt(wrong)
    assert (await driver.state(handle(created))).state is State.CREATED


async def test_a_process_that_is_another_now_is_not_adopted(driver: Driver, created: Run) -> None:
    await driver.release(created.machine.uid)
    vmm = handle(created)
    stranger = dataclasses.replace(vmm.identity, start_time=vmm.identity.start_time + 1)
    with pytest.raises(Retry):
        await driver.adopt(dataclasses.replace(vmm, identity=stranger))


async def test_a_stopped_process_gives_timeout_and_is_well_again_after(
    rig: Rig, driver: Driver, created: Run
) -> None:
    vmm = handle(created)
    await driver.release(vmm.uid)
    os.kill(vmm.identity.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Timeout):
            await driver.adopt(vmm)
    finally:
        os.kill(vmm.identity.pid, signal.SIGCONT)
    assert (await driver.state(vmm)).state is State.CREATED


async def test_a_monitor_that_is_busy_gives_timeout(rig: Rig, driver: Driver, created: Run) -> None:
    other = rig.driver()
    with pytest.raises(Timeout):
        await other.adopt(handle(created))
    await other.release(created.machine.uid)
    assert (await driver.state(handle(created))).state is State.CREATED


# --- what it tells by itself ----------------------------------------------------------------------


async def test_death_is_told_within_a_second(rig: Rig, driver: Driver, created: Run) -> None:
    heard = Heard()
    driver.on_event = heard
    began = time.monotonic()
    os.kill(handle(created).identity.pid, signal.SIGKILL)
    await until(lambda: heard.has(created, EventKind.DIED), 1.0)
    assert time.monotonic() - began < 1.0
    with pytest.raises(Retry):
        await driver.state(handle(created))


async def test_a_change_behind_our_back_is_told(rig: Rig, driver: Driver, created: Run) -> None:
    await driver.resume(handle(created))
    heard = Heard()
    driver.on_event = heard
    await people(rig, created, "pause", "stop")
    await until(lambda: heard.has(created, EventKind.CHANGED), 1.0)
    assert (await driver.state(handle(created))).state is State.PAUSED


# --- confinement ----------------------------------------------------------------------------------


async def test_the_process_is_confined_and_detached(rig: Rig, created: Run) -> None:
    who = handle(created).identity
    status = status_of(who)
    assert set(status["Uid"].split()) == {str(VMM_UID)}
    assert set(status["Gid"].split()) == {str(VMM_UID)}
    assert status["NoNewPrivs"] == "1"
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert os.getsid(who.pid) == who.pid
    if rig.kind == "qemu":
        assert status["Seccomp"] == "2"


async def test_nothing_is_inherited_but_what_was_meant(rig: Rig, created: Run) -> None:
    secret = os.open("/etc/hostname", os.O_RDONLY)  # close-on-exec, as everything of ours
    fds = Path(f"/proc/{handle(created).identity.pid}/fd")
    held = [str(fd.readlink()) for fd in fds.iterdir()]
    os.close(secret)
    files = {path for path in held if path.startswith("/") and not path.startswith("/dev/")}
    ours = {str(path) for path in (created.lock_path, rig.kernel, rig.initrd)}
    ours |= {str(created.machine.run_dir / "ending")}
    assert {path for path in files if "hollow_process" not in path} <= ours
    assert str(created.lock_path) in files


async def test_ram_is_private_and_costs_nothing_untouched(created: Run) -> None:
    maps = Path(f"/proc/{handle(created).identity.pid}/smaps").read_text()
    block = maps[maps.index("/dev/zero") :].split("VmFlags")[0]
    sizes = dict(line.split(":") for line in block.splitlines()[1:] if ":" in line)
    assert sizes["Size"].split()[0] == str(128 * 1024)
    assert int(sizes["Shared_Dirty"].split()[0]) == 0
    assert int(sizes["Rss"].split()[0]) < 64 * 1024


# --- a guest that runs ----------------------------------------------------------------------------


async def test_a_running_guest_is_found_by_a_new_agent(driver: Driver, booted: Run) -> None:
    await driver.adopt(handle(booted))
    assert (await driver.state(handle(booted))).state is State.RUNNING


async def test_all_disks_are_there_under_their_serials(rig: Rig, booted: Run) -> None:
    if rig.kind == "hollow":
        pytest.skip("no guest to look")
    seen = await Shell(booted.channel).run("for d in /sys/block/vd*; do cat $d/serial; echo; done")
    assert set(seen.split()) == {disk.serial for disk in booted.machine.disks}
    read_only = await Shell(booted.channel).run("cat /sys/block/vda/ro /sys/block/vdb/ro")
    assert read_only.split() == ["1", "0"]


async def test_full_pipes_freeze_neither_the_vmm_nor_its_answers(
    rig: Rig, driver: Driver, booted: Run
) -> None:
    vmm = handle(booted)
    if rig.kind == "qemu":
        shell = Shell(booted.channel)
        await shell.run("(yes log >&5) & (yes console > /dev/ttyS0) &")
    else:
        for _ in range(40):
            await people(rig, booted, "print " + "x" * 4000)
    full = os.O_NONBLOCK
    probe = os.open(f"/proc/self/fd/{booted.launch.workload_log}", os.O_WRONLY | full)
    try:
        await until(lambda: not _has_room(probe))
    finally:
        os.close(probe)
    for _ in range(3):
        await driver.pause(vmm)
        await driver.resume(vmm)
    if rig.kind == "qemu":
        assert await shell.run("echo alive; killall yes") == "alive\n"
    assert (await driver.state(vmm)).state is State.RUNNING
    booted.read("workload")
    booted.read("console")


def _has_room(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


async def test_people_have_a_monitor_of_their_own(rig: Rig, driver: Driver, booted: Run) -> None:
    await driver.adopt(handle(booted))
    assert await people(rig, booted, "print hello", "query-status")
    assert (await driver.state(handle(booted))).state is State.RUNNING


async def test_disk_bandwidth_is_limited(rig: Rig, driver: Driver, booted: Run) -> None:
    if not driver.capabilities.disk_bandwidth:
        pytest.skip("this driver limits no disk")
    shell = Shell(booted.channel)

    async def seconds(disk: str) -> float:
        began = time.monotonic()
        await shell.run(f"dd if=/dev/zero of=/dev/{disk} bs=256k count=12 oflag=direct")
        return time.monotonic() - began

    free, limited = await seconds("vdc"), await seconds("vdb")
    assert limited > 0.9  # 3 MiB at 2 MiB/s, after a burst of a tenth of a second
    assert limited > 2 * free


async def test_a_full_disk_pauses_the_guest_until_there_is_space(
    rig: Rig, driver: Driver, booted: Run
) -> None:
    vmm, heard = handle(booted), Heard()
    driver.on_event = heard
    await driver.adopt(vmm)
    if rig.kind == "qemu":
        dd = "dd if=/dev/zero of=/dev/vdz bs=64k count=48 oflag=direct 2>/dev/null"
        await Shell(booted.channel).run(f"({dd}; echo written >&4) &")
    else:
        await people(rig, booted, "storage-full")
    await until(lambda: heard.has(booted, EventKind.STORAGE))
    seen = await driver.state(vmm)
    assert (seen.state, seen.storage_full) == (State.PAUSED, True)
    rig.make_space()
    await driver.resume(vmm)
    seen = await driver.state(vmm)
    assert (seen.state, seen.storage_full) == (State.RUNNING, False)
    if rig.kind == "qemu":
        said = b""

        def written() -> bool:
            nonlocal said
            said += booted.read("report")
            return b"written" in said

        await until(written)


async def test_device_state_is_saved_and_loads_into_a_new_vmm(
    rig: Rig, driver: Driver, booted: Run
) -> None:
    vmm = handle(booted)
    path = rig.home / "state"
    await driver.pause(vmm)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    await driver.save(vmm, fd)
    os.close(fd)
    assert path.stat().st_size > 20
    assert (await driver.state(vmm)).state is State.PAUSED

    image = sparse(rig.home / "image", booted.machine.hardware.memory)
    twin = rig.run(disks=_copies(rig, booted), incoming=True, memory_image=image)
    hardware = booted.machine.hardware
    twin.machine = dataclasses.replace(twin.machine, hardware=hardware)
    await rig.start(driver, twin)
    assert (await driver.state(handle(twin))).state is State.CREATED
    fd = os.open(path, os.O_RDONLY)
    await driver.load(handle(twin), fd)
    os.close(fd)
    assert (await driver.state(handle(twin))).state is State.PAUSED
    await driver.kill(handle(twin))

    await driver.resume(vmm)
    assert (await driver.state(vmm)).state is State.RUNNING


def _copies(rig: Rig, run: Run) -> tuple[Disk, ...]:
    return tuple(
        dataclasses.replace(disk, path=sparse(rig.home / f"copy-{disk.serial}", 4 * MIB))
        for disk in run.machine.disks
    )


@pytest.fixture
async def paused(rig: Rig, driver: Driver) -> AsyncIterator[Run]:
    """A VMM that has run for a moment, with a disk; dead at the end."""
    run = rig.run(disks=(_disk(rig, "one"),))
    await rig.start(driver, run)
    await driver.resume(handle(run))
    await driver.pause(handle(run))
    yield run
    await driver.kill(handle(run))


def _disk(rig: Rig, serial: str) -> Disk:
    return Disk(serial, sparse(rig.home / f"{serial}-{time.monotonic_ns()}", MIB), read_only=False)


async def _save(driver: Driver, run: Run, path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        await driver.save(handle(run), fd)
    finally:
        os.close(fd)


async def _load(driver: Driver, run: Run, path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        await driver.load(handle(run), fd)
    finally:
        os.close(fd)


async def test_a_saved_vmm_stays_paused_and_can_be_saved_again(
    driver: Driver, paused: Run, tmp_path: Path
) -> None:
    for number in range(2):
        await _save(driver, paused, tmp_path / str(number))
        assert (await driver.state(handle(paused))).state is State.PAUSED
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    await driver.resume(handle(paused))
    assert (await driver.state(handle(paused))).state is State.RUNNING


async def test_a_state_that_cannot_be_written_is_a_retry_and_harms_nobody(
    driver: Driver, paused: Run, tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    fd = os.open(tmp_path / "state", os.O_RDONLY)
    with pytest.raises(Retry) as caught:
        await driver.save(handle(paused), fd)
    os.close(fd)
    assert not isinstance(caught.value, NotAllowed)
    await driver.resume(handle(paused))
    assert (await driver.state(handle(paused))).state is State.RUNNING


async def test_state_is_loaded_once_into_a_vmm_that_waits_for_it(
    rig: Rig, driver: Driver, paused: Run, tmp_path: Path
) -> None:
    await _save(driver, paused, tmp_path / "state")
    twin = rig.run(disks=(_disk(rig, "one"),), incoming=True)
    await rig.start(driver, twin)
    assert (await driver.state(handle(twin))).state is State.CREATED
    with pytest.raises(NotAllowed):
        await _save(driver, twin, tmp_path / "none")
    await _load(driver, twin, tmp_path / "state")
    assert (await driver.state(handle(twin))).state is State.PAUSED
    with pytest.raises(NotAllowed):
        await _load(driver, twin, tmp_path / "state")
    # Not consumed: what was loaded can be saved, and is the same.
    await _save(driver, twin, tmp_path / "again")
    assert (tmp_path / "again").stat().st_size == (tmp_path / "state").stat().st_size
    assert (await driver.state(handle(twin))).state is State.PAUSED
    with pytest.raises(NotAllowed):
        await _load(driver, paused, tmp_path / "state")
    assert (await driver.state(handle(paused))).state is State.PAUSED
    await driver.kill(handle(twin))


def _damage(data: bytes, how: str) -> bytes:
    return {
        "empty": b"",
        "half": data[: len(data) // 2],
        "no state": b"no device state at all" * 100,
        "its beginning": b"\0" + data[1:],
    }[how]


@pytest.mark.parametrize("how", ["empty", "half", "no state", "its beginning"])
async def test_damaged_device_state_is_refused_and_ends_the_vmm(
    rig: Rig, driver: Driver, paused: Run, tmp_path: Path, how: str
) -> None:
    await _save(driver, paused, tmp_path / "state")
    (tmp_path / "state").write_bytes(_damage((tmp_path / "state").read_bytes(), how))
    await _refused(rig, driver, rig.run(disks=(_disk(rig, "one"),), incoming=True), tmp_path)


@pytest.mark.parametrize("other", ["a disk less", "a disk more", "more memory"])
async def test_other_devices_are_described_as_such_also_where_the_vmm_takes_the_state(
    rig: Rig, driver: Driver, paused: Run, tmp_path: Path, other: str
) -> None:
    await _save(driver, paused, tmp_path / "state")
    disks = [_disk(rig, "one"), _disk(rig, "two")]
    twin = rig.run(disks=tuple(disks[: {"a disk less": 0, "a disk more": 2}.get(other, 1)]))
    hardware = dataclasses.replace(
        twin.machine.hardware, memory=(4096 if other == "more memory" else 128) * MIB
    )
    twin.machine = dataclasses.replace(twin.machine, hardware=hardware, incoming=True)
    mine = await driver.describe(paused.machine)
    assert (await driver.describe(twin.machine)).devices != mine.devices
    if rig.kind == "qemu" and other != "a disk less":
        await rig.start(driver, twin)
        await _load(driver, twin, tmp_path / "state")  # QEMU does not notice
        await driver.kill(handle(twin))
        return
    await _refused(rig, driver, twin, tmp_path)


async def _refused(rig: Rig, driver: Driver, run: Run, home: Path) -> None:
    await rig.start(driver, run)
    with pytest.raises(Blocked) as caught:
        await _load(driver, run, home / "state")
    assert caught.value.reason == "DeviceStateRefused"
    assert not run.locked


async def test_a_vmm_that_is_killed_while_it_loads_says_nothing_of_the_state(
    rig: Rig, driver: Driver, paused: Run
) -> None:
    twin = rig.run(disks=(_disk(rig, "one"),), incoming=True)
    await rig.start(driver, twin)
    reader, writer = os.pipe()  # a state of which no more comes
    os.set_blocking(reader, False)
    os.write(writer, b"Q")
    try:
        if rig.kind == "hollow":
            (rig.faults / "all").write_text("load=hang")
        loading = asyncio.create_task(driver.load(handle(twin), reader))
        await asyncio.sleep(0.2)
        assert not loading.done()
        os.kill(handle(twin).identity.pid, signal.SIGKILL)
        with pytest.raises(Retry) as caught:
            await loading
    finally:
        (rig.faults / "all").unlink(missing_ok=True)
        os.close(reader)
        os.close(writer)
    assert caught.value.reason == "DeviceStateUnloaded"
    assert not twin.locked


async def test_memory_that_nobody_would_save_is_refused(
    rig: Rig, driver: Driver, paused: Run, tmp_path: Path
) -> None:
    if rig.kind == "hollow":
        (rig.faults / "all").write_text("save=unknown")
    else:
        added = {"qom-type": "memory-backend-ram", "id": "more", "size": 16 * MIB}
        await people(rig, paused, "", "object-add", **added)
    with pytest.raises(Blocked) as caught:
        await _save(driver, paused, tmp_path / "state")
    (rig.faults / "all").unlink(missing_ok=True)
    assert caught.value.reason == "UnknownMemory"
    assert (tmp_path / "state").stat().st_size == 0
    if rig.kind == "qemu":
        await people(rig, paused, "", "object-del", id="more")
    await _save(driver, paused, tmp_path / "state")


async def test_a_fork_is_described_as_its_source_and_other_hardware_is_not(
    rig: Rig, driver: Driver
) -> None:
    source = rig.run(disks=(_disk(rig, "one"),)).machine
    image = rig.home / "image"
    fork = rig.run(disks=(_disk(rig, "one"),), incoming=True, memory_image=image).machine
    model = await driver.describe(source)
    assert await driver.describe(fork) == model
    version = await driver.probe()
    assert (model.version, model.machine_type) == (version.version, version.machine_type)
    assert model.build
    for hardware in (
        dataclasses.replace(source.hardware, vcpus=2),
        dataclasses.replace(source.hardware, memory=256 * MIB),
    ):
        other = dataclasses.replace(source, hardware=hardware)
        assert (await driver.describe(other)).devices != model.devices
    more = dataclasses.replace(source, disks=(*source.disks, _disk(rig, "two")))
    assert (await driver.describe(more)).devices != model.devices


# --- how a guest ends -----------------------------------------------------------------------------


async def test_a_paused_guest_sees_the_power_button_when_it_goes_on(
    rig: Rig, driver: Driver, booted: Run
) -> None:
    vmm = handle(booted)
    await driver.pause(vmm)
    await driver.power_down(vmm)
    await driver.power_down(vmm)
    booted.read("report")
    assert (await driver.state(vmm)).state is State.PAUSED
    await driver.resume(vmm)
    if rig.kind == "qemu":
        said = b""

        def pressed() -> bool:
            nonlocal said
            said += booted.read("report")
            return b"button" in said

        await until(pressed)
        await Shell(booted.channel).send("poweroff -f")
    await until_shutdown(driver, booted)
    await expect_ending(rig, driver, booted, Ending.POWERED_OFF)


@pytest.mark.parametrize(
    ("order", "line", "ending"),
    [
        ("reboot", "reboot -f", Ending.RESET),
        ("panic", "echo c > /proc/sysrq-trigger", Ending.PANICKED),
    ],
)
async def test_reset_and_panic_are_told_apart_also_by_a_later_agent(
    rig: Rig, driver: Driver, order: str, line: str, ending: Ending
) -> None:
    run = rig.run()
    await rig.start(driver, run)
    await driver.resume(handle(run))
    await up(rig, run)
    if rig.kind == "qemu":
        await Shell(run.channel).send(line)
    else:
        await people(rig, run, order)
    await until_shutdown(driver, run)
    await expect_ending(rig, driver, run, ending)
    await driver.kill(handle(run))


async def until_shutdown(driver: Driver, run: Run) -> None:
    async with asyncio.timeout(20):
        while (await driver.state(handle(run))).state is not State.SHUTDOWN:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def expect_ending(rig: Rig, driver: Driver, run: Run, ending: Ending) -> None:
    vmm = handle(run)
    assert (await driver.state(vmm)).ending is ending
    with pytest.raises(NotAllowed):
        await driver.resume(vmm)
    assert process.is_alive(vmm.identity), "it stays to be asked"
    await driver.release(vmm.uid)
    later = rig.driver()
    assert (await later.state(vmm)).ending is ending
    await later.release(vmm.uid)
