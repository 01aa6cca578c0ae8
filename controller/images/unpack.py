"""From verified blobs to one erofs file: an OCI layout for umoci, the tree, the filesystem.

The same manifest gives the same bytes on any day: guests that sleep keep pages of this file in
their memory. What does not live here: fetching and checking blobs, and where images are kept.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Retry
from controller.host import files
from controller.images.image import ImageConfig
from controller.images.layers import Cost
from controller.images.manifest import Blob, Manifest, unsupported
from controller.images.tool import Limits, Tools, run

DEADLINE = 3600.0
_MAX_ACCOUNTS = 4 * 1024 * 1024  # bytes of /etc/passwd read to look a name up
# owners, modes, devices and file capabilities are restored; reading may need to pass over modes
_UNPACK = ("chown", "dac_override", "fowner", "fsetid", "mknod", "setfcap")
_READ = ("dac_override",)
_UUID = "00000000-0000-0000-0000-000000000000"
# times after this one are cut to it; before it they are kept, because interpreters compare them
_LAST_SECOND = "4102444800"


@dataclass(frozen=True)
class Unpacker:
    """Works inside a private directory ``home`` (mode 0700: it will hold set-uid files)."""

    tools: Tools
    home: Path

    def lay_out(self, blobs: Path, manifest: Manifest) -> None:
        """Move the blobs (named by hex in ``blobs``) into ``home/layout``, tagged "image"."""
        layout = self.home / "layout"
        shelf = layout / "blobs" / "sha256"
        shelf.mkdir(parents=True)
        for blob in {b.digest: b for b in (manifest.config, *manifest.layers)}.values():
            (blobs / _hex(blob.digest)).rename(shelf / _hex(blob.digest))
        raw = json.dumps(_oci_manifest(manifest)).encode()
        digest = _put(shelf, raw)
        entry = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": len(raw),
            "annotations": {"org.opencontainers.image.ref.name": "image"},
        }
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))

    async def tree(self, cost: Cost) -> Path:
        """Unpack the layout into ``home/tree``, owners kept. Raises Retry (ImageUnpackFailed,
        NoSpace)."""
        # layout and tree are relative: a colon in the store's path would end the image's name
        argv = [self.tools.umoci, "raw", "unpack", "--image", "layout:image", "tree"]
        limits = Limits(DEADLINE, file_bytes=cost.bytes + _MAX_ACCOUNTS, capabilities=_UNPACK)
        await self._run(argv, limits)
        return self.home / "tree"

    async def filesystem(self, tree: Path, output: Path, cost: Cost) -> None:
        """Make the erofs file. Raises Retry (ImageUnpackFailed, NoSpace)."""
        argv = [self.tools.mkfs_erofs, "--quiet", "-U", _UUID, str(output), str(tree)]
        size = 2 * cost.on_disk + _MAX_ACCOUNTS
        limits = Limits(DEADLINE, file_bytes=size, capabilities=_READ)
        await self._run(argv, limits, env={"SOURCE_DATE_EPOCH": _LAST_SECOND})

    async def _run(
        self, argv: list[str], limits: Limits, env: dict[str, str] | None = None
    ) -> None:
        done = await run(argv, limits, home=self.home, env=env)
        if done.status == 0:
            return
        if "no space left" in done.stderr.lower() or "quota exceeded" in done.stderr.lower():
            raise Retry(
                f"no space left while unpacking in {self.home.parent}; free some",
                reason="NoSpace",
            )
        raise Retry(
            f"{Path(argv[0]).name} failed: {done.last_words}; push the image again if it stays so",
            reason="ImageUnpackFailed",
        )


def settle_times(tree: Path, since: float) -> None:
    """Give what the unpacker itself made (mtime not before ``since``, Unix time) a fixed time.

    Directories that no layer mentions would otherwise carry today's date.
    """
    pending = [tree]
    while pending:
        path = pending.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.stat(follow_symlinks=False).st_mtime >= since:
                    os.utime(entry.path, (0, 0), follow_symlinks=False)
        if path.stat().st_mtime >= since:
            os.utime(path, (0, 0))


def check_user(tree: Path, config: ImageConfig) -> None:
    """Raises Blocked (ImageUnsupported) when the image names a user or group that it lacks."""
    user, _, group = config.user.partition(":")
    for name, file in ((user, "passwd"), (group, "group")):
        if not name or name.isdecimal():
            continue
        lines = _read_inside(tree, f"etc/{file}")
        if lines is not None and not any(
            line.split(b":")[0] == name.encode() for line in lines.splitlines()
        ):
            raise unsupported(f"config.User {config.user!r}, which its /etc/{file} does not have")


def _read_inside(tree: Path, relative: str) -> bytes | None:
    """A file's first bytes, following no link; b"" if absent, None if only the guest can tell."""
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = files.open_beneath(root, relative, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    except OSError:
        return None  # behind a link, which only means something in the guest's own root
    finally:
        os.close(root)
    try:
        return os.pread(file, _MAX_ACCOUNTS, 0)
    except OSError:  # a pipe or a device
        return None
    finally:
        os.close(file)


def _oci_manifest(manifest: Manifest) -> dict[str, object]:
    config = Blob(
        manifest.config.digest,
        manifest.config.size,
        "application/vnd.oci.image.config.v1+json",
    )
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor(config),
        "layers": [_descriptor(layer) for layer in manifest.layers],
    }


def _descriptor(blob: Blob) -> dict[str, object]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _put(shelf: Path, raw: bytes) -> str:
    name = hashlib.sha256(raw).hexdigest()
    (shelf / name).write_bytes(raw)
    return f"sha256:{name}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
