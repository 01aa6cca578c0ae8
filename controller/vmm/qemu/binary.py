"""The QEMU binary: where it is, how old it is, which build, which machine type is its newest.

What does not live here: whether KVM works (``host.facts``).
"""

import asyncio
import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Blocked, Retry
from controller.vmm.driver import Version

MINIMUM = (8, 2)
_SECONDS = 20.0
_REMEDY = (
    "install qemu-system-x86 8.2 or newer (Debian 12 has it in bookworm-backports:"
    " apt-get install -t bookworm-backports qemu-system-x86)"
)


@dataclass(frozen=True)
class _Found:
    """What is known of a file as long as it looks like ``key``."""

    key: tuple[str, int, int, int]
    version: Version
    build: str


class Binary:
    """One QEMU binary; asked once, and again when the file has changed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: _Found | None = None

    def path(self) -> str:
        """The absolute path. Raises Blocked when it is not there."""
        found = shutil.which(self._name)
        if found is None:
            raise Blocked(f"no {self._name} on this host: {_REMEDY}", reason="VmmMissing")
        return str(Path(found).absolute())

    async def version(self) -> Version:
        """Ask the binary. Raises Blocked (missing, too old, no q35), Retry (does not answer)."""
        return (await self._look()).version

    async def build(self) -> str:
        """Which build of its version: package and digest of the file. Raises as ``version``."""
        return (await self._look()).build

    async def _look(self) -> _Found:
        path = self.path()
        stat = Path(path).stat()  # an upgrade while we run is noticed
        key = (path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._known is None or self._known.key != key:
            said, machines, digest = await asyncio.gather(
                asyncio.to_thread(_run, path, "-version"),
                asyncio.to_thread(_run, path, "-machine", "help"),
                asyncio.to_thread(_digest, path),
            )
            version = Version(parse_version(said, path), newest_q35(machines, path))
            self._known = _Found(key, version, build_of(said, digest))
        return self._known


def parse_version(text: str, path: str) -> str:
    """The version in the first line of ``-version``. Raises Blocked when it is below the floor."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise Blocked(f"{path} says no QEMU version: {_REMEDY}", reason="VmmUnsupported")
    if (int(match[1]), int(match[2])) < MINIMUM:
        raise Blocked(f"{path} is QEMU {match[0][8:]}, too old: {_REMEDY}", reason="VmmTooOld")
    return match[0][8:]


def build_of(text: str, digest: str) -> str:
    """The package that ``-version`` names, if it does, and the beginning of the file's digest."""
    package = re.search(r"version \S+ \((.{1,100})\)", text)
    return f"{package[1]}, {digest[:16]}" if package else digest[:16]


def newest_q35(text: str, path: str) -> str:
    """The newest versioned q35 in ``-machine help``: "q35" itself means another one tomorrow."""
    found = [
        (tuple(map(int, match[1].split("."))), match[0])
        for match in re.finditer(r"^pc-q35-([\d.]+)(?=\s)", text, re.MULTILINE)
    ]
    if not found:
        raise Blocked(f"{path} knows no q35 machine: {_REMEDY}", reason="VmmUnsupported")
    return max(found)[1]


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Blocked(
            f"{path} cannot be read: {error.strerror}: {_REMEDY}", reason="VmmUnsupported"
        ) from error


def _run(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise Retry(f"{argv[0]} {argv[1]} did not answer within {_SECONDS:g} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise Blocked(
            f"{argv[0]} cannot run: {error}: {_REMEDY}", reason="VmmUnsupported"
        ) from error
    return done.stdout
