"""Build one of our own small Rust programs, once per content of its sources.

The result lives below the cache directory, named by a digest of the sources, the flags and the
compiler: a second call is a look at one file. Needs no network: these programs have no
dependencies. What does not live here: what the programs do, and which there are.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from controller.errors import Blocked

# Static: the program also runs where there is no C library (in a guest), and a keeper needs less
# memory without a dynamic linker.
_FLAGS = "-C target-feature=+crt-static"
_BUILD_SECONDS = 600


def build(source: Path, binary: str, cache_dir: Path) -> Path:
    """Return the release executable ``binary`` of the crate in ``source``. Blocking, seconds once.

    Safe to call from several processes at once: one builds, the others wait. Raises Blocked
    (reason NoCompiler, or BuildFailed with the compiler's first error).
    """
    cargo = _tool("cargo")
    target = place(source, binary, cache_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(cargo, source, binary, target)
    return target


def place(source: Path, binary: str, cache_dir: Path) -> Path:
    """Where ``build`` puts the executable; there when it was built. Raises Blocked (NoCompiler)."""
    return cache_dir / "bin" / _digest(source, _tool("rustc")) / binary


def _build(cargo: str, source: Path, binary: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        argv = [cargo, "build", "--release", "--locked", "--offline", "--target-dir", scratch]
        done = subprocess.run(
            [*argv, "--manifest-path", str(source / "Cargo.toml")],
            env={**os.environ, "RUSTFLAGS": _FLAGS},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
            said = lines[0] if lines else f"nothing (status {done.returncode})"
            raise Blocked(f"cannot build {binary}: cargo said {said}", reason="BuildFailed")
        # The rename is what others see: never half a program.
        (Path(scratch) / "release" / binary).rename(target)


def _digest(source: Path, rustc: str) -> str:
    version = subprocess.run([rustc, "-V"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + _FLAGS.encode())
    files = [source / "Cargo.toml", source / "Cargo.lock", *sorted(source.glob("src/**/*.rs"))]
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(source)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:24]


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path.home() / ".cargo" / "bin"))
    if not found:
        raise Blocked(f"cannot build: no {name} here; install cargo and rustc", reason="NoCompiler")
    return found
