"""Memory of real processes, saved and put back: every byte, and nothing left behind on errors.

The process maps its image privately, as a VMM does, and does what it is told in one line each.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry
from controller.host import files
from controller.host.process import Gone, Identity, identity
from controller.memory import capture, commit, image
from controller.memory.copier import Cancelled
from controller.memory.manifest import Manifest, StoredFile
from controller.memory.pages import PAGE, FileId, ProcessMemory
from controller.memory.store import MemoryStore, References, changed_bytes
from tests.unit.memory.snapshots import manifest_of

pytestmark = pytest.mark.node

MIB = 1024 * 1024
HOLES = Path("/dev/zero")
GID = 231_998
STRANGER = 231_997

_PROGRAM = """
import hashlib, mmap, os, sys
path, size, uid, gid = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups([]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
ram = mmap.mmap(os.open(path, os.O_RDONLY), size, flags=mmap.MAP_PRIVATE, prot=3)
print("ready", flush=True)
for line in sys.stdin:
    verb, start, count, salt = line.split()
    start, count = int(start) * 4096, int(count) * 4096
    if verb == "fill":
        for at in range(start, start + count, 4096):
            ram[at:at + 4096] = (at + int(salt) + 1).to_bytes(8, "little") * 512
    elif verb == "zero":
        ram[start:start + count] = bytes(count)
    elif verb == "split":
        ram.madvise(mmap.MADV_DONTFORK, start, count)
    print(hashlib.sha256(ram[start:start + count]).hexdigest(), flush=True)
"""


class Guest:
    """A process that maps ``path`` privately."""

    def __init__(self, path: Path, size: int, uid: int, gid: int) -> None:
        self.path, self.size = path, size
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, (path, size, uid, gid))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"
        self.who: Identity = identity(self.process.pid)

    def do(self, verb: str, start: int, count: int, salt: int = 0) -> str:
        """In pages; returns the digest of what is there then."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {start} {count} {salt}\n")
        self.process.stdin.flush()
        return self._answer()

    def whole(self) -> bytes:
        """All its RAM, read by the process itself as a digest and by us as bytes."""
        with ProcessMemory(self.who) as memory:
            ram = memory.ram(FileId.of(self.path.stat()), self.size)
            data = os.pread(memory.mem, self.size, ram.start)
        assert hashlib.sha256(data).hexdigest() == self.do("look", 0, self.size // PAGE)
        return data

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class Place:
    """A store, the Instances that name its files, and the processes of one test."""

    def __init__(self, root: Path) -> None:
        root.chmod(0o711)
        self.home = root / "instance"
        self.home.mkdir()
        self.store = MemoryStore(root / "memory", lambda: References((self.home,)))
        self.store.start()
        self.guests: list[Guest] = []

    def guest(self, path: Path, size: int, uid: int = STRANGER, gid: int = GID) -> Guest:
        self.guests.append(Guest(path, size, uid, gid))
        return self.guests[-1]

    def save(self, guest: Guest, old: Manifest | None = None, *, digests: bool = True) -> Manifest:
        """Stop ``guest``, save its memory, and let it go on."""
        base = old.base if old is not None else None
        with stopped(guest), self.store.saving() as saving:
            taken = saving.take(
                guest.who, mapped=guest.path, ram=guest.size, gid=GID, base=base, digests=digests
            )
            file = saving.finish(taken)
            state = saving.state(b"device", GID)
            return manifest_of(guest.size, base or file, file if base else None, state)

    def wake(self, manifest: Manifest) -> Guest:
        """Another process with the memory of ``manifest``."""
        assert self.store.verify(manifest) == ()
        guest = self.guest(self.store.path(manifest.base), manifest.platform.memory)
        with stopped(guest):
            self.store.put_back(guest.who, manifest)
        return guest

    def files(self) -> list[str]:
        return sorted(path.name for path in self.store.root.glob("*/*"))


@contextlib.contextmanager
def stopped(guest: Guest) -> Iterator[None]:
    """It stands still for the length of a with block."""
    guest.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, guest.process.pid, os.WSTOPPED)
    try:
        yield
    finally:
        guest.process.send_signal(signal.SIGCONT)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that other uids reach; the usual one is root's own."""
    with tempfile.TemporaryDirectory(prefix="trp-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    made = Place(home)
    yield made
    for guest in made.guests:
        guest.end()


@pytest.fixture
def small(home: Path) -> Iterator[Place]:
    """A place on a real file system of 8 MiB, with delayed allocation and all.

    No tmpfs: there the mere look at a hole of a mapped file takes space.
    """
    mount, disk = home / "small", home / "disk"
    mount.mkdir()
    disk.touch()
    os.truncate(disk, 8 * MIB)
    subprocess.run(["mkfs.ext4", "-qFm0", "-O^has_journal", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
    try:
        made = Place(mount)
        yield made
        for guest in made.guests:
            guest.end()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_memory_comes_back_byte_for_byte_over_generations(place):
    dice = random.Random(3)
    guest = place.guest(HOLES, 32 * MIB)
    for _ in range(40):
        guest.do("fill", dice.randrange(8000), dice.randrange(1, 120), dice.randrange(9))
    manifest = place.save(guest)
    assert manifest.delta is None
    before = guest.whole()
    base = manifest.base.digest
    for _ in range(3):
        guest = place.wake(manifest)
        assert guest.whole() == before
        for _ in range(20):
            verb = dice.choice(["fill", "zero"])
            guest.do(verb, dice.randrange(8000), dice.randrange(1, 60), dice.randrange(99))
        manifest = place.save(guest, manifest)
        before = guest.whole()
        assert manifest.base.digest == base
    assert place.wake(manifest).whole() == before
    assert place.store.verify(manifest, full=True) == ()


def test_a_sparse_file_is_an_image_of_holes_too(place, home):
    path = home / "holes"
    path.touch(0o644)
    os.truncate(path, 8 * MIB)
    guest = place.guest(path, 8 * MIB)
    guest.do("fill", 3, 5)
    manifest = place.save(guest)
    assert place.wake(manifest).whole() == guest.whole()


def test_64_mib_that_the_guest_zeroed_stay_zero(place):
    guest = place.guest(HOLES, 96 * MIB)
    guest.do("fill", 0, 80 * MIB // PAGE)
    first = place.save(guest)
    guest = place.wake(first)
    guest.do("zero", 4 * MIB // PAGE, 64 * MIB // PAGE)
    guest.do("zero", 85 * MIB // PAGE, 5 * MIB // PAGE)  # holes in the base: not worth a run
    second = place.save(guest, first)
    woken = place.wake(second)
    assert woken.do("look", 4 * MIB // PAGE, 64 * MIB // PAGE) == sha(bytes(64 * MIB))
    assert woken.whole() == guest.whole()
    assert second.delta is not None
    assert second.delta.on_disk < MIB
    path = place.store.path(second.delta)
    with path.open("rb") as file:
        runs = image.read(file.fileno(), path, second.delta.digest).runs.tolist()
    assert runs == [[4 * MIB // PAGE, 0, 64 * MIB // PAGE, image.RunKind.ZERO]]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_pages_that_were_only_read_are_not_saved(place):
    guest = place.guest(HOLES, 16 * MIB)
    guest.do("fill", 0, 2000)
    manifest = place.save(guest)
    woken = place.wake(manifest)
    woken.do("look", 0, 16 * MIB // PAGE)
    assert changed_bytes(woken.who, woken.path, woken.size) == 0
    woken.do("fill", 100, 3, 5)
    assert changed_bytes(woken.who, woken.path, woken.size) == 3 * PAGE
    again = place.save(woken, manifest)
    assert again.delta is not None
    assert again.delta.seen.size < 4 * PAGE


def test_memory_that_is_cut_into_several_areas_is_one(place):
    guest = place.guest(HOLES, 16 * MIB)
    guest.do("fill", 0, 4096)
    guest.do("split", 1000, 500)
    guest.do("split", 3000, 1)
    manifest = place.save(guest)
    woken = place.wake(manifest)
    woken.do("split", 7, 3)
    woken.do("fill", 5, 10, 1)
    again = place.save(woken, manifest)
    assert place.wake(again).whole() == woken.whole()


def test_forks_share_the_base_and_go_their_own_ways(place):
    guest = place.guest(HOLES, 8 * MIB)
    guest.do("fill", 0, 1500)
    manifest = place.save(guest)
    forks = [place.wake(manifest) for _ in range(4)]
    for number, fork in enumerate(forks):
        fork.do("fill", number, 1, 77)
    wholes = {fork.whole() for fork in forks}
    assert len(wholes) == 4
    assert place.store.verify(manifest, full=True) == ()
    assert place.wake(manifest).whole() == guest.whole()


def test_digests_made_later_are_the_same(place):
    guest = place.guest(HOLES, 16 * MIB)
    guest.do("fill", 5, 1500)
    assert place.save(guest).base == place.save(guest, digests=False).base


def test_the_guest_may_go_on_while_digests_are_made(place):
    guest = place.guest(HOLES, 16 * MIB)
    guest.do("fill", 5, 1500)
    with place.store.saving() as saving:
        with stopped(guest):
            before = sha(raw(guest))
            taken = saving.take(
                guest.who, mapped=HOLES, ram=guest.size, gid=GID, base=None, digests=False
            )
        guest.do("fill", 0, 4000, 6)
        manifest = manifest_of(guest.size, saving.finish(taken), None, saving.state(b"x", GID))
        commit.commit(place.home, 0, manifest)
    assert sha(place.wake(manifest).whole()) == before


def raw(guest: Guest) -> bytes:
    """Its RAM as we read it; it may stand still."""
    with ProcessMemory(guest.who) as memory:
        ram = memory.ram(FileId.of(guest.path.stat()), guest.size)
        return os.pread(memory.mem, guest.size, ram.start)


# --- who may read -------------------------------------------------------------------------------


def reads(path: Path, uid: int, gid: int) -> bool:
    """Whether that uid and gid, without privileges, can open ``path``."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        try:
            os.open(path, os.O_RDONLY)
        except PermissionError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_only_the_lineage_can_read_its_memory(place):
    guest = place.guest(HOLES, 4 * MIB)
    guest.do("fill", 0, 10)
    manifest = place.save(guest)
    for file in manifest.files:
        path = place.store.path(file)
        assert (path.stat().st_uid, path.stat().st_gid) == (0, GID)
        assert reads(path, STRANGER, GID)
        assert not reads(path, STRANGER, STRANGER)
        assert not reads(path.parent, STRANGER, GID)  # nor list what others there have
    woken = place.wake(manifest)  # runs as such a uid
    assert woken.whole() == guest.whole()


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_and_the_old_snapshot(small):
    guest = small.guest(HOLES, 32 * MIB)
    guest.do("fill", 0, 200)
    manifest = small.save(guest)
    commit.commit(small.home, 1, manifest)
    before = small.files()
    woken = small.wake(manifest)
    digest = woken.do("fill", 0, 4000, 3)
    with pytest.raises(Retry) as caught:
        small.save(woken, manifest)
    assert caught.value.reason == "NoSpace"
    assert small.files() == before
    assert woken.do("look", 0, 4000) == digest  # it goes on
    assert commit.read(small.home, 1) == manifest
    assert small.store.verify(manifest, full=True) == ()
    assert small.wake(manifest).whole() == guest.whole()


def test_a_disk_that_fills_up_at_any_moment_leaves_nothing(small):
    guest = small.guest(HOLES, 8 * MIB)
    guest.do("fill", 0, 100)
    ballast = small.store.root / "ballast"
    for room in (0, 1, 2, 50, 99, 100, 101, 102, 103):
        fill(ballast, leaving=room)
        with contextlib.suppress(Retry):
            small.save(guest)
        assert not [name for name in small.files() if "~" in name], f"{room} pages of room"
        ballast.unlink()
        small.store.collect()
        assert small.files() == []
    manifest = small.save(guest)
    assert small.wake(manifest).whole() == guest.whole()


def fill(path: Path, leaving: int) -> None:
    """Take all the space there is, but for so many pages."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * PAGE):
            pass
    os.truncate(path, max(path.stat().st_size - leaving * PAGE, 0))
    files.fsync_dir(path.parent)


def test_a_save_that_is_cancelled_leaves_nothing(place):
    guest = place.guest(HOLES, 4 * MIB)
    guest.do("fill", 0, 10)
    with stopped(guest), place.store.saving() as saving, pytest.raises(Cancelled):
        saving.take(
            guest.who, mapped=HOLES, ram=4 * MIB, gid=GID, base=None, cancelled=lambda: True
        )
    assert place.files() == []


def test_another_process_with_the_same_pid_is_not_read(place):
    guest = place.guest(HOLES, 4 * MIB)
    other = Identity(guest.who.pid, guest.who.start_time + 1, guest.who.boot_id)
    with place.store.saving() as saving, pytest.raises(Gone):
        saving.take(other, mapped=HOLES, ram=4 * MIB, gid=GID, base=None)


def die_then(guest: Guest, work: Callable[[ProcessMemory], object]) -> None:
    """The process dies after its memory was opened, before ``work``."""
    with ProcessMemory(guest.who, writable=True) as memory:
        guest.end()
        with pytest.raises(Gone):
            work(memory)


def test_a_process_that_dies_on_the_way_is_gone_at_each_step(place, tmp_path):
    guest = place.guest(HOLES, 4 * MIB)
    guest.do("fill", 0, 100)
    manifest = place.save(guest)
    guest.do("fill", 0, 10, 4)
    with ProcessMemory(guest.who) as memory:
        ram = memory.ram(FileId.of(HOLES.stat()), 4 * MIB)
        pages = memory.changed_pages(ram)
    die_then(guest, lambda memory: memory.changed_pages(ram))
    guest = place.guest(place.store.path(manifest.base), 4 * MIB)
    guest.do("fill", 0, 10, 4)
    delta = place.save(guest, manifest)
    assert delta.delta is not None
    path = place.store.path(delta.delta)
    with path.open("rb") as file, ProcessMemory(guest.who) as memory:
        ram = memory.ram(FileId.of(guest.path.stat()), 4 * MIB)
        layout = image.read(file.fileno(), path, delta.delta.digest)
        die_then(guest, lambda memory: capture.put_back(memory, ram, file.fileno(), layout))
        memory.changed_pages = lambda ram: pages  # type: ignore[method-assign]
        with (tmp_path / "out").open("w+b") as out, pytest.raises(Gone):
            capture.take(memory, ram, out.fileno(), None)


def test_a_process_that_maps_something_else_is_refused(place, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(bytes(4 * MIB))
    guest = place.guest(HOLES, 4 * MIB)
    with place.store.saving() as saving, pytest.raises(Blocked) as caught:
        saving.take(guest.who, mapped=path, ram=4 * MIB, gid=GID, base=None)
    assert caught.value.reason == "MemoryNotFound"
    with pytest.raises(Blocked):
        changed_bytes(guest.who, HOLES, 8 * MIB)
    assert place.files() == []


def test_a_delta_is_not_put_into_a_process_on_another_base(place):
    guest = place.guest(HOLES, 4 * MIB)
    guest.do("fill", 0, 10)
    one = place.save(guest)
    guest.do("fill", 0, 10, 9)
    two = place.save(guest)
    woken = place.wake(one)
    woken.do("fill", 0, 4, 5)
    mixed = place.save(woken, one).model_copy(update={"base": two.base})
    fresh = place.guest(place.store.path(two.base), 4 * MIB)
    with pytest.raises(Exception, match="another base"):
        place.store.put_back(fresh.who, mixed)
    assert fresh.whole() == guest.whole()


# --- speed --------------------------------------------------------------------------------------


def test_copying_is_measured(place, capsys):
    """Prints, asserts no time: the machine may be busy with other things."""
    size = 256 * MIB
    guest = place.guest(HOLES, size)
    guest.do("fill", 0, size // PAGE)
    lines = []
    with stopped(guest):
        for digests in (True, False):
            with place.store.saving() as saving:
                began, cpu = time.perf_counter(), time.process_time()
                taken = saving.take(
                    guest.who, mapped=HOLES, ram=size, gid=GID, base=None, digests=digests
                )
                seconds, used = time.perf_counter() - began, time.process_time() - cpu
                file: StoredFile = saving.finish(taken)
            lines.append(
                f"copy {'with' if digests else 'without'} digests: {size / 2**30 / seconds:.2f}"
                f" GiB/s, {used * 2**30 / size:.2f} CPU seconds per GiB"
            )
    assert file.on_disk >= size
    with capsys.disabled():
        print("\n" + "\n".join(lines), f"({os.getloadavg()[0]:.1f} runnable,"
              f" {threading.active_count()} threads here)")  # fmt: skip
