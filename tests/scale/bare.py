"""The same VMM without us: the argv of a running one, spawned by a script, to its first byte.

Same kernel, initrd, image and config; a writable disk made as fresh as the Instance's was. Left out
of argv is ``-S`` alone, so that nobody has to tell it to go.
"""

import asyncio
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from controller.volumes import disk

_FD = re.compile(r"\bfd=(\d+)")


@dataclass(frozen=True)
class BareBoot:
    """A boot that can be repeated, in ``home``, which is its own."""

    argv: tuple[str, ...]
    home: Path
    overlay_bytes: int

    @staticmethod
    def like(pid: int, instance: Path, home: Path) -> "BareBoot":
        """As process ``pid`` was started, whose Instance's files are in ``instance``."""
        text = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        overlay = instance / "disk" / "overlay.raw"
        shutil.copy(instance / "config.img", home / "config.img")
        moved = [
            word.replace(str(overlay), str(home / "overlay.raw")).replace(
                str(instance / "config.img"), str(home / "config.img")
            )
            for word in text
            if word != "-S"
        ]
        moved[moved.index("-D") + 1] = str(home / "ending")
        assert str(instance) not in " ".join(moved), moved
        return BareBoot(tuple(moved), home, overlay.stat().st_size)

    def seconds_to_first_byte(self, patience: float) -> float:
        """Spawn it, wait for the workload's first byte, kill it."""
        disk.remove(self.home / "overlay.raw")
        asyncio.run(disk.create_overlay(self.home / "overlay.raw", self.overlay_bytes))
        with ExitStack() as stack:
            output, argv, kept = self._wire(stack)
            began = time.monotonic()
            process = subprocess.Popen(
                argv, pass_fds=kept, stdin=subprocess.DEVNULL, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGKILL)
            ready, _, _ = select.select([output], [], [], patience)
            took = time.monotonic() - began
            assert ready, f"no byte in {patience} s; {process.poll()=}"
            assert os.read(output, 1), f"it ended: {process.poll()=}"
        return took

    def _wire(self, stack: ExitStack) -> tuple[int, list[str], list[int]]:
        """The read end of the workload's log, argv with descriptors of our own, and those."""
        output, log = os.pipe()
        stack.callback(os.close, output)
        stack.callback(os.close, log)
        log_set = next(word for word in self.argv if word.startswith("file,id=log,"))
        number = re.search(r"/dev/fdset/(\d+)", log_set)
        assert number, log_set
        kept = [log]

        def own(word: str) -> str:
            if _FD.search(word) is None:
                return word
            if word.endswith(f",set={number[1]}"):
                return _FD.sub(f"fd={log}", word)
            kept.append(_nowhere(stack) if ",set=" in word else _listener(stack))
            return _FD.sub(f"fd={kept[-1]}", word)

        return output, [own(word) for word in self.argv], kept


def _nowhere(stack: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, fd)
    return fd


def _listener(stack: ExitStack) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind("")  # any abstract name: nobody connects
    sock.listen(1)
    return sock.fileno()
