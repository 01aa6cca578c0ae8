"""The programs and files that Torpor takes from the system, and which package brings each.

A need is met by what is there, not by a package's name: a tool that was compiled by hand counts.
What does not live here: installing (``packages``) and QEMU's source of packages (``qemu``).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH
ANSWER_SECONDS = 20
OLDEST_QEMU = (8, 2)  # older ones write into a shared memory image
OLDEST_RUST = (1, 63)  # Debian 12's
QEMU = "qemu-system-x86_64"

Version = tuple[int, int]


@dataclass(frozen=True)
class Need:
    """``package`` brings what ``met`` looks for; ``why`` completes "it is needed to …"."""

    package: str
    why: str
    met: Callable[[], bool]


def find_program(name: str) -> str | None:
    """The path of a program on PATH or in the system's own places."""
    places = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PLACES])
    return shutil.which(name, path=places)


def program_version(name: str) -> Version | None:
    """(major, minor) that ``name --version`` says; None if it is absent or does not work."""
    path = find_program(name)
    if path is None:
        return None
    try:
        answer = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None


def parse_version(text: str) -> Version | None:
    """(10, 0) of "QEMU emulator version 10.0.2 (Debian …)": the first x.y in ``text``."""
    match = re.search(r"\b(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def at_least(name: str, oldest: Version) -> Callable[[], bool]:
    """A look: is the program there and not older than ``oldest``?"""

    def met() -> bool:
        version = program_version(name)
        return version is not None and version >= oldest

    return met


def there(*names: str) -> Callable[[], bool]:
    """A look: are all these programs there?"""
    return lambda: all(find_program(name) for name in names)


def is_static(name: str) -> Callable[[], bool]:
    """A look: is the program there, and does it run where there is no C library?"""

    def met() -> bool:
        path = find_program(name)
        if path is None:
            return False
        with Path(path).open("rb") as program:
            return b"/ld-" not in program.read(4096)  # its interpreter's name comes early

    return met


def any_file(*patterns: str) -> Callable[[], bool]:
    """A look: does a file match each of these patterns (below /)?"""
    return lambda: all(any(Path("/").glob(pattern)) for pattern in patterns)


NEEDS: tuple[Need, ...] = (
    Need("ca-certificates", "fetch packages", any_file("etc/ssl/certs/ca-certificates.crt")),
    Need("skopeo", "fetch images", there("skopeo")),
    Need("umoci", "unpack images", there("umoci")),
    Need("erofs-utils", "make root file systems", there("mkfs.erofs")),
    Need("e2fsprogs", "make overlays", there("mke2fs")),
    Need("docker-registry", "run the local registry", there("docker-registry")),
    Need("busybox-static", "build the example images", is_static("busybox")),
    Need("kmod", "prepare the guest's kernel modules", there("depmod")),
    Need("util-linux", "start VMMs without privileges", there("setpriv", "prlimit", "mount")),
    Need("strace", "inject faults in tests", there("strace")),
    Need("gcc", "link the guest's init", there("cc")),
    Need("libc6-dev", "link the guest's init statically", any_file("usr/lib/*/libc.a")),
    Need("cargo", "compile the guest's init", at_least("cargo", OLDEST_RUST)),
)

qemu_met = at_least(QEMU, OLDEST_QEMU)


def unmet(needs: Iterable[Need] = NEEDS) -> list[Need]:
    """The needs that this machine does not meet."""
    return [need for need in needs if not need.met()]
