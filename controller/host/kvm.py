"""Whether KVM works here: proven by a guest that boots, because nothing less is proof.

There are hosts where /dev/kvm opens, answers its version and makes a virtual machine, and where a
guest then hangs or the VMM aborts. What does not live here: which VMM binary or kernel is used.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.errors import Retry
from controller.host.files import write_atomic
from controller.host.process import boot_id

DEADLINE = 20.0  # seconds; a guest that works is done in one
# There is no root file system on purpose: a kernel that comes so far as to miss it has run.
_PROOF = b"Kernel panic"
_CACHE = "kvm.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether guests run under KVM, and in one line why not, or how that is known."""

    usable: bool
    why: str


def prove_kvm(
    qemu: Path,
    kernel: Path,
    *,
    state_dir: Path,
    bios: Path | None = None,
    deadline: float = DEADLINE,
) -> Verdict:
    """Boot a tiny guest under KVM, once for each boot of the host and version of ``qemu``.

    The verdict is kept in ``state_dir``. Blocking, up to ``deadline`` seconds. Raises Retry when
    the verdict cannot be kept.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Verdict(False, "/dev/kvm is not there or not ours to open")
    key = f"{boot_id()} {_version(qemu)}"
    cache = state_dir / _CACHE
    if known := _recall(cache, key):
        return known
    verdict = _boot(qemu, kernel, bios, deadline)
    write_atomic(cache, json.dumps({"key": key, **asdict(verdict)}).encode())
    return verdict


def _version(qemu: Path) -> str:
    try:
        done = subprocess.run([qemu, "--version"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        raise Retry(f"cannot ask {qemu} for its version: {error}", reason="VMMBroken") from error
    return done.stdout.splitlines()[0].decode(errors="replace")


def _recall(cache: Path, key: str) -> Verdict | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(cache.read_bytes())
        if kept["key"] == key:
            return Verdict(bool(kept["usable"]), str(kept["why"]))
    return None


def _boot(qemu: Path, kernel: Path, bios: Path | None, deadline: float) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="torpor-kvm-") as scratch:
        console = Path(scratch) / "console"
        argv = _argv(qemu, kernel, bios, console)
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline, check=False
            )
        except subprocess.TimeoutExpired:
            return Verdict(False, f"a guest under KVM was not done after {deadline:.0f} s")
        except OSError as error:
            return Verdict(False, f"cannot run {qemu}: {error.strerror}")
        said = console.read_bytes() if console.exists() else b""
    if done.returncode == 0 and _PROOF in said:
        return Verdict(True, "a guest booted under KVM")
    if done.returncode == 0:
        return Verdict(False, "a guest under KVM ended without a word")
    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
    return Verdict(False, f"the VMM ended with status {done.returncode}; it said: {last[:200]}")


def _argv(qemu: Path, kernel: Path, bios: Path | None, console: Path) -> list[str]:
    argv = [str(qemu), "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "128"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-chardev", f"file,id=c,path={console}", "-serial", "chardev:c"]
    argv += ["-kernel", str(kernel), "-append", "console=ttyS0 reboot=t panic=-1"]
    return [*argv, "-bios", str(bios)] if bios else argv
