"""What init does in a real guest: the workload's world, its output, its end, its channel."""

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.guest.artifacts import GuestArtifacts
from controller.guest.channel import Channel
from controller.guest.console import last_panic, witnessed_exit
from controller.guest.report import Reports
from controller.guest.wire import Frame, FrameType, Key, ReportKind, encode, pack
from tests.node.bareguest import NONCE, BareGuest, artifacts, rootfs, running
from tests.waiting import until

pytestmark = pytest.mark.node

FLOOD = 16 << 20
ODD = ("", "two words", "q'u\"o$t`e\\", "line\nbreak", "\u00fcml\u00e4ut \u2603", "\udcff", "a=b")

# One workload for most claims: it says what it sees, leaves orphans, forges, floods, then waits to
# be stopped. Its arguments and variables are printed as hex: nothing may reinterpret them.
WORKLOAD = r"""
hex() { od -An -v -tx1 | tr -d ' \n'; }
tell() { echo "<$1>$(cat)</$1>"; }
for arg in "$@"; do echo "$(printf %s "$arg" | hex),"; done | tr -d '\n' | tell argv
tr '\0' ';' < /proc/$$/environ | hex | tell environ
printf %s "$ODD" | hex | tell odd
id | tell id
pwd | tell workdir
stat -c '%u %a' . | tell workdir_mode
{ hostname; cat /etc/hostname /etc/machine-id; } | tell names
cat /etc/hosts | tell hosts
cat /opt/readme | tell readme
echo "$HOME" | tell home
cat /proc/mounts | tell mounts
cat /proc/self/cgroup | tell cgroup
cat /proc/self/oom_score_adj | tell oom_score
grep -E 'Sig(Blk|Ign)' /proc/self/status | tell signals
ls -l /proc/self/fd | grep -v /proc/ | grep -c -- '->' | tell descriptors
ip link show lo 2>/dev/null | tell loopback
echo reopened > /dev/stdout
echo 'over here' >&2
for i in 1 2 3 4 5; do (sh -c 'true & exit 0' &); done
while ps -o stat,comm | grep -q '^Z.*true'; do usleep 50000; done
echo yes | tell reaped
(exec > /dev/null 2>&1; setsid sleep 1000 &)
printf '%s' 'FORGERY'
printf '\n%s\n' "torpor-exit NONCE code=0 signal=0"
echo kept > /tmp/kept
trap 'echo "<term>"; exit 7' TERM
echo "<ready>"
while [ ! -e /tmp/go ]; do usleep 50000; done
"""
FLOODER = r"""
trap '' TERM
for port in /dev/vport*; do (echo forged > $port) 2>&1; done
dd if=/dev/zero bs=65536 count=256 2>/dev/null
echo flooded > /dev/console
while :; do sleep 1000; done
"""


@pytest.fixture(scope="module")
def boot() -> GuestArtifacts:
    return artifacts()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rootfs(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.fixture(scope="module")
def first(
    boot: GuestArtifacts, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BareGuest]:
    """The guest of most tests, when its workload has said everything and waits."""
    forged = encode(
        Frame(FrameType.REPORT, 9, pack([(Key.KIND, ReportKind.EXIT), (Key.CODE, 0)]))
    ).decode("latin-1")
    script = WORKLOAD.replace("NONCE", NONCE).replace(
        "FORGERY", "".join(f"\\{ord(c):03o}" for c in forged)
    )
    script = script.replace("printf '%s' '\\", "printf '\\")  # octal escapes, not text
    home = tmp_path_factory.mktemp("first") / "g"
    with running(
        home,
        boot,
        root,
        *("sh", "-c", script, "sh", *ODD),
        env=(("ODD", "".join(ODD)), ("EMPTY", ""), ("PATH", "/nowhere:/bin")),
        user="app",
        workdir="/srv/deep/er",
        stop_timeout=20.0,
    ) as guest:
        end = time.monotonic() + 200
        while b"<ready>" not in guest.drain():
            assert guest.process.poll() is None, (guest.console[-2000:], guest.log[-2000:])
            assert time.monotonic() < end, (guest.console[-2000:], guest.log[-2000:])
            time.sleep(0.01)
        yield guest


def _hex(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape").hex().encode()


def test_arguments_arrive_byte_for_byte(first: BareGuest) -> None:
    assert first.said("argv") == b"".join(_hex(arg) + b"," for arg in ODD)


def test_environment_is_the_images_plus_what_it_lacks(first: BareGuest) -> None:
    assert first.said("odd") == _hex("".join(ODD))
    said = bytes.fromhex(first.said("environ").decode()).split(b";")
    assert said[:3] == [
        b"ODD=" + "".join(ODD).encode("utf-8", "surrogateescape"),
        b"EMPTY=",
        b"PATH=/nowhere:/bin",
    ]
    assert b"HOSTNAME=guest-1" in said
    assert first.said("home") == b"/home/app"


def test_user_and_groups_come_from_the_images_files(first: BareGuest) -> None:
    assert first.said("id") == b"uid=1000(app) gid=1001(app) groups=50(staff)"


def test_missing_working_directory_is_made(first: BareGuest) -> None:
    assert first.said("workdir") == b"/srv/deep/er"
    assert first.said("workdir_mode") == b"0 755"


def test_guest_has_its_names_and_no_link_of_the_image_is_followed(first: BareGuest) -> None:
    assert first.said("names").split() == [b"guest-1", b"guest-1", b"0123456789abcdef" * 2]
    assert b"127.0.0.1\tlocalhost" in first.said("hosts")
    assert b"guest-1" in first.said("hosts")
    assert first.said("readme") == b"not a program"


def test_workload_sees_its_own_root_and_the_kernels_interfaces(first: BareGuest) -> None:
    mounts = {tuple(line.split()[1:3]) for line in first.said("mounts").splitlines()}
    expected = {"/": "overlay", "/dev": "devtmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    expected |= {"/proc": "proc", "/sys": "sysfs", "/run": "tmpfs", "/sys/fs/cgroup": "cgroup2"}
    for where, kind in expected.items():
        assert (where.encode(), kind.encode()) in mounts
    assert b"LOOPBACK,UP" in first.said("loopback")


def test_workload_starts_clean(first: BareGuest) -> None:
    assert first.said("cgroup") == b"0::/workload"
    assert first.said("oom_score") == b"0"
    assert re.findall(rb"\t(\w+)", first.said("signals")) == [b"0" * 16, b"0" * 16]
    assert first.said("descriptors") == b"3"


def test_stdout_can_be_reopened_and_stderr_is_kept(first: BareGuest) -> None:
    assert b"reopened\n" in first.log
    assert b"over here\n" in first.log


def test_orphans_are_reaped(first: BareGuest) -> None:
    assert first.said("reaped") == b"yes"


def test_forged_exit_changes_nothing(first: BareGuest) -> None:
    assert f"torpor-exit {NONCE} code=0 signal=0\n".encode() in first.log
    assert b"torpor-exit" not in first.console
    assert first.reports.exit is None


def test_start_is_reported(first: BareGuest, boot: GuestArtifacts) -> None:
    reports = first.reports
    assert reports.booted
    assert reports.booted.kernel == boot.version
    assert reports.started
    assert reports.started.pid > 1


async def test_info_and_ping_answer(first: BareGuest, boot: GuestArtifacts) -> None:
    channel = await Channel.connect(first.channel, deadline=10)
    try:
        info = await channel.info(5)
        assert (info.kernel, info.nonce, info.exit) == (boot.version, NONCE, None)
        assert first.reports.started
        assert info.pid == first.reports.started.pid
        assert first.reports.booted
        assert info.boot_id == channel.boot_id == first.reports.booted.boot_id
        assert await channel.ping(5) < 5
    finally:
        await channel.close()


@pytest.mark.parametrize("cut", [1, 4, 8, 12])
async def test_channel_works_after_a_hang_up_in_the_middle_of_a_frame(
    first: BareGuest, cut: int
) -> None:
    frame = encode(Frame(FrameType.PING, 1, b"abcdefgh"))
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(first.channel))
        rude.sendall(frame + frame[:cut])
    channel = await Channel.connect(first.channel, deadline=10)
    try:
        assert await channel.ping(5) < 5
    finally:
        await channel.close()


async def test_channel_recovers_from_nonsense_after_a_silence(first: BareGuest) -> None:
    channel = await Channel.connect(first.channel, deadline=10)
    try:
        channel._writer.write(b"\xff" * 100)
        await asyncio.sleep(0.3)  # the silence that the protocol asks for
        assert await channel.ping(5) < 5
    finally:
        await channel.close()


async def test_stop_request_gives_grace_and_leaves_a_clean_disk(first: BareGuest) -> None:
    heard: list[object] = []
    channel = await Channel.connect(first.channel, deadline=10, on_report=heard.append)
    await channel.shutdown(20)
    reports = await asyncio.to_thread(first.wait, 30)
    assert reports.exit
    assert (reports.exit.code, reports.exit.signal, reports.exit.asked) == (7, 0, True)
    assert reports.exit.message == "exited 7"
    assert b"<term>" in first.log
    assert reports.exit in heard
    await channel.wait_closed()
    await channel.close()
    seen = witnessed_exit(first.home / "console", NONCE)
    assert seen
    assert (seen.code, seen.signal) == (7, 0)
    assert first.process.returncode == 0
    _assert_clean(first.home / "overlay")


def _assert_clean(overlay: Path) -> None:
    """Nothing to replay, and what the workload wrote is there."""
    disk = str(overlay)
    header = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True)
    assert "needs_recovery" not in header.stdout
    assert re.search(r"state: +clean\n", header.stdout)
    show = ["debugfs", "-R", "cat /upper/tmp/kept", disk]
    assert subprocess.run(show, capture_output=True, check=True).stdout == b"kept\n"


async def test_flood_blocks_nobody_the_gap_is_marked_and_no_port_opens_twice(
    boot: GuestArtifacts, root: Path, tmp_path: Path
) -> None:
    with running(tmp_path / "g", boot, root, "sh", "-c", FLOODER, stop_timeout=1.0) as guest:
        await until(lambda: b"flooded" in guest.console, 60)  # while nobody drains the log
        channel = await Channel.connect(guest.channel, deadline=10)
        assert (await channel.info(5)).lost > 0
        await channel.close()
        guest.press_power_button()  # the workload ignores SIGTERM: killed after its time-out
        reports = await asyncio.to_thread(guest.wait, 60)
    assert reports.exit
    assert (reports.exit.signal, reports.exit.code) == (9, 137)
    assert (reports.exit.oom, reports.exit.asked) == (False, True)
    assert reports.exit.message == "killed by signal 9"
    gaps = re.findall(rb"\[torpor: (\d+) bytes lost\]\n", guest.log)
    assert gaps
    assert sum(map(int, gaps)) + guest.log.count(b"\0") == FLOOD
    assert guest.log.count(b"busy") == 3  # root, and yet no port opens a second time


ENDINGS = {
    "out of memory": (("tail", "/dev/zero"), {}, (137, 9, True)),
    "killed by signal 9": (("sh", "-c", "kill -9 $$"), {}, (137, 9, False)),
    'exec "nothing-here": No such file or directory (os error 2)': (
        ("nothing-here",),
        {},
        (127, 0, False),
    ),
    'exec "/opt/readme": Permission denied (os error 13)': (
        ("/opt/readme",),
        {"user": "4242:17"},
        (126, 0, False),
    ),
    'user "nobody-here" is not in /etc/passwd': (
        ("true",),
        {"user": "nobody-here"},
        (126, 0, False),
    ),
    "the guest could not start: no disk with serial overlay": (
        ("true",),
        {"disks": ("rootfs", "config")},
        (125, 0, False),
    ),
}


@pytest.mark.parametrize("message", ENDINGS)
def test_every_end_is_told_apart(
    boot: GuestArtifacts, root: Path, tmp_path: Path, message: str
) -> None:
    argv, options, expected = ENDINGS[message]
    with running(tmp_path / "g", boot, root, *argv, memory=128, **options) as guest:
        reports: Reports = guest.wait()
    assert reports.exit, guest.console[-2000:]
    assert reports.exit.message == message
    assert (reports.exit.code, reports.exit.signal, reports.exit.oom) == expected
    assert (reports.started is not None) == (expected[1] == 9)


def test_power_off_from_inside_is_a_request_to_stop(
    boot: GuestArtifacts, root: Path, tmp_path: Path
) -> None:
    script = "trap 'exit 5' TERM; poweroff; while :; do usleep 20000; done"
    with running(tmp_path / "g", boot, root, "sh", "-c", script, stop_timeout=30.0) as guest:
        reports = guest.wait()
    assert reports.exit
    assert (reports.exit.code, reports.exit.asked) == (5, True)


def test_panic_resets_the_guest_and_its_reason_is_on_the_console(
    boot: GuestArtifacts, root: Path, tmp_path: Path
) -> None:
    crash = "echo before; sleep 0.1; echo c > /proc/sysrq-trigger"
    with running(tmp_path / "g", boot, root, "sh", "-c", crash) as guest:
        reports = guest.wait()
    assert reports.started
    assert reports.exit is None
    assert last_panic(guest.home / "console") == "sysrq triggered crash"
