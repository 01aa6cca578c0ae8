"""Manifests and configs: what is not an image for this node is refused, naming what was found."""

import json
from typing import Any

import pytest

from controller.errors import Blocked
from controller.images.image import ImageConfig
from controller.images.manifest import (
    CONFIG_BYTES,
    MANIFEST_BYTES,
    MAX_LAYERS,
    Manifest,
    Platform,
    read,
    read_config,
)

HERE = Platform("linux", "amd64")
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


def digest(n: int) -> str:
    return f"sha256:{n:064x}"


def blob(media_type: str, n: int = 1, size: int = 10) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(n), "size": size}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob(f"{OCI}.config.v1+json"),
        "layers": [blob(f"{OCI}.layer.v1.tar+gzip", 2)],
    } | changes


def index(*platforms: tuple[str, str]) -> dict[str, Any]:
    entries = [
        blob(f"{OCI}.manifest.v1+json", n) | {"platform": {"os": os, "architecture": arch}}
        for n, (os, arch) in enumerate(platforms)
    ]
    return {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}


def raw(document: object) -> bytes:
    return json.dumps(document).encode()


def config(document: dict[str, Any] | None = None, **changes: Any) -> bytes:
    return raw({"os": "linux", "architecture": "amd64", "config": document or {}} | changes)


def test_docker_manifest_reads_as_the_same_layers_as_oci() -> None:
    docker = manifest(
        mediaType=f"{DOCKER}.distribution.manifest.v2+json",
        config=blob(f"{DOCKER}.container.image.v1+json"),
        layers=[blob(f"{DOCKER}.image.rootfs.diff.tar.gzip", 2)],
    )
    ours = read(raw(manifest()), HERE)
    theirs = read(raw(docker), HERE)
    assert isinstance(ours, Manifest)
    assert isinstance(theirs, Manifest)
    assert theirs.layers == ours.layers
    assert ours.bytes == 20


def test_manifest_without_a_media_type_is_known_by_its_shape() -> None:
    document = manifest()
    del document["mediaType"]
    assert isinstance(read(raw(document), HERE), Manifest)


def test_index_gives_the_manifest_of_this_platform() -> None:
    document = index(("unknown", "unknown"), ("linux", "arm64"), ("linux", "amd64"))
    assert read(raw(document), HERE) == digest(2)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        index(("linux", "arm64"), ("windows", "amd64")),
        "no linux/amd64 in the index: linux/arm64, windows/amd64",
    ),
    (index(("unknown", "unknown")), "in the index: nothing"),
    (index(), "in the index: nothing"),
    (index(*[("plan9", f"a{n}") for n in range(100)]), "plan9/a7, …"),
    ({"schemaVersion": 1, "fsLayers": []}, "schema version 1"),
    (manifest(schemaVersion="2"), "schema version 2"),
    (manifest(mediaType="text/plain"), "a manifest of type text/plain"),
    ({"schemaVersion": 2}, "a manifest of type None"),
    (manifest(config=blob("application/vnd.cncf.helm.config.v1+json")), "artifact of type .*helm"),
    (manifest(artifactType="a/b", config=blob("c/d")), "artifact of type a/b"),
    (manifest(layers=[]), "without layers"),
    (manifest(layers=None), "without layers"),
    (manifest(layers={}), "no list"),
    (manifest(layers=[blob(f"{OCI}.layer.v1.tar")] * (MAX_LAYERS + 1)), "129 layers; 128"),
    (manifest(layers=[blob(f"{OCI}.layer.v1.tar+zstd")]), "a layer of type .*zstd; push tar"),
    (manifest(layers=[{"digest": "sha256:../../etc/passwd", "size": 1}]), "no sha256: sha256:"),
    (manifest(layers=[blob(f"{OCI}.layer.v1.tar", size=-1)]), "a blob of size -1"),
    (manifest(layers=[blob(f"{OCI}.layer.v1.tar") | {"size": True}]), "a blob of size True"),
    (manifest(layers=["x"]), "descriptor that is no object"),
    (manifest(config=blob(f"{OCI}.config.v1+json", size=CONFIG_BYTES + 1)), "a config of 4194305"),
]


@pytest.mark.parametrize(("document", "found"), REFUSED)
def test_what_is_no_image_for_here_is_refused_by_what_it_is(
    document: dict[str, Any], found: str
) -> None:
    with pytest.raises(Blocked, match=found) as refused:
        read(raw(document), HERE)
    assert refused.value.reason == "ImageUnsupported"
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "bytes_", [b"", b"no json", b"[]", b"[" * 100_000, b" " * (MANIFEST_BYTES + 1), b"\xff\xfe\xfd"]
)
def test_garbage_is_refused_and_not_raised_through(bytes_: bytes) -> None:
    with pytest.raises(Blocked):
        read(bytes_, HERE)
    with pytest.raises(Blocked):
        read_config(bytes_, HERE)


def test_config_is_read_whole_and_in_order() -> None:
    document = {
        "Entrypoint": ["/bin/app", "--x"],
        "Cmd": ["a b", 'q"', "ü\n"],
        "Env": ["PATH=/bin", "EMPTY=", "EQUALS=a=b"],
        "User": "app:staff",
        "WorkingDir": "/srv",
    }
    assert read_config(config(document), HERE) == ImageConfig(
        ("/bin/app", "--x"),
        ("a b", 'q"', "ü\n"),
        (("PATH", "/bin"), ("EMPTY", ""), ("EQUALS", "a=b")),
        "app:staff",
        "/srv",
    )


def test_config_that_says_nothing_is_empty() -> None:
    nothing = {"Entrypoint": None, "Cmd": None, "Env": None, "User": "", "WorkingDir": ""}
    assert read_config(config(nothing), HERE) == ImageConfig()
    assert read_config(raw({"os": "linux", "architecture": "amd64"}), HERE) == ImageConfig()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"architecture": "arm64"}, "an image for linux/arm64; this node runs linux/amd64"),
        ({"os": "windows"}, "an image for windows/amd64"),
        ({"os": None}, "an image for None/amd64"),
        ({"config": []}, None),
        ({"config": ["x"]}, "config that is no object"),
        ({"config": {"Entrypoint": ["a\0b"]}}, "config.Entrypoint with .*NUL"),
        ({"config": {"Entrypoint": "sh -c x"}}, "config.Entrypoint that are no list"),
        ({"config": {"Cmd": [1]}}, "config.Cmd with 1"),
        ({"config": {"Env": ["NOEQUALS"]}}, "NAME=value"),
        ({"config": {"Env": ["=x"]}}, "NAME=value"),
        ({"config": {"Env": ["A=b"] * 4097}}, "4097 entries"),
        ({"config": {"User": 5}}, "config.User with 5"),
        ({"config": {"WorkingDir": "../.."}}, "an absolute path"),
        ({"config": {"WorkingDir": "/a/../../b"}}, "an absolute path"),
        ({"config": {"WorkingDir": "srv"}}, "an absolute path"),
    ],
)
def test_config_that_no_guest_could_follow_is_refused(
    changes: dict[str, Any], found: str | None
) -> None:
    if found is None:  # some tools write an empty list where they mean an empty object
        assert read_config(config(**changes), HERE) == ImageConfig()
        return
    with pytest.raises(Blocked, match=found):
        read_config(config(**changes), HERE)
