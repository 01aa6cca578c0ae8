"""Where the control plane's programs come from: the look-up, not the build (build.py).

In this order: ``$KUBEBUILDER_ASSETS``; PATH, when the version is one we are sure of; our cache; a
build. kube-apiserver, kube-scheduler and kube-controller-manager come from one place, because they
must be of one minor version.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.errors import Blocked
from controller.local import build

Progress = Callable[[str], None]
Version = tuple[int, int, int]

SERVERS = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")
ALONE = ("kubectl", "etcd")
PINNED_MINOR = (1, 36)  # as build/controlplane/kubernetes/go.mod; a test compares them
# below these the API server may not ask etcd for watch progress, and lists become slow
OLDEST_ETCD = ((3, 5, 13), (3, 4, 31))


class Binaries(dict[str, Path]):
    """Program name -> executable, for each of SERVERS and ALONE."""


def find(environ: Mapping[str, str] = os.environ) -> Binaries:
    """All that is there already, by the look-up order; what must be built is left out."""
    found = Binaries()
    for group in (SERVERS, *((name,) for name in ALONE)):
        for place in (_given, _on_path, _cached):
            if paths := place(group, environ):
                found.update(paths)
                break
    return found


def ensure(progress: Progress = lambda line: None) -> Binaries:
    """All of them, built if need be; ``progress`` receives a line of text now and then.

    Raises Blocked with what is missing when they can neither be found nor built.
    """
    found = find()
    if missing := [name for name in (*SERVERS, *ALONE) if name not in found]:
        progress(f"building {', '.join(missing)} and what goes with them (about 7 minutes, once)")
        build.publish(progress)
        found = find()
    if missing := [name for name in (*SERVERS, *ALONE) if name not in found]:
        raise Blocked(
            f"the build left out {', '.join(missing)}; remove {build.key_dir()}, try again"
        )
    return found


def suitable(name: str, version: Version) -> bool:
    """Whether a program of this version, found on PATH, is one that Torpor is tested with."""
    if name == "etcd":
        return version >= OLDEST_ETCD[0] or OLDEST_ETCD[1] <= version < (3, 5, 0)
    if name == "kubectl":  # its skew: one minor version either side
        return version[0] == 1 and abs(version[1] - PINNED_MINOR[1]) <= 1
    return version[:2] == PINNED_MINOR


def parse_version(text: str) -> Version | None:
    """The first x.y.z in what a program says about its version."""
    match = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _given(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, Path] | None:
    """Whoever sets the variable answers for the versions."""
    assets = environ.get("KUBEBUILDER_ASSETS")
    return _all_in(Path(assets), names) if assets else None


def _on_path(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, Path] | None:
    found = {}
    for name in names:
        path = shutil.which(name, path=environ.get("PATH"))
        version = None if path is None else _ask_version(name, path)
        if path is None or version is None or not suitable(name, version):
            return None
        # a cluster's own bin directory may be on PATH: never make a link to itself of it
        found[name] = Path(path).resolve()
    return found


def _cached(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, Path] | None:
    del environ  # the cache's place is a setting
    return _all_in(build.key_dir(), names)


def _all_in(directory: Path, names: tuple[str, ...]) -> dict[str, Path] | None:
    paths = {name: directory / name for name in names}
    return paths if all(os.access(path, os.X_OK) for path in paths.values()) else None


def _ask_version(name: str, path: str) -> Version | None:
    argv = [path, "version", "--client"] if name == "kubectl" else [path, "--version"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None
