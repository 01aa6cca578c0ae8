"""How fast memory goes out of a process that stands still, and how fast a base is verified."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.host.process import Identity, identity
from controller.memory.manifest import StoredFile
from controller.memory.saving import Saving
from controller.memory.store import MemoryStore, References
from controller.vmm.machine import EMPTY_IMAGE
from tests.scale.baresleep import Written, copy_out
from tests.scale.figures import SMOKE, Figures
from tests.scale.subject import MIB
from tests.unit.memory.snapshots import manifest_of

RAM = (64 if SMOKE else 512) * MIB
ROUNDS = 3
GIB = 1 << 30
LINEAGE = 231_600
# Random bytes, 4 MiB of them over and over: no page is zero, and making them takes a moment.
_HOLDER = """
import mmap, os, sys
size = int(sys.argv[1])
with open("/dev/zero", "rb") as zero:
    ram = mmap.mmap(zero.fileno(), size, mmap.MAP_PRIVATE)
block = os.urandom(4 << 20)
for at in range(0, size, len(block)):
    ram[at : at + len(block)] = block
print("filled", flush=True)
sys.stdin.read()
"""


def test_copying_and_verifying(figures: Figures, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memory", lambda: References(()))
    store.start()
    whole, durable, verified, bare = [], [], [], []
    with _holder() as who:
        for _ in range(ROUNDS):
            bare.append(_plain(who, tmp_path / "plain").seconds)
            with store.saving() as saving:
                copied, synced, base = _save(saving, who)
                state = saving.state(b"none", LINEAGE)
                manifest = manifest_of(RAM, base, None, state)
                began = time.monotonic()
                assert store.verify(manifest, full=True) == ()
                verified.append(RAM / GIB / (time.monotonic() - began))
            whole.append(RAM / GIB / copied)
            durable.append(RAM / GIB / (copied + synced))
            assert store.collect()  # or the next base would already be there
    size = f"{RAM // MIB} MiB"
    note = f"{size}, digests included; best of {ROUNDS}"
    figures.add(
        "copying memory out", max(whole), "GiB/s", budget=1, at_least=True, note=note, samples=whole
    )
    figures.add("copying and syncing", max(durable), "GiB/s", note=size, samples=durable)
    plain = RAM / GIB / min(bare)
    figures.add("the same by a plain loop in one thread", plain, "GiB/s", note="and no digests")
    figures.add("verifying a base", max(verified), "GiB/s", note=f"{size}, cached by the kernel")


def _plain(who: Identity, path: Path) -> Written:
    written = copy_out(who.pid, EMPTY_IMAGE, RAM, path)
    path.unlink()
    assert written.size == RAM
    return written


def _save(saving: Saving, who: Identity) -> tuple[float, float, StoredFile]:
    """Seconds of copying, seconds until it is durable, and the file."""
    began = time.monotonic()
    taken = saving.take(who, mapped=EMPTY_IMAGE, ram=RAM, gid=LINEAGE, base=None)
    copied = time.monotonic()
    base = saving.finish(taken)
    assert base.on_disk >= RAM
    return copied - began, time.monotonic() - copied, base


@contextmanager
def _holder() -> Iterator[Identity]:
    """A process with that much memory, stopped."""
    argv = [sys.executable, "-c", _HOLDER, str(RAM)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"filled\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            yield identity(process.pid)
        finally:
            process.kill()
