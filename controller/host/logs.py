"""Pipes for the output of one process, and the keeper that writes them to bounded files.

A VMM gets both ends of every pipe. So the death of its keeper never breaks a pipe under it, and a
new keeper can take the same pipes up again through /proc, whoever started the first one. The
keeper gets the read ends only: it ends by itself when the VMM is gone and all is written.

What does not live here: reading the files (``logread``), the keeper itself (``logkeeper``, Rust).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Retry
from controller.host import crate
from controller.host.process import Gone, Identity, is_alive, spawn
from controller.host.spawn import Sandbox

_SOURCE = Path(__file__).parent / "logkeeper"
_BINARY = "torpor-logkeeper"
_READY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stream:
    """One output: ``dir/NAME.log`` and its rotated parts, at most ``files`` times ``max_bytes``.

    ``head``: keep the first ``max_bytes`` in one file and drop what follows, instead of the last.
    """

    name: str
    dir: Path
    max_bytes: int
    files: int
    head: bool = False


class LogPipes:
    """The pipes of one process to be started; ours until ``close``, close-on-exec.

    Pass ``fds`` to the process, then close: the pipes live in it.
    """

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._ends: dict[str, tuple[int, int]] = {}
        try:
            for stream in streams:
                self._ends[stream.name] = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise Retry(f"cannot make a pipe: {error.strerror}", reason="CannotStart") from error

    def read_fd(self, name: str) -> int:
        """Return the end that a keeper reads."""
        return self._ends[name][0]

    def write_fd(self, name: str) -> int:
        """Return the end that the process writes."""
        return self._ends[name][1]

    def inode(self, name: str) -> int:
        """Return what names this pipe for as long as any process holds it; for the record."""
        return os.fstat(self.read_fd(name)).st_ino

    @property
    def fds(self) -> tuple[int, ...]:
        """Both ends of all pipes: what the process must inherit."""
        return tuple(fd for ends in self._ends.values() for fd in ends)

    def close(self) -> None:
        """Let go of our ends."""
        for fd in self.fds:
            os.close(fd)
        self._ends.clear()


def build_keeper(cache_dir: Path) -> Path:
    """Return the keeper's executable, built at the first call. Blocking. Raises Blocked."""
    return crate.build(_SOURCE, _BINARY, cache_dir)


async def start_keeper(
    pipes: LogPipes, streams: Sequence[Stream], *, binary: Path, sandbox: Sandbox
) -> Identity:
    """Start a keeper of ``pipes`` and return it once every file is open.

    ``sandbox``: whoever may write the directories; never the cgroup that is killed with the VMM.
    Raises Retry (reason LogKeeperFailed, with what it said).
    """
    reads = {stream.name: pipes.read_fd(stream.name) for stream in streams}
    return await _start(reads, streams, [], binary, sandbox)


async def revive_keeper(
    vmm: Identity,
    streams: Sequence[Stream],
    inodes: Mapping[str, int],
    *,
    binary: Path,
    sandbox: Sandbox,
) -> Identity:
    """Start a keeper for the pipes that ``vmm`` still holds, after the first keeper died.

    ``inodes``: what LogPipes.inode said, by stream name. Bytes still in a pipe are kept; a line in
    each log says that some may be missing. Raises Gone (the VMM is dead), Retry as start_keeper.
    """
    reads: dict[str, int] = {}
    try:
        reads.update(_reopen(vmm, {inodes[stream.name]: stream.name for stream in streams}))
        return await _start(reads, streams, ["--resumed"], binary, sandbox)
    finally:
        for fd in reads.values():
            os.close(fd)


def _reopen(vmm: Identity, names: Mapping[int, str]) -> dict[str, int]:
    """Open the read side of the pipes that ``vmm`` holds, by inode."""
    found: dict[str, int] = {}
    trouble = ""
    try:
        for link in Path(f"/proc/{vmm.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed while we looked
                name = names.get(_pipe_inode(link))
                if name and name not in found:
                    found[name] = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        trouble = str(error)
    if missing := ", ".join(sorted(set(names.values()) - set(found))):
        trouble = trouble or f"it holds no pipe for {missing}"
    # Asked last: only then is it certain that these are the descriptors of ``vmm``.
    alive = is_alive(vmm)
    if alive and not trouble:
        return found
    for fd in found.values():
        os.close(fd)
    if alive:
        text = f"cannot reopen the output of process {vmm.pid}: {trouble}"
        raise Retry(text, reason="LogKeeperFailed")
    raise Gone(f"process {vmm.pid} has exited, and its pipes with it")


def _pipe_inode(link: Path) -> int:
    target = str(link.readlink())
    return int(target[6:-1]) if target.startswith("pipe:[") else -1


async def _start(
    reads: Mapping[str, int],
    streams: Sequence[Stream],
    options: list[str],
    binary: Path,
    sandbox: Sandbox,
) -> Identity:
    argv = [str(binary), *options]
    for stream in streams:
        argv += ["--stream", _words(stream, reads[stream.name])]
    said, says = os.pipe2(os.O_CLOEXEC)
    try:
        fds = tuple(reads[stream.name] for stream in streams)
        keeper = await spawn(argv, sandbox=sandbox, pass_fds=fds, stdout=says, stderr=says)
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(says)
    answer = b""
    try:
        answer = await _first_words(said)
    finally:
        if answer != b"ok\n":
            with contextlib.suppress(Gone):
                keeper.signal(signal.SIGKILL)
        keeper.leave()
    if answer != b"ok\n":
        text = answer.decode(errors="replace").strip() or "nothing"
        raise Retry(f"the log keeper did not start; it said: {text}", reason="LogKeeperFailed")
    return keeper.identity


def _words(stream: Stream, fd: int) -> str:
    head = ":head" if stream.head else ""
    return f"{stream.name}:{fd}:{stream.dir}:{stream.max_bytes}:{stream.files}{head}"


async def _first_words(fd: int) -> bytes:
    """Read ``fd`` to its end and close it; empty after too long a wait."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    file = os.fdopen(fd, "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
    try:
        return await asyncio.wait_for(reader.read(), _READY_SECONDS)
    except TimeoutError:
        return b""
    finally:
        transport.close()
