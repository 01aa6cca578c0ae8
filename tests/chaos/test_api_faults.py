"""An API server that is down, refuses, loses answers or tells only the last of the news.

Faults F60 and F64 of the fault table, seen from an agent; VMMs are hollow.
"""

import asyncio

import pytest

from tests.agentkit import NAMESPACE, Rig, eventually

A = "a"


@pytest.mark.parametrize(
    "step",
    ["CreateRecord", "CreateOverlay", "FinishProvision", "PrepareRun", "StartVmm", "OrderBoot",
     "ResumeVmm"],
)  # fmt: skip
async def test_boot_goes_on_without_the_api_server_and_is_said_later(rig: Rig, step: str) -> None:
    uid = rig.world.create(A)
    rig.restart(f"step.{step}.before=sleep-0.7")
    await until_asleep(rig, step)
    await rig.world.server.stop()
    await eventually(lambda: rig.site.starts(uid) == 1)
    vmm = rig.site.vmm(uid)
    await rig.world.server.start()
    await rig.world.until(A, seconds=60)
    assert rig.site.vmm(uid) == vmm
    assert (rig.site.starts(uid), rig.site.record(uid).run) == (1, 1)


@pytest.mark.parametrize("step", ["OrderStop", "ShutDownGuest", "KillVmm", "CloseRun"])
async def test_stop_goes_on_without_the_api_server_and_is_said_later(rig: Rig, step: str) -> None:
    rig.restart(f"step.{step}.before=sleep-0.7")
    uid = await rig.run(A)
    rig.world.ask(A, "Stopped")
    await until_asleep(rig, step)
    await rig.world.server.stop()
    await eventually(lambda: rig.site.record(uid).open is None)
    assert rig.site.vmm(uid) is None
    await rig.world.server.start()
    await rig.world.until(A, seconds=60)
    assert rig.world.condition(A, "Scheduled")["reason"] == "Released"


@pytest.mark.parametrize(
    "step", ["WriteTombstone", "KillVmm", "DestroyDisks", "RemoveRecord", "DropFinalizer"]
)
async def test_delete_goes_on_without_the_api_server_and_ends_later(rig: Rig, step: str) -> None:
    rig.restart(f"step.{step}.before=sleep-0.7")
    uid = await rig.run(A)
    rig.world.delete(A)
    await until_asleep(rig, step)
    await rig.world.server.stop()
    await eventually(lambda: not rig.site.places.instance(uid).exists())
    await rig.world.server.start()
    await rig.world.until_gone(A, seconds=60)
    assert rig.left() == []


async def until_asleep(rig: Rig, step: str) -> None:
    said = f"failpoint step.{step}.before: sleep-0.7"
    await eventually(lambda: rig.site.log.exists() and said in rig.site.log.read_text())


async def test_agent_without_an_api_server_adopts_holds_and_catches_up(rig: Rig) -> None:
    rig.restart(orphan_sweep_seconds=0.2)
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    await rig.world.server.stop()
    rig.world.ask(A, "Paused")  # nobody can know
    rig.restart()
    await eventually(lambda: "1 of 1 living VMMs taken over" in rig.site.log.read_text())
    await eventually(lambda: rig.site.places.socket.exists())
    assert rig.site.vmm(uid) == vmm
    await rig.world.server.start()
    await rig.world.until(A, seconds=60)
    assert rig.site.vmm(uid) == vmm


@pytest.mark.parametrize("answer", [409, 429, 500, 503, 0])
@pytest.mark.parametrize("done", [False, True], ids=["refused", "answer lost"])
async def test_writes_that_fail_are_made_good(rig: Rig, answer: int, done: bool) -> None:
    """``done``: the server did it, and its answer was another one, or none."""
    rig.restart()
    patches = {"method": "PATCH", "path": f"/instances/{A}", "times": 2, "act": done}
    headers = {"Retry-After": "1"} if answer == 429 else {}
    fault = rig.world.server.fail(answer, headers=headers, **patches)
    uid = await rig.run(A)
    await eventually(lambda: fault.times == 0 or rig.world.settled(A))
    fault.times = 2
    await rig.world.until(A, "Stopped", seconds=60)
    fault.times = 2
    await rig.world.until_gone(A, seconds=60)
    assert not rig.site.places.instance(uid).exists()
    assert rig.left() == []


@pytest.mark.parametrize("edits", [("Stopped", "Running"), ("Paused", "Stopped", "Running")])
async def test_edits_that_nobody_saw_never_happened(rig: Rig, edits: tuple[str, ...]) -> None:
    rig.restart()
    uid = await rig.run(A)
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    for mode in edits:
        rig.world.ask(A, mode)
    rig.restart()
    await rig.world.until(A)
    assert rig.site.vmm(uid) == vmm
    assert rig.site.starts(uid) == 1


async def test_last_of_many_quick_edits_wins(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    for mode in ("Stopped", "Running", "Paused", "Stopped", "Running") * 4:
        rig.world.ask(A, mode)
        await asyncio.sleep(0.01)
    await rig.world.until(A)
    for mode in ("Paused", "Running", "Stopped") * 4:
        rig.world.ask(A, mode)
        await asyncio.sleep(0.01)
    await rig.world.until(A)
    record = rig.site.record(uid)
    assert (record.open, record.exit, record.restarts) == (None, None, 0)


async def test_successor_of_the_same_name_gets_a_disk_of_its_own(rig: Rig) -> None:
    """Deleted by force and made anew while no agent looked."""
    rig.restart(orphan_sweep_seconds=0.3)
    first = await rig.run(A)
    with rig.site.places.overlay(first).open("r+b") as disk:
        disk.write(b"the first one's")
    await rig.site.agent.kill()
    rig.world.server.remove("instances", A, NAMESPACE)
    second = rig.world.create(A)
    rig.restart()
    await rig.world.until(A)
    assert not rig.site.places.overlay(second).read_bytes().startswith(b"the first one's")
    await eventually(lambda: not rig.site.places.instance(first).exists())
    await rig.world.until_gone(A)
    assert rig.left() == []


async def test_eviction_puts_the_guest_to_sleep_and_a_new_reservation_wakes_it(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run(A)
    first = rig.world.get(A)["status"]["reservation"]
    rig.world.schedule(A, "False", "Evicting")
    await eventually(lambda: rig.site.record(uid).run == 2 and rig.world.settled(A))
    record = rig.site.record(uid)
    assert (record.released, record.exit, record.restarts) == (first, None, 0)
    assert record.open is not None
    assert record.open.repaired  # it was woken
    assert rig.site.starts(uid) == 1  # and not booted again


async def test_guest_is_never_started_on_a_reservation_that_was_given_back(rig: Rig) -> None:
    """An operator that shows old news: Scheduled=True with the Pod that this node let go."""
    rig.restart()
    uid = await rig.run(A)
    old = rig.world.get(A)["status"]["reservation"]
    await rig.world.until(A, "Stopped")
    rig.world.status(A, reservation=old)
    rig.world.schedule(A, "True", "Scheduled")
    rig.world.ask(A, "Running")
    await rig.world.until(A)
    assert rig.world.get(A)["status"]["reservation"] != old
    assert rig.site.record(uid).released == old
    assert rig.site.starts(uid) == 2
