"""Reading what a registry serves: index, manifest and config (pure; bytes in, values out).

Everything is refused that we cannot turn into a root filesystem, saying what was found instead.
Caps keep a hostile image from costing more than a refusal. What does not live here: fetching.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.errors import Blocked
from controller.images.image import ImageConfig
from controller.images.reference import is_digest

MANIFEST_BYTES = 4 * 1024 * 1024
CONFIG_BYTES = 4 * 1024 * 1024
MAX_LAYERS = 128
_MAX_WORDS = 4096  # entries of env, entrypoint, cmd
_MAX_SHOWN = 8
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFESTS = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
# as served -> as the unpacker knows it
_LAYERS = {
    _OCI_LAYER: _OCI_LAYER,
    f"{_OCI_LAYER}+gzip": f"{_OCI_LAYER}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": _OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{_OCI_LAYER}+gzip",
}


@dataclass(frozen=True)
class Blob:
    """A digest and how many bytes it has, and of what type (OCI media type)."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first."""

    config: Blob
    layers: tuple[Blob, ...]

    @property
    def bytes(self) -> int:
        """All bytes that have to be fetched."""
        return self.config.size + sum(layer.size for layer in self.layers)


@dataclass(frozen=True)
class Platform:
    """Operating system and architecture, in the registry's words (linux, amd64)."""

    os: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


def read(raw: bytes, platform: Platform) -> Manifest | str:
    """A Manifest, or the digest of the one for ``platform`` when ``raw`` is an index.

    Raises Blocked (ImageUnsupported).
    """
    document = _document(raw, "manifest", MANIFEST_BYTES)
    if document.get("schemaVersion") != 2:
        raise unsupported(
            f"a manifest of schema version {_show(document.get('schemaVersion'))}; push it again"
            " with a tool of this decade"
        )
    kind = document.get("mediaType")
    if kind in _INDEXES or (kind is None and "manifests" in document):
        return _chosen(document, platform)
    if kind in _MANIFESTS or (kind is None and "layers" in document):
        return _manifest(document)
    raise unsupported(f"a manifest of type {_show(kind)}")


def read_config(raw: bytes, platform: Platform) -> ImageConfig:
    """The image's config, checked. Raises Blocked (ImageUnsupported)."""
    document = _document(raw, "config", CONFIG_BYTES)
    found = Platform(_show(document.get("os")), _show(document.get("architecture")))
    if (document.get("os"), document.get("architecture")) != (platform.os, platform.architecture):
        raise unsupported(f"an image for {found}; this node runs {platform}")
    config = document.get("config") or {}
    if not isinstance(config, Mapping):
        raise unsupported("a config that is no object")
    return ImageConfig(
        entrypoint=_words(config, "Entrypoint"),
        cmd=_words(config, "Cmd"),
        env=tuple(_variable(word) for word in _words(config, "Env")),
        user=_text(config, "User"),
        workdir=_workdir(_text(config, "WorkingDir")),
    )


def unsupported(found: str) -> Blocked:
    """The error that says what was found instead of an image we can run."""
    return Blocked(f"not an image this node can run: {found}", reason="ImageUnsupported")


def _document(raw: bytes, what: str, limit: int) -> Mapping[str, Any]:
    if len(raw) > limit:
        raise unsupported(f"a {what} of over {limit} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise unsupported(f"a {what} that is no JSON") from err
    if not isinstance(document, Mapping):
        raise unsupported(f"a {what} that is no JSON object")
    return document


def _chosen(index: Mapping[str, Any], platform: Platform) -> str:
    found: list[str] = []
    for entry in _sequence(index.get("manifests"), "manifests"):
        blob = _blob(entry)
        if blob.media_type not in _MANIFESTS:
            found.append(_show(blob.media_type))
            continue
        where = entry.get("platform") or {}
        os, architecture = where.get("os"), where.get("architecture")
        if (os, architecture) == (platform.os, platform.architecture):
            return blob.digest
        if os != "unknown":  # attestations call themselves unknown/unknown
            found.append(f"{_show(os)}/{_show(architecture)}")
    shown = ", ".join(found[:_MAX_SHOWN]) + (", …" if len(found) > _MAX_SHOWN else "")
    raise unsupported(f"no {platform} in the index: {shown or 'nothing'}")


def _manifest(document: Mapping[str, Any]) -> Manifest:
    config = _blob(document.get("config"))
    artifact = document.get("artifactType")
    if config.media_type not in _CONFIGS:
        raise unsupported(f"an artifact of type {_show(artifact or config.media_type)}")
    if config.size > CONFIG_BYTES:
        raise unsupported(f"a config of {config.size} bytes; {CONFIG_BYTES} are allowed")
    layers = [_blob(entry) for entry in _sequence(document.get("layers"), "layers")]
    if not layers:
        raise unsupported("a manifest without layers")
    if len(layers) > MAX_LAYERS:
        raise unsupported(f"{len(layers)} layers; {MAX_LAYERS} are allowed")
    for layer in layers:
        if layer.media_type not in _LAYERS:
            raise unsupported(f"a layer of type {_show(layer.media_type)}; push tar or tar+gzip")
    return Manifest(config, tuple(Blob(b.digest, b.size, _LAYERS[b.media_type]) for b in layers))


def _blob(entry: object) -> Blob:
    if not isinstance(entry, Mapping):
        raise unsupported("a descriptor that is no object")
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise unsupported(f"a digest that is no sha256: {_show(digest)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**62:
        raise unsupported(f"a blob of size {_show(size)}")
    media_type = entry.get("mediaType")
    return Blob(digest, size, media_type if isinstance(media_type, str) else "")


def _sequence(value: object, what: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise unsupported(f"{what} that are no list")
    return value


def _words(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = _sequence(config.get(key), f"config.{key}")
    if len(words) > _MAX_WORDS:
        raise unsupported(f"{len(words)} entries in config.{key}; {_MAX_WORDS} are allowed")
    return tuple(_string(word, key) for word in words)


def _text(config: Mapping[str, Any], key: str) -> str:
    return _string(config.get(key) or "", key)


def _string(value: object, key: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise unsupported(f"config.{key} with {_show(value)}: text without NUL is expected")
    return value


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise unsupported(f"config.Env with {_show(word)}: NAME=value is expected")
    return name, value


def _workdir(path: str) -> str:
    if path and (not path.startswith("/") or ".." in path.split("/")):
        raise unsupported(f"config.WorkingDir {_show(path)}: an absolute path is expected")
    return path


def _show(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 100 else f"{text[:97]}..."
