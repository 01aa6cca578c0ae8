"""Agents that die, start on a bad disk, or are not who they should be: guests notice nothing.

Faults F7, F49, F51, F52, F54, F55, F59 of the fault table; VMMs are hollow.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.host.process import Identity, boot_id, is_alive
from controller.node.record import Record, encode
from tests.agentkit import KILLED, ROOT, Rig, eventually, make_site, tail

MANY = 18


async def run_many(rig: Rig, count: int = MANY) -> dict[str, str]:
    """Names and UIDs of Running Instances."""
    uids = {name: rig.world.create(name) for name in (f"i{n}" for n in range(count))}
    await eventually(lambda: all(map(rig.world.settled, uids)), seconds=90)
    return uids


def who_runs(rig: Rig, uids: dict[str, str]) -> dict[str, Identity | None]:
    return {name: rig.site.vmm(uid) for name, uid in uids.items()}


async def until_synced(rig: Rig) -> None:
    """The newest agent has adopted, has its kernel and has looked at everything once."""
    said = len(rig.world.server.requests)
    await eventually(
        lambda: any(
            seen.is_watch and seen.path.endswith("/instances")
            for seen in rig.world.server.requests[said:]
        )
    )


async def test_agent_killed_six_times_keeps_every_guest_and_writes_nothing(rig: Rig) -> None:
    rig.restart()
    uids = await run_many(rig)
    before, taken = who_runs(rig, uids), []
    versions = {name: rig.world.get(name)["metadata"]["resourceVersion"] for name in uids}
    for _ in range(6):
        await rig.site.agent.kill()
        begun = time.monotonic()
        rig.restart()
        await until_synced(rig)
        taken.append(time.monotonic() - begun)
    rig.world.ask("i0", "Paused")  # the last agent has come so far as to act
    await rig.world.until("i0")
    print(f"{MANY} taken over and watched in {', '.join(f'{each:.2f}' for each in taken)} s")
    assert who_runs(rig, uids) == before
    assert rig.site.log.read_text().count(f"{MANY} of {MANY} living VMMs taken over") == 6
    for name in set(uids) - {"i0"}:
        assert rig.world.get(name)["metadata"]["resourceVersion"] == versions[name], name
        assert rig.site.starts(uids[name]) == 1


async def test_agent_as_it_is_typed_adopts_what_another_left(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    argv = [
        sys.executable,
        "-m",
        "controller",
        "node",
        "--config",
        str(rig.site.home / "node.yaml"),
    ]
    argv += ["--kubeconfig", str(rig.site.kubeconfig)]
    with rig.site.log.open("ab") as log:
        agent = await asyncio.to_thread(subprocess.Popen, argv, cwd=ROOT, stdout=log, stderr=log)
    try:
        await rig.world.until("a", "Paused")
        assert rig.site.vmm(uid) == vmm
    finally:
        agent.terminate()
        assert await asyncio.to_thread(agent.wait, 30) == 0
    assert rig.site.vmm(uid) == vmm, "an agent that leaves must leave its guests"


async def test_agent_that_leaves_leaves_its_guests(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    assert await rig.site.agent.leave() == 0
    assert rig.site.vmm(uid) == vmm
    rig.restart()
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm


async def test_status_that_was_not_written_is_written_by_the_next_agent(rig: Rig) -> None:
    fault = rig.world.server.fail(503, method="PATCH", path="/status", times=10**6)
    uid = rig.world.create("a")
    rig.restart()
    await eventually(lambda: rig.site.starts(uid) == 1)
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    assert rig.world.state("a") == "Stopped"
    fault.times = 0
    rig.restart()
    await rig.world.until("a")
    assert rig.site.vmm(uid) == vmm
    assert rig.site.starts(uid) == 1


# --- hung VMMs ------------------------------------------------------------------------------------


async def test_one_hung_vmm_holds_up_no_other_and_reads_as_unknown(rig: Rig) -> None:
    rig.restart()
    uids = await run_many(rig)
    before = who_runs(rig, uids)
    await rig.site.agent.kill()
    hung = before["i3"]
    assert hung is not None
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        rig.restart()
        for name in set(uids) - {"i3"}:
            rig.world.ask(name, "Paused")
        others = set(uids) - {"i3"}
        await eventually(lambda: all(map(rig.world.settled, others)), seconds=30)
        print(f"{len(others)} of {MANY} paused {time.monotonic() - begun:.2f} s after the start")
        await eventually(lambda: rig.world.state("i3") == "Unknown", lambda: rig.world.get("i3"))
        status = rig.world.get("i3")["status"]
        assert status["stateError"]
        assert rig.world.ready("i3")["status"] == "Unknown"
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    await rig.world.until("i3")
    assert "stateError" not in rig.world.get("i3")["status"]
    assert who_runs(rig, uids) == before


async def test_vmm_that_hangs_is_unknown_and_is_never_stopped_or_replaced(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    os.kill(vmm.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        rig.world.ask("a", "Paused")
        await eventually(lambda: rig.world.state("a") == "Unknown", lambda: rig.world.get("a"))
        print(f"Unknown after {time.monotonic() - begun:.2f} s")
        assert is_alive(vmm)
    finally:
        os.kill(vmm.pid, signal.SIGCONT)
    await rig.world.until("a")
    assert rig.site.vmm(uid) == vmm


@pytest.mark.parametrize("lie", ["garbage", "close", "hang", "refuse"])
async def test_vmm_that_answers_nonsense_is_unknown_and_lives_on(rig: Rig, lie: str) -> None:
    rig.restart()
    uid = rig.world.create("a")
    rig.site.order(uid)
    await rig.world.until("a")
    vmm = rig.site.vmm(uid)
    rig.site.order(uid, f"state={lie}")
    await rig.site.agent.kill()
    rig.restart()
    await eventually(lambda: rig.world.state("a") == "Unknown", lambda: rig.world.get("a"))
    assert rig.world.get("a")["status"]["stateError"]
    rig.site.order(uid)
    await rig.world.until("a")
    assert rig.site.vmm(uid) == vmm


# --- the state directory --------------------------------------------------------------------------


@contextmanager
def small_state(rig: Rig) -> Iterator[Path]:
    """A state directory on a file system of its own, which is soon full."""
    state = rig.site.places.state
    kept = rig.site.home / "kept"
    state.rename(kept)
    state.mkdir(mode=0o711)
    _run("mount", "-t", "tmpfs", "-o", "size=4m,mode=711", "none", str(state))
    for path in kept.iterdir():
        _run("mv", str(path), str(state))
    yield state


def fill(directory: Path) -> Path:
    """Take all space there is; the file to be removed."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    return filler


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=20, capture_output=True)


async def test_agent_on_a_full_state_dir_keeps_its_guests_and_says_no_space(rig: Rig) -> None:
    with small_state(rig) as state:
        rig.restart()
        uids = await run_many(rig, 3)
        before = who_runs(rig, uids)
        await rig.site.agent.kill()
        filler = fill(state)
        rig.restart()
        rig.world.ask("i1", "Stopped")
        await rig.world.until_reason("i1", "NoSpace")
        assert who_runs(rig, uids) == before
        filler.unlink()
        await rig.world.until("i1", seconds=90)
        assert who_runs(rig, uids) == before | {"i1": None}


async def test_agent_on_a_read_only_state_dir_touches_nothing(rig: Rig) -> None:
    with small_state(rig) as state:
        rig.restart()
        uids = await run_many(rig, 3)
        before = who_runs(rig, uids)
        await rig.site.agent.kill()
        _run("mount", "--bind", str(state), str(state))  # VMMs keep what they have open
        _run("mount", "-o", "remount,ro,bind", str(state))
        agent = rig.restart()
        rig.world.ask("i1", "Stopped")
        assert await agent.ended() == 1
        assert "Traceback" not in rig.site.log.read_text(), tail(rig.site.log)
        assert who_runs(rig, uids) == before
        _run("umount", str(state))
        rig.restart()
        await rig.world.until("i1")
        assert who_runs(rig, uids) == before | {"i1": None}


# --- who the agent is -----------------------------------------------------------------------------


async def refused(rig: Rig, word: str, **settings: str) -> None:
    """An agent with these settings does not start, says why, and changes no file."""
    files = sorted(rig.site.places.state.rglob("*"))
    at = rig.site.log.stat().st_size
    agent = rig.site.start(**settings)
    assert await agent.ended() == 1
    said = rig.site.log.read_bytes()[at:].decode()
    assert word in said, said
    assert "Traceback" not in said
    assert sorted(rig.site.places.state.rglob("*")) == files


async def test_agent_of_another_name_or_install_refuses_and_touches_nothing(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm, mine = rig.site.vmm(uid), rig.site.settings
    await rig.site.agent.kill()
    await refused(rig, "node_name", node_name="somebody-else")
    await refused(rig, "install_id", node_name=mine.node_name, install_id="00000000")
    rig.restart(install_id=mine.install_id)
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm


async def test_agent_without_its_identity_refuses_and_touches_nothing(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    identity = rig.site.places.state / "identity.json"
    kept = identity.read_bytes()
    identity.unlink()
    await refused(rig, "missing")
    identity.write_bytes(b"{")
    await refused(rig, "cannot be read")
    identity.write_bytes(kept)
    rig.restart()
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm


async def test_agent_pointed_at_another_cluster_refuses_and_touches_nothing(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    await rig.site.agent.kill()
    remembered = rig.site.places.state / "identity.json"
    kept = json.loads(remembered.read_bytes())
    remembered.write_text(json.dumps({**kept, "cluster": "another"}))
    await refused(rig, "cluster")
    assert rig.site.vmm(uid) == vmm
    remembered.write_text(json.dumps(kept))


async def test_second_agent_on_a_state_dir_refuses_and_the_first_goes_on(rig: Rig) -> None:
    first = rig.restart()
    uid = await rig.run("a")
    vmm = rig.site.vmm(uid)
    second = rig.site.start()
    assert await second.ended() == 1
    assert "another node agent works on" in rig.site.log.read_text()
    rig.site.agents.remove(second)
    await rig.world.until("a", "Paused")
    assert rig.site.vmm(uid) == vmm
    assert not first.dead


async def test_second_agent_of_a_node_waits_until_the_first_is_silent(rig: Rig) -> None:
    """Two hosts that were given one node name: the one that came first keeps the node."""
    first = rig.restart(lease_seconds=2)
    uid = await rig.run("a")
    elsewhere = rig.site.home / "2"
    elsewhere.mkdir(mode=0o711)
    other = make_site(elsewhere, rig.zygote, rig.site.kubeconfig, lease_seconds=2)
    try:
        other.start()
        await eventually(
            lambda: other.log.exists() and "another agent serves this node" in other.log.read_text()
        )
        rig.world.ask("a", "Paused")
        await rig.world.until("a")
        assert list(other.places.instances.iterdir()) == []
        assert not first.dead
        assert await first.leave() == 0
    finally:
        await other.close()
    assert rig.site.vmm(uid) is not None
    assert other.agent.code == KILLED


# --- the host -------------------------------------------------------------------------------------


def as_after_a_reboot(rig: Rig, uid: str) -> None:
    """Its VMM is gone, and all times and pids in its record are of another boot."""
    path = rig.site.places.instance(uid) / "record.json"
    boot = boot_id()
    text = encode(rig.site.record(uid)).decode().replace(boot, "0" * len(boot))
    body = json.loads(text)["record"]
    path.write_bytes(encode(Record.model_validate(body)))


async def test_reboot_of_the_host_boots_again_what_ran_and_is_no_failure(rig: Rig) -> None:
    rig.restart()
    modes = {"running": "Running", "paused": "Paused", "stopped": "Stopped"}
    uids = {name: await rig.run(name, restartPolicy="Never") for name in modes}
    for name, mode in modes.items():
        await rig.world.until(name, mode)
    inodes = {name: rig.site.places.overlay(uid).stat().st_ino for name, uid in uids.items()}
    await rig.site.reboot()
    rig.restart()
    await eventually(
        lambda: rig.site.starts(uids["running"]) == 2 and rig.site.starts(uids["paused"]) == 2
    )
    for name in modes:
        await rig.world.until(name)
    assert rig.site.starts(uids["stopped"]) == 1
    for name, uid in uids.items():
        record = rig.site.record(uid)
        assert (record.exit, record.exited, record.restarts) == (None, False, 0), name
        assert rig.site.places.overlay(uid).stat().st_ino == inodes[name]


async def test_process_that_has_a_dead_vmms_pid_is_never_signalled(rig: Rig) -> None:
    """After a reboot somebody else has the number that the record names."""
    rig.restart()
    uid = await rig.run("a")
    await rig.site.agent.kill()
    vmm = rig.site.vmm(uid)
    assert vmm is not None
    os.kill(vmm.pid, signal.SIGKILL)
    await eventually(lambda: not rig.site.vmms())
    as_after_a_reboot(rig, uid)
    record = rig.site.record(uid)
    assert record.open is not None
    assert record.open.vmm is not None
    bystander = await asyncio.create_subprocess_exec("sleep", "600")
    theirs = record.open.vmm.process.model_copy(update={"pid": bystander.pid})
    named = record.open.vmm.model_copy(update={"process": theirs, "keeper": theirs})
    opened = record.open.model_copy(update={"vmm": named})
    path = rig.site.places.instance(uid) / "record.json"
    path.write_bytes(encode(record.model_copy(update={"open": opened})))
    rig.restart()
    await eventually(lambda: rig.site.starts(uid) == 2)
    await rig.world.until_gone("a")
    assert bystander.returncode is None
    bystander.kill()
    await bystander.wait()


async def test_log_keeper_that_died_is_replaced_under_a_living_guest(rig: Rig) -> None:
    rig.restart()
    uid = await rig.run("a")
    vmm, opened = rig.site.vmm(uid), rig.site.record(uid).open
    assert opened is not None
    assert opened.vmm is not None
    first = opened.vmm.keeper.identity
    os.kill(first.pid, signal.SIGKILL)

    def keeper() -> Identity | None:
        run = rig.site.record(uid).open
        return run.vmm.keeper.identity if run and run.vmm else None

    await eventually(lambda: keeper() != first)
    rig.site.happen(uid, "print still heard")
    log = rig.site.places.logs(uid) / "workload.log"
    await eventually(lambda: "still heard" in log.read_text(), log.read_text)
    assert rig.site.vmm(uid) == vmm
