"""Guest kernels: Debian's newest cloud kernel, or one that the admin names; kept while in use.

The version is never written down here: the meta package says what is newest, because the archive
drops old ones. A store directory holds one directory per kernel, named by the digest of its
image, and a file ``current`` that names the one for the next cold boot.

What does not live here: initrds, and who uses which kernel.
"""

import contextlib
import fcntl
import hashlib
import json
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Blocked, Retry
from controller.host import files

_META_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
_APT_LISTS = Path("/var/lib/apt/lists")  # touched by every apt-get update that brought news
_SECONDS = 600  # for a download over a slow line
_BZIMAGE_MAGIC = (0x202, b"HdrS")
_BZIMAGE_VERSION = 0x20E  # u16: where the version text is, less 0x200


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel. ``digest`` is the SHA-256 of ``vmlinuz`` in hex; ``modules`` is its
    directory with modules.dep, None when everything is built in; ``package`` is where it came
    from, for people.
    """

    version: str
    digest: str
    vmlinuz: Path
    modules: Path | None
    package: str


class KernelStore:
    """All kernels of this node, below ``root``. Every method blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def current(self) -> Kernel | None:
        """The kernel for the next cold boot, None before the first ``ensure``."""
        try:
            return self.get((self._root / "current").read_text().strip())
        except FileNotFoundError:
            return None

    def get(self, digest: str) -> Kernel | None:
        """The kernel with this digest, None if it is not here."""
        home = self._root / digest
        try:
            meta = json.loads((home / "kernel.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        modules = home / "modules" if meta["modules"] else None
        return Kernel(meta["version"], digest, home / "vmlinuz", modules, meta["package"])

    def home(self, kernel: Kernel) -> Path:
        """The directory of a kernel, for what is derived from it; it goes when the kernel goes."""
        return self._root / kernel.digest

    def ensure(self) -> Kernel:
        """Debian's newest cloud kernel, fetched if it is not here; it becomes current.

        Falls back on the current one when the archive cannot be asked. Raises Blocked (NoKernel)
        where there is no apt, Retry (KernelUnavailable) when nothing can be had now.
        """
        have = self.current()
        if have and self._asked_since_apt_changed():
            return have
        try:
            package = _newest_package()
            if have and have.package == package:
                return self._make_current(have)
            return self._fetch(package)
        except Retry:
            if have:
                return have
            raise

    def adopt(self, vmlinuz: Path, modules: Path | None) -> Kernel:
        """Take in a kernel that the admin named; it becomes current.

        Raises Blocked (KernelUnusable) when it cannot be read.
        """
        try:
            digest = _digest(vmlinuz)
            with self._locked():
                found = self.get(digest)
                if found is None or (found.modules is None) != (modules is None):
                    found = self._store(digest, vmlinuz, modules, str(vmlinuz))
                return self._make_current(found)
        except OSError as err:
            raise Blocked(
                f"kernel {vmlinuz}: {err}; correct kernel and kernel_modules in the settings",
                reason="KernelUnusable",
            ) from err

    def collect(self, in_use: set[str]) -> list[str]:
        """Remove kernels that are neither current nor in ``in_use`` (digests). Gives their digests.

        Only with a complete list: a kernel missing from it is gone for good.
        """
        with self._locked():
            current = self.current()
            keep = in_use | ({current.digest} if current else set())
            gone = [d.name for d in self._root.iterdir() if d.is_dir() and d.name not in keep]
            for name in gone:
                files.remove_tree(self._root / name)
            return gone

    def _asked_since_apt_changed(self) -> bool:
        try:
            return _APT_LISTS.stat().st_mtime < (self._root / "current").stat().st_mtime
        except FileNotFoundError:
            return False

    def _fetch(self, package: str) -> Kernel:
        with self._locked(), tempfile.TemporaryDirectory(dir=self._root, prefix=".fetch-") as tmp:
            have = self.current()
            if have and have.package == package:  # another process was faster
                return have
            tree = Path(tmp) / "tree"
            _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=tmp)
            (deb,) = Path(tmp).glob("*.deb")
            _run("dpkg", "-x", str(deb), str(tree), cwd=tmp)
            (vmlinuz,) = (tree / "boot").glob("vmlinuz-*")
            version = vmlinuz.name.removeprefix("vmlinuz-")
            modules = next(p for p in tree.glob(f"**/modules/{version}") if p.is_dir())
            _run("depmod", "-b", str(modules.parents[2]), version, cwd=tmp)
            return self._make_current(self._store(_digest(vmlinuz), vmlinuz, modules, package))

    def _store(self, digest: str, vmlinuz: Path, modules: Path | None, package: str) -> Kernel:
        """Copy into a directory of its own; the rename is what others see."""
        version = bzimage_version(vmlinuz) or (modules.name if modules else vmlinuz.name)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as tmp:
            home = Path(tmp) / "kernel"
            home.mkdir(mode=0o755)
            shutil.copyfile(vmlinuz, home / "vmlinuz")
            if modules:
                skip = shutil.ignore_patterns("build", "source")
                shutil.copytree(modules, home / "modules", ignore=skip)
            meta = {"version": version, "package": package, "modules": modules is not None}
            (home / "kernel.json").write_text(json.dumps(meta))
            _run("sync", "-f", str(home))  # a name that is there must mean files that are whole
            if (self._root / digest).exists():
                files.remove_tree(self._root / digest)
            home.rename(self._root / digest)
            files.fsync_dir(self._root)
        stored = self.get(digest)
        assert stored is not None
        return stored

    def _make_current(self, kernel: Kernel) -> Kernel:
        files.write_atomic(self._root / "current", f"{kernel.digest}\n".encode(), 0o644)
        return kernel

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def bzimage_version(path: Path) -> str | None:
    """The version that an x86 kernel image states, None for any other file."""
    with path.open("rb") as file:
        head = file.read(64 * 1024)
    at, magic = _BZIMAGE_MAGIC
    if head[at : at + 4] != magic:
        return None
    start = struct.unpack_from("<H", head, _BZIMAGE_VERSION)[0] + 0x200
    words = head[start : start + 256].split(b"\0")[0].split()
    return words[0].decode("ascii", "replace") if words else None


def _newest_package() -> str:
    """``name=version`` of the package that the meta package depends on."""
    meta = _META_PACKAGES.get(platform.machine())
    if meta is None:
        raise Blocked(f"no guest kernel is known for {platform.machine()}", reason="NoKernel")
    depends = _run("apt-cache", "depends", "--important", meta)
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise Retry(
            f"apt knows no {meta}; run apt-get update, or set kernel in the settings",
            reason="KernelUnavailable",
        )
    show = _run("apt-cache", "show", "--no-all-versions", names[0])
    version = next(line.split()[-1] for line in show.splitlines() if line.startswith("Version:"))
    return f"{names[0]}={version}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(tool: str, *args: str, cwd: str | None = None) -> str:
    found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if not found:
        raise Blocked(
            f"guest kernel: no {tool} here; install coreutils, apt, dpkg and kmod, or set kernel "
            f"and kernel_modules in the settings",
            reason="NoKernel",
        )
    done = subprocess.run(
        [found, *args], cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise Retry(f"guest kernel: {tool} said {said}", reason="KernelUnavailable")
    return done.stdout
