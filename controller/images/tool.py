"""Running one external program for a pull: bounded in time, output and file size, never orphaned.

The program gets its own session and dies with us, even by ``kill -9``: a half-done pull can then
be swept at the next start with nobody writing into it. What does not live here: what the programs
are for, and VMMs, which must outlive us.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Blocked, Timeout

_PASSED_ON = ("PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class Tools:
    """The programs a pull needs: names looked up in PATH, or paths."""

    skopeo: str = "skopeo"
    umoci: str = "umoci"
    mkfs_erofs: str = "mkfs.erofs"


@dataclass(frozen=True)
class Limits:
    """``deadline`` and ``stall`` in seconds, ``file_bytes`` per file written, ``output`` in bytes.

    ``progress`` is sampled every ``stall`` seconds; when it did not change the program is killed.
    ``capabilities``: all that is left of root's powers, as setpriv names them.
    """

    deadline: float
    output: int = 64 * 1024
    file_bytes: int | None = None
    stall: float | None = None
    progress: Callable[[], int] | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Exit status (negative: signal) and the kept part of both streams."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line said on stderr, fit for a one-line message (at most 300 characters)."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        text = lines[-1] if lines else f"exit status {self.status}"
        return "".join(c if c.isprintable() else "?" for c in text)[:300]


async def run(
    argv: Sequence[str], limits: Limits, *, home: Path, env: Mapping[str, str] | None = None
) -> Finished:
    """Run ``argv`` in ``home`` and wait for it; killed with its session on cancel or deadline.

    Output over the limit is read and dropped. Raises Timeout (deadline, or no progress), Blocked
    (program missing). A non-zero exit is not an error here.
    """
    process = await asyncio.create_subprocess_exec(
        *_wrapped(argv, limits),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        env=_environment(home) | dict(env or {}),
        start_new_session=True,
        umask=0o022,  # directories that an archive does not mention come out the same everywhere
    )
    try:
        return await _finish(process, Path(argv[0]).name, limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _wrapped(argv: Sequence[str], limits: Limits) -> list[str]:
    program = shutil.which(argv[0])
    if program is None:
        raise Blocked(
            f"the program {argv[0]} is not on this node; install it (see torpor doctor)",
            reason="ToolMissing",
        )
    sizes = [] if limits.file_bytes is None else [f"--fsize={limits.file_bytes}"]
    wrapped = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all"]
    if os.geteuid() == 0:
        wrapped.append(
            "--bounding-set=" + ",".join(["-all", *(f"+{c}" for c in limits.capabilities)])
        )
    return [*wrapped, "nice", "-n", "5", "prlimit", "--core=0", *sizes, "--", program, *argv[1:]]


def _environment(home: Path) -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k.upper() in _PASSED_ON}
    return {**passed, "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C"}


async def _finish(process: asyncio.subprocess.Process, name: str, limits: Limits) -> Finished:
    work = asyncio.ensure_future(_collect(process, limits.output))
    watch = asyncio.ensure_future(_watch(name, limits))
    try:
        async with asyncio.timeout(limits.deadline):
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            watch.result()  # raises: it only ever ends by a stall
        return work.result()
    except TimeoutError as err:
        raise Timeout(f"{name} did not finish in {limits.deadline:g} s and was ended") from err
    finally:
        work.cancel()
        watch.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def _collect(process: asyncio.subprocess.Process, limit: int) -> Finished:
    assert process.stdout is not None
    assert process.stderr is not None
    out, err, status = await asyncio.gather(
        _kept(process.stdout, limit), _kept(process.stderr, limit), process.wait()
    )
    return Finished(status, out, err.decode(errors="replace"))


async def _kept(stream: asyncio.StreamReader, limit: int) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: limit - len(kept)]
    return bytes(kept)


async def _watch(name: str, limits: Limits) -> None:
    if limits.stall is None or limits.progress is None:
        await asyncio.Event().wait()
        return
    seen = limits.progress()
    while True:
        await asyncio.sleep(limits.stall)
        now = limits.progress()
        if now == seen:
            raise Timeout(f"{name} made no progress for {limits.stall:g} s and was ended")
        seen = now
