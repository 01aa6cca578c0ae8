"""Sleep and wake without us: what a small script does with the same QEMU and the same files.

``copy_out`` is what no way to sleep can do without: the changed pages, written and synced.
``BareWake`` is a wake: argv of a VMM that an agent started, the base mapped, the delta put in, the
device state loaded, go on; it ends with the first answer on the agent channel. It checks nothing,
confines nothing and notes nothing. What does not live here: the agent, whose files it borrows.
"""

import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.guest.wire import Decoder, Frame, FrameType, encode
from controller.memory import commit, image
from controller.memory.image import RunKind
from controller.memory.manifest import Manifest
from controller.memory.store import MemoryStore, References

PAGE = 4096
BUFFER = 256 * 1024
SECONDS = 120.0  # for anything
AGAIN_SECONDS = 1.0  # then HELLO is said once more
_FD = re.compile(r"\bfd=(\d+)")
_SET = re.compile(r"\bset=(\d+)")
Rows = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Written:
    """What ``copy_out`` did."""

    seconds: float
    size: int


def copy_out(pid: int, mapped: Path, ram: int, out: Path) -> Written:
    """Write the anonymous pages of the mapping of ``mapped`` into ``out``, and sync it."""
    began = time.monotonic()
    start = find_ram(pid, mapped, ram)
    buffer = memoryview(mmap.mmap(-1, BUFFER))
    size = 0
    with (
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
        out.open("wb", buffering=0) as file,
    ):
        for first, count in own_runs(pid, start, ram):
            at, left = start + first * PAGE, count * PAGE
            while left:
                part = buffer[: min(left, BUFFER)]
                done = os.preadv(memory.fileno(), [part], at)
                file.write(part[:done])
                at, left, size = at + done, left - done, size + done
        os.fsync(file.fileno())
    return Written(time.monotonic() - began, size)


def own_pages(pid: int, mapped: Path, ram: int) -> int:
    """How many pages of its RAM are a VMM's own."""
    return sum(count for _, count in own_runs(pid, find_ram(pid, mapped, ram), ram))


def find_ram(pid: int, mapped: Path, ram: int) -> int:
    """Where process ``pid`` maps ``mapped``, ``ram`` bytes of it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in words[0].split("-"))
        if len(words) == 6 and words[5] == str(mapped) and end - start == ram:
            return start
    raise AssertionError(f"process {pid} does not map {ram} bytes of {mapped}")


def own_runs(pid: int, start: int, ram: int) -> list[tuple[int, int]]:
    """Rows of (page, count): present or swapped, and not of the file."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), ram // PAGE * 8, start // PAGE * 8)
    entries = np.frombuffer(data, dtype=np.uint64)
    own = ((entries >> np.uint64(62)) != 0) & ((entries >> np.uint64(61)) & np.uint64(1) == 0)
    edges = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last - first)) for first, last in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class BareWake:
    """A wake that can be repeated, of one snapshot; ``home`` is its own. Makes ``copies``."""

    argv: tuple[str, ...]
    home: Path
    instance: Path
    base: Path
    ram: int
    data: bytes  # of the delta
    rows: Rows  # of (place in RAM, place in data or -1 for zeros, bytes)
    state: Path

    @staticmethod
    def of(argv: tuple[str, ...], instance: Path, store: Path, home: Path) -> "BareWake":
        """Of the sleeper in ``instance``, whose last VMM had ``argv``."""
        manifest = snapshot_of(instance)
        path = MemoryStore(store, lambda: References(())).path
        data, rows = _delta(manifest, path(manifest.delta)) if manifest.delta else (b"", ())
        base = path(manifest.base)
        mapped = next(word for word in argv if word.startswith("memory-backend-file,"))
        words = list(argv)
        words[argv.index(mapped)] = re.sub(r"mem-path=[^,]*", f"mem-path={base}", mapped)
        if "-incoming" not in words:
            words += ["-incoming", "defer"]
        home.mkdir()
        ram = manifest.platform.memory
        return BareWake(tuple(words), home, instance, base, ram, data, rows, path(manifest.state))

    def seconds(self, count: int = 1) -> float:
        """Wake ``count`` at once: from the first spawn to the last answer. Leaves nothing."""
        with ExitStack() as stack:
            sleepers = [stack.enter_context(self._made()) for _ in range(count)]
            failed: list[BaseException] = []

            def wake(one: _Sleeper) -> None:
                try:
                    one.wake()
                except BaseException as err:
                    failed.append(err)

            threads = [threading.Thread(target=wake, args=(one,)) for one in sleepers]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - began
            assert not failed, failed
        return took

    @contextmanager
    def _made(self) -> Iterator["_Sleeper"]:
        """All that can be there before: its disks, and sockets to talk through."""
        number = len(list(self.home.iterdir()))
        place = self.home / str(number)
        place.mkdir()
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, place)
            for name in ("overlay.raw", "config.img"):
                source = next(self.instance.rglob(name))
                subprocess.run(
                    ["cp", "--sparse=always", str(source), str(place / name)], check=True
                )
            yield stack.enter_context(closing(_Sleeper(self, place, stack)))


class _Sleeper:
    """One VMM to be woken."""

    def __init__(self, like: BareWake, place: Path, stack: ExitStack) -> None:
        self._like = like
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []
        self._clients: dict[str, socket.socket] = {}
        self._argv = [self._own(word, place, stack) for word in like.argv]

    def wake(self) -> None:
        """Returns when the guest has answered."""
        like = self._like
        self._process = subprocess.Popen(
            self._argv, pass_fds=self._kept, stdin=subprocess.DEVNULL, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        monitor = Qmp(self._clients["monitor"])
        monitor.execute("qmp_capabilities")
        start = find_ram(self._process.pid, like.base, like.ram)
        with Path(f"/proc/{self._process.pid}/mem").open("r+b", buffering=0) as memory:
            view = memoryview(like.data)
            for to, origin, size in like.rows:
                part = view[origin : origin + size] if origin >= 0 else bytes(size)
                os.pwrite(memory.fileno(), part, start + to)
        events = [{"capability": "events", "state": True}]
        monitor.execute("migrate-set-capabilities", {"capabilities": events})
        with like.state.open("rb") as state:
            monitor.execute("getfd", {"fdname": "state"}, state.fileno())
        monitor.execute("migrate-incoming", {"uri": "fd:state"})
        monitor.wait_for("MIGRATION", status="completed")
        monitor.execute("cont")
        hello(self._clients["channel"])

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _own(self, word: str, place: Path, stack: ExitStack) -> str:
        """A word of argv with paths and descriptors of our own."""
        if word.endswith("/ending"):
            return str(place / "ending")
        for name in ("disk/overlay.raw", "config.img"):
            word = word.replace(str(self._like.instance / name), str(place / Path(name).name))
        if _FD.search(word) is None:
            return word
        self._kept.append(_nowhere(stack) if _SET.search(word) else self._listener(word, stack))
        return _FD.sub(f"fd={self._kept[-1]}", word)

    def _listener(self, word: str, stack: ExitStack) -> int:
        server, client = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        server.bind("")  # any abstract name
        server.listen(1)
        client.settimeout(SECONDS)
        if "id=people" not in word:
            client.connect(server.getsockname())
        self._clients["monitor" if "id=monitor" in word else "channel"] = client
        if "id=people" in word:
            self._clients["people"] = client
        return server.fileno()


class Qmp:
    """A monitor, spoken to in the plainest way."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._lines = sock, sock.makefile("rb")
        self._events: list[Mapping[str, Any]] = []
        json.loads(self._lines.readline())

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, fd: int | None = None
    ) -> Any:
        """Run one command and give its answer."""
        body = json.dumps({"execute": command, "arguments": arguments or {}}).encode()
        socket.send_fds(self._socket, [body], [] if fd is None else [fd])
        while "return" not in (answer := json.loads(self._lines.readline())):
            assert "event" in answer, (command, answer)
            self._events.append(answer)
        return answer["return"]

    def wait_for(self, name: str, **data: object) -> None:
        """Return when this event has come."""
        while not any(
            event["event"] == name and data.items() <= event["data"].items()
            for event in self._events
        ):
            self._events.append(json.loads(self._lines.readline()))


def hello(sock: socket.socket) -> None:
    """Return when the guest has answered on its agent channel."""
    decoder, deadline = Decoder(), time.monotonic() + SECONDS
    sock.settimeout(AGAIN_SECONDS)
    while time.monotonic() < deadline:
        sock.sendall(encode(Frame(FrameType.HELLO, 1)))
        try:
            while data := sock.recv(BUFFER):
                if any(frame.type == FrameType.HELLO_REPLY for frame in decoder.feed(data)):
                    return
        except TimeoutError:
            continue
        break
    raise AssertionError("the guest does not answer")


def snapshot_of(instance: Path) -> Manifest:
    """The newest snapshot of an Instance."""
    found = [commit.read_file(path) for path in commit.manifests(instance)]
    whole = [manifest for manifest in found if manifest is not None]
    assert whole, f"{instance} has no snapshot"
    return max(whole, key=lambda manifest: manifest.run)


def _delta(manifest: Manifest, path: Path) -> tuple[bytes, Rows]:
    assert manifest.delta is not None
    with path.open("rb") as file:
        layout = image.read(file.fileno(), path, manifest.delta.digest)
        data = file.read(layout.body_pages * PAGE)
    return data, tuple(
        (page * PAGE, body * PAGE if kind == RunKind.DATA else -1, count * PAGE)
        for page, body, count, kind in layout.runs.tolist()
    )


def _nowhere(stack: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, fd)
    return fd
