"""A real registry (Debian's docker-registry) on a loopback port, and images made from nothing.

What no honest registry would serve comes from ``tests.fake_registry``.
"""

import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("docker-registry", "skopeo", "umoci", "mkfs.erofs")


def missing() -> list[str]:
    """The programs that this machine lacks for it."""
    return [name for name in NEEDED if shutil.which(name) is None]


@dataclass(frozen=True)
class Registry:
    """``address`` is host:port, as it stands at the start of a reference."""

    address: str

    def push(self, layout: Path, name: str) -> str:
        """Push the image of an OCI layout as ``name`` (path:tag); its whole reference."""
        reference = f"{self.address}/{name}"
        run(
            *("skopeo", "copy", "-q", "--dest-tls-verify=false"),
            *(f"oci:{layout}:image", f"docker://{reference}"),
        )
        return reference

    def digest(self, name: str) -> str:
        """The digest of the manifest that ``name`` (path:tag) means now."""
        path, _, tag = name.rpartition(":")
        request = urllib.request.Request(
            f"http://{self.address}/v2/{path}/manifests/{tag}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["Docker-Content-Digest"])


@contextmanager
def running_registry(directory: Path) -> Iterator[Registry]:
    """Start one that keeps its blobs below ``directory``; gone, with its process, afterwards."""
    address = f"127.0.0.1:{_free_port()}"
    config = directory / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(config)],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_it_answers(address, process)
        yield Registry(address)
    finally:
        process.kill()
        process.wait()


def tar(*entries: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """An archive of the entries in this order; (name, content) is an ordinary file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size, info.mode = len(entry[1]), 0o755
            archive.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def entry(name: str, kind: bytes, link: str = "", **rest: int) -> tarfile.TarInfo:
    """An archive entry without content: ``kind`` is one of tarfile's types."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.mode = 0o755
    for key, value in rest.items():
        setattr(info, key, value)
    return info


def build_image(
    directory: Path,
    *layers: bytes,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    workdir: str = "",
) -> Path:
    """Make an OCI layout of tar layers (see ``tar``) in a new directory below ``directory``."""
    layout = Path(tempfile.mkdtemp(prefix="image-", dir=directory)) / "layout"
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:image")
    for layer in layers:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(layer)
            file.flush()
            run("umoci", "raw", "add-layer", "--image", f"{layout}:image", file.name)
    options = [f"--config.entrypoint={word}" for word in entrypoint]
    options += [f"--config.cmd={word}" for word in cmd]
    options += [f"--config.env={key}={value}" for key, value in (env or {}).items()]
    options += [f"--config.user={user}"] * bool(user)
    options += [f"--config.workingdir={workdir}"] * bool(workdir)
    run("umoci", "config", "--image", f"{layout}:image", *options)
    return layout


def run(*argv: str) -> None:
    """Run a program; its stderr is in the error when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not _answers(address):
        assert process.poll() is None, "docker-registry ended; see registry.log"
        assert time.monotonic() < deadline, f"docker-registry at {address} does not answer"
        time.sleep(0.01)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False
