"""How a VMM process comes up: its sockets first, then the first greeting, or its last words.

What does not live here: arguments, and what is said after the greeting.
"""

import asyncio
import contextlib
import fcntl
import re
import socket
import struct
import termios
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path

from controller.errors import Blocked, Retry
from controller.host.process import Process
from controller.vmm.machine import Launch, socket_path

GREETING_SECONDS = 30.0  # 0.05 on an idle host; a crowded one pages in the binary

_LAST_WORDS_SECONDS = 1.0  # for the log's keeper to write what it has read
_LAST_WORDS_BYTES = 4096
_LINE_LENGTH = 300
# The world may change by itself: not the arguments' fault.
_PASSING = re.compile(
    r"Cannot allocate memory|Failed to get .* lock|temporarily unavailable|No space left"
    r"|Too many open files|Interrupted system call",
    re.IGNORECASE,
)
# QEMU complains that /dev/zero has no length, at each start without an image; it goes on.
_NOISE = frozenset({"ftruncate: Invalid argument"})
_STAMP = re.compile(r"^\d{4}-\S+Z ")
# "2026-01-01T00:00:00Z qemu: -blockdev {…}: " before the cause itself
_PREAMBLE = re.compile(r"^(\S+Z )?(\S+: )?(-\w+ \{.*\}: )?")


@contextlib.contextmanager
def sockets(run_dir: Path, names: tuple[str, ...]) -> Iterator[list[int]]:
    """Descriptors of listening sockets with these names, to be inherited; ours are closed after.

    With them a connection can be made before the process runs, so nothing polls. Raises Retry,
    or Blocked for a run_dir too long for sockets.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = [stack.enter_context(_listen(socket_path(run_dir, name))) for name in names]
        except OSError as error:
            text = f"cannot make sockets in {run_dir}: {error.strerror}"
            raise Retry(text, reason="CannotStart") from error
        yield [listener.fileno() for listener in found]


async def greeted(process: Process, greeting: Coroutine[None, None, None], launch: Launch) -> None:
    """Return when ``greeting`` is done. Raises as it does, or for a process that died first:
    Blocked (the VMM refused its arguments) or Retry, with its last line."""
    before = _size(launch.vmm_log_file)
    hello = asyncio.ensure_future(greeting)
    death = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({hello, death}, return_when=asyncio.FIRST_COMPLETED)
        if not death.done() and hello.exception() is not None:
            # Most often its sockets go a moment before the process itself.
            await asyncio.wait({death}, timeout=1.0)
        if death.done():
            raise await _stillborn(death.result(), launch, before)
        await hello
    finally:
        for task in (hello, death):
            task.cancel()
        await asyncio.gather(hello, death, return_exceptions=True)


async def _stillborn(code: int | None, launch: Launch, before: int) -> Blocked | Retry:
    line = await asyncio.to_thread(_last_words, launch, before)
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    text = f"the VMM ended at its start ({how}): {line or 'it said nothing; see the VMM log'}"
    if code is not None and code > 0 and not _PASSING.search(line):
        return Blocked(text, reason="VmmRefused")
    return Retry(text, reason="VmmDiedAtStart")


def _last_words(launch: Launch, before: int) -> str:
    """The last line the VMM wrote, once the keeper of its log has written it. Blocking, bounded."""
    if launch.vmm_log_file is None:
        return ""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
        if _unread(launch.vmm_log) == 0 and _size(launch.vmm_log_file) != before:
            break
        time.sleep(0.01)
    try:
        with launch.vmm_log_file.open("rb") as file:
            file.seek(max(0, _size(launch.vmm_log_file) - _LAST_WORDS_BYTES))
            tail = file.read(_LAST_WORDS_BYTES)
    except OSError:
        return ""
    return last_message(tail.decode(errors="replace"))


def last_message(text: str) -> str:
    """The last message of a log: its last line, or from the last timestamp on (QEMU's hints)."""
    lines = [line for line in text.splitlines() if line.strip() and line not in _NOISE]
    stamped = [n for n, line in enumerate(lines) if _STAMP.match(line)]
    words = " ".join(lines[stamped[-1] :] if stamped else lines[-1:])
    words = _PREAMBLE.sub("", words, count=1)
    return "".join(c for c in words if c.isprintable())[:_LINE_LENGTH]


def _unread(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def _listen(path: Path) -> socket.socket:
    """A listening unix socket; a stale one is replaced. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
