"""The look-up order of the control plane's programs, with programs that only tell a version."""

import re
from pathlib import Path

import pytest

from controller.local import binaries, build
from controller.local.binaries import ALONE, SERVERS, parse_version, suitable

PROGRAMS = (*SERVERS, *ALONE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))


def _install(directory: Path, *names: str, version: str = "1.36.3") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = directory / name
        program.write_text(f"#!/bin/sh\necho {name} v{version}\n")
        program.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("name", "version", "good"),
    [
        ("kube-apiserver", (1, 36, 0), True),
        ("kube-apiserver", (1, 35, 9), False),
        ("kube-scheduler", (1, 37, 0), False),
        ("kubectl", (1, 35, 0), True),
        ("kubectl", (1, 37, 1), True),
        ("kubectl", (1, 32, 4), False),
        ("etcd", (3, 6, 14), True),
        ("etcd", (3, 5, 13), True),
        ("etcd", (3, 5, 12), False),
        ("etcd", (3, 4, 31), True),
        ("etcd", (3, 4, 23), False),
    ],
)
def test_only_versions_we_are_sure_of_are_suitable(
    name: str, version: tuple[int, int, int], good: bool
) -> None:
    assert suitable(name, version) is good


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Kubernetes v1.36.3", (1, 36, 3)),
        ("etcd Version: 3.6.14\nGit SHA: x\nGo Version: go1.26.8\n", (3, 6, 14)),
        ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0\n", (1, 32, 4)),
        ("no version at all", None),
    ],
)
def test_version_is_read_from_what_programs_say(
    text: str, version: tuple[int, int, int] | None
) -> None:
    assert parse_version(text) == version


def test_assets_come_first_then_path_then_cache(tmp_path: Path) -> None:
    cache = _install(build.key_dir(), *PROGRAMS)
    path = _install(tmp_path / "path", *SERVERS, "kubectl")
    assets = _install(tmp_path / "assets", *SERVERS)
    environ = {"KUBEBUILDER_ASSETS": str(assets), "PATH": str(path)}

    found = binaries.find(environ)

    assert found["kube-apiserver"].parent == assets
    assert found["kubectl"].parent == path
    assert found["etcd"].parent == cache


def test_servers_come_from_one_place(tmp_path: Path) -> None:
    cache = _install(build.key_dir(), *PROGRAMS)
    assets = _install(tmp_path / "assets", "kube-apiserver", "etcd", "kubectl")
    found = binaries.find({"KUBEBUILDER_ASSETS": str(assets), "PATH": ""})
    assert {found[name].parent for name in SERVERS} == {cache}
    assert {found[name].parent for name in ALONE} == {assets}


def test_unsuitable_version_on_path_is_passed_over(tmp_path: Path) -> None:
    cache = _install(build.key_dir(), *PROGRAMS)
    old = _install(tmp_path / "path", *SERVERS, "kubectl", version="1.32.4")
    found = binaries.find({"PATH": str(old)})
    assert {path.parent for path in found.values()} == {cache}


def test_link_on_path_is_followed_to_the_program(tmp_path: Path) -> None:
    """A cluster's own bin directory is on PATH, and the next start makes its links anew."""
    cache = _install(build.key_dir(), *PROGRAMS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").symlink_to(cache / "kubectl")
    found = binaries.find({"PATH": str(tmp_path / "bin")})
    assert found["kubectl"] == (cache / "kubectl").resolve()


def test_what_is_nowhere_is_left_out(tmp_path: Path) -> None:
    path = _install(tmp_path / "path", "etcd", version="3.6.0")
    assert set(binaries.find({"PATH": str(path)})) == {"etcd"}


def test_pinned_minor_is_that_of_the_module() -> None:
    text = (build.MODULES / "kubernetes" / "go.mod").read_text()
    match = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.", text)
    assert match is not None
    assert (int(match[1]), int(match[2])) == binaries.PINNED_MINOR
