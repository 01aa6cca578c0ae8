"""Identity, death and detachment of processes, without root."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.host import process
from controller.host.process import Gone, Sandbox
from tests.waiting import until

ME = Sandbox(uid=os.geteuid(), gid=os.getegid())
SLEEP = ["/bin/sleep", "1000"]


async def end(child: process.Process) -> None:
    child.signal(signal.SIGKILL)
    await child.wait()
    child.close()


async def test_identity_is_stable_and_tells_the_living_from_the_dead() -> None:
    child = await process.spawn(SLEEP, sandbox=ME)
    assert process.identity(child.identity.pid) == child.identity
    assert process.is_alive(child.identity)
    await end(child)
    assert not process.is_alive(child.identity)


async def test_glance_tells_the_stopped_from_the_running_and_the_gone() -> None:
    child = await process.spawn(SLEEP, sandbox=ME)
    who = child.identity
    child.signal(signal.SIGSTOP)
    await until(lambda: process.state_letter(who) == "T")
    child.signal(signal.SIGCONT)
    await until(lambda: process.state_letter(who) == "S")
    assert process.state_letter(replace(who, start_time=who.start_time + 1)) == ""
    assert process.state_letter(replace(who, boot_id="another")) == ""
    await end(child)
    await until(lambda: process.state_letter(who) in ("", "Z"))


async def test_name_full_of_parentheses_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    odd = tmp_path / "x) R 1 (2"
    odd.symlink_to("/bin/sleep")
    child = await process.spawn([str(odd), "1000"], sandbox=ME)
    name = Path(f"/proc/{child.identity.pid}/comm")
    await until(lambda: name.read_text().startswith("x)"))
    assert process.identity(child.identity.pid) == child.identity
    await end(child)


async def test_wrong_start_time_or_boot_refuses_to_signal() -> None:
    child = await process.spawn(SLEEP, sandbox=ME)
    for stranger in (
        replace(child.identity, start_time=child.identity.start_time + 1),
        replace(child.identity, boot_id="another"),
    ):
        assert not process.is_alive(stranger)
        with pytest.raises(Gone):
            process.kill(stranger, signal.SIGKILL)
        with pytest.raises(Gone):
            process.open_pidfd(stranger)
    assert process.is_alive(child.identity)
    process.kill(child.identity, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    with pytest.raises(Gone):
        process.kill(child.identity, signal.SIGKILL)
    child.close()


async def test_zombie_counts_as_dead() -> None:
    child = await process.spawn(SLEEP, sandbox=ME)
    child.signal(signal.SIGKILL)
    await process.wait_dead(child.pidfd)
    assert process.identity(child.identity.pid) == child.identity  # nobody has reaped it
    assert not process.is_alive(child.identity)
    with pytest.raises(Gone):
        process.kill(child.identity, signal.SIGTERM)
    child.close()
    with pytest.raises(Gone):
        process.identity(child.identity.pid)


async def test_many_may_wait_for_one_death_and_one_may_give_up() -> None:
    child = await process.spawn(SLEEP, sandbox=ME)
    before = len(list(Path("/proc/self/fd").iterdir()))
    waiters = [asyncio.create_task(process.wait_dead(child.pidfd)) for _ in range(5)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    child.signal(signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*waiters[1:]), 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert await child.wait() == -signal.SIGKILL
    child.close()


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -15 $$", -15)])
async def test_wait_gives_the_exit_status_again_and_again(script: str, status: int) -> None:
    child = await process.spawn(["/bin/sh", "-c", script], sandbox=ME)
    assert [await child.wait(), await child.wait()] == [status, status]
    child.close()


async def test_adopted_process_that_is_no_child_only_tells_its_death() -> None:
    shell = await process.spawn(["/bin/sh", "-c", "sleep 1000 & wait"], sandbox=ME)
    children = Path(f"/proc/{shell.identity.pid}/task/{shell.identity.pid}/children")
    await until(lambda: children.read_text())
    pid = int(children.read_text().split()[0])
    grandchild = process.Process.adopt(process.identity(pid))
    grandchild.signal(signal.SIGKILL)
    assert await grandchild.wait() is None
    grandchild.close()
    assert await shell.wait() == 0
    shell.close()


async def test_child_is_detached_and_has_exactly_the_descriptors_given() -> None:
    read, write = os.pipe()
    other, stray = os.pipe()
    os.set_inheritable(stray, True)  # a careless library
    child = await process.spawn(
        SLEEP,
        sandbox=ME,
        stdout=write,
        pass_fds=(write,),
        env={"PATH": "/usr/bin:/bin", "A": "b"},
    )
    proc = Path(f"/proc/{child.identity.pid}")
    # The last thing that exec makes visible, after prlimit and setpriv had their turn.
    await until(lambda: (proc / "environ").read_bytes() == b"PATH=/usr/bin:/bin\0A=b\0")
    await until(lambda: (proc / "cmdline").read_bytes() == b"/bin/sleep\x001000\0")
    assert os.getsid(child.identity.pid) == child.identity.pid
    assert (proc / "stat").read_text().split()[6] == "0"  # no terminal
    assert "Umask:\t0077" in (proc / "status").read_text()
    assert {int(fd.name) for fd in (proc / "fd").iterdir()} == {0, 1, 2, write}
    assert (proc / "environ").read_bytes() == b"PATH=/usr/bin:/bin\0A=b\0"
    assert (proc / "cwd").readlink() == Path("/")
    await end(child)
    for fd in (read, write, other, stray):
        os.close(fd)


async def test_missing_program_is_blocked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Blocked) as caught:
        await process.spawn([str(tmp_path / "none")], sandbox=ME)
    assert caught.value.reason == "NoExecutable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give any uid")
async def test_foreign_uid_without_root_is_blocked() -> None:
    with pytest.raises(Blocked):
        await process.spawn(SLEEP, sandbox=Sandbox(uid=12345, gid=12345))
