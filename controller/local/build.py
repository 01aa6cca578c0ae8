"""Builds the control plane from pinned Go modules, once, into the cache.

The result is a directory named by the digest of the go.mod and go.sum files; it appears by one
rename, so whoever sees it sees all of it. What does not live here: the Go toolchain (toolchain.py)
and the question whether a build is needed (binaries.py).
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.errors import Blocked
from controller.local import toolchain
from controller.settings import GIB, cache_dir

MODULES = Path(__file__).resolve().parents[2] / "build" / "controlplane"
NEEDED_BYTES = 6 * GIB  # modules, Go's build cache and the programs
VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
KUBERNETES = tuple(
    f"k8s.io/kubernetes/cmd/{name}"
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
)
ETCD = ("go.etcd.io/etcd/server/v3",)


def key_dir() -> Path:
    """Where this source tree's control plane is, or will be once it is built."""
    return cache_dir() / "bin" / f"controlplane-{_digest()}"


def publish(progress: Callable[[str], None]) -> Path:
    """Build everything unless somebody did meanwhile; returns the directory.

    Two builders do not race: the second waits for the first and takes its result. Raises Blocked
    when there is no Go, no room, no module source, or the compiler fails.
    """
    target = key_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(target.parent, progress):
        if target.is_dir():
            return target
        _check_room(target.parent)
        go = toolchain.ensure(progress)
        with tempfile.TemporaryDirectory(prefix=".controlplane-", dir=target.parent) as scratch:
            built = Path(scratch) / "bin"
            _go_build(go, MODULES / "etcd", ETCD, "", built / "etcd", progress)
            flags = version_flags((MODULES / "kubernetes" / "go.mod").read_text())
            _go_build(go, MODULES / "kubernetes", KUBERNETES, flags, built, progress)
            built.rename(target)
    return target


def version_flags(go_mod: str) -> str:
    """The linker flags that tell Kubernetes its version: the module proxy does not fill it in."""
    match = re.search(
        r"^(?:require|\t)\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)(?: //.*)?$",
        go_mod,
        re.MULTILINE,
    )
    if match is None:
        raise Blocked("build/controlplane/kubernetes/go.mod names no k8s.io/kubernetes version")
    facts = {
        "gitVersion": match[1],
        "gitMajor": match[2],
        "gitMinor": match[3],
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    return " ".join(
        f"-X {package}.{key}={value}"
        for package in VERSION_PACKAGES
        for key, value in facts.items()
    )


def _digest() -> str:
    total = hashlib.sha256()
    for module in ("etcd", "kubernetes"):
        for name in ("go.mod", "go.sum"):
            path = MODULES / module / name
            try:
                total.update(path.read_bytes())
            except FileNotFoundError as err:
                raise Blocked(f"{path} is missing; run Torpor from its source tree") from err
    return total.hexdigest()[:16]


@contextmanager
def _only_builder(directory: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with (directory / ".controlplane.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build of the control plane is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file lets the lock go


def _check_room(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise Blocked(
            f"{directory} has {free // GIB} GiB free, the build takes {NEEDED_BYTES // GIB}; "
            "make room or set TORPOR_CACHE to another disk",
            reason="NoSpace",
        )


def _go_build(
    go: Path,
    module: Path,
    packages: tuple[str, ...],
    flags: str,
    output: Path,
    progress: Callable[[str], None],
) -> None:
    """One ``go build``. ``output`` is a file for one package, a directory for several."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [str(go), "build", "-v", "-trimpath", "-ldflags", f"-s -w {flags}"]
    command += ["-o", f"{output}/" if len(packages) > 1 else str(output), *packages]
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",  # static: the programs run wherever they are copied
        "GOTOOLCHAIN": "local",  # never fetch another compiler behind our back
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
    }
    process = subprocess.Popen(
        command,
        cwd=module,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # -v: one line for each package compiled
        text=True,
    )
    last = ""
    assert process.stderr is not None  # asked for above
    with process.stderr:
        for line in process.stderr:
            last = line.strip() or last
            progress(last)
    if process.wait() != 0:
        raise Blocked(f"building {module.name} with {go} failed: {last}; run it again for the rest")
