"""The same guest under Debian's libvirt: what somebody would pick who has no Torpor.

libvirt runs as its own daemon of an unprivileged user, with everything in one directory, so that
nothing of the host's is touched and nothing is left. The guest has the kernel, initrd, image and
config of an Instance, and a fresh writable disk; the rest is what libvirt makes of it.
"""

import asyncio
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.volumes import disk
from tests.scale.baresleep import hello
from tests.scale.subject import MIB, Subject

USER = "nobody"
SECONDS = 240.0
NAME = "beside"
_DISK = """
<disk type='file' device='disk'>
 <driver name='qemu' type='raw'/><source file='{path}'/><target dev='{dev}' bus='virtio'/>
 {readonly}<serial>{serial}</serial>
</disk>"""
_PORT = """
<channel type='{kind}'><source {source}/><target type='virtio' name='torpor.{name}.0'/></channel>"""
_DOMAIN = """
<domain type='qemu'>
 <name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>
 <os>
  <type arch='x86_64' machine='{machine}'>hvm</type>
  <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>
 </os>
 <features><acpi/></features><cpu mode='maximum'/>
 <devices>
  <emulator>{qemu}</emulator>{disks}{ports}
  <serial type='file'><source path='{home}/console'/></serial>
  <rng model='virtio'><backend model='builtin'/></rng>
  <controller type='usb' model='none'/><memballoon model='none'/>
  <video><model type='none'/></video>
 </devices>
</domain>
"""


def missing() -> str:
    """Why libvirt cannot be measured here, or nothing."""
    for program in ("virsh", "libvirtd"):
        if shutil.which(program) is None:
            return f"no {program} on this host (Debian: libvirt-clients, libvirt-daemon)"
    return ""


@dataclass(frozen=True)
class Domain:
    """One guest of a libvirt of its own in ``home``."""

    home: Path

    def first_start(self) -> None:
        """Boot it; return when its memory is filled."""
        self._virsh("start", NAME)
        deadline = time.monotonic() + SECONDS
        while b"filled" not in (self.home / "log").read_bytes():
            assert time.monotonic() < deadline, (self.home / "console").read_bytes()[-2000:]
            time.sleep(0.1)

    def save(self) -> float:
        """``virsh managedsave``: its seconds."""
        began = time.monotonic()
        self._virsh("managedsave", NAME)
        return time.monotonic() - began

    @property
    def saved_bytes(self) -> int:
        """What it wrote."""
        return sum(path.stat().st_blocks * 512 for path in self.home.rglob("*.save"))

    def start(self) -> float:
        """``virsh start`` of the saved one: seconds until it answers on its agent channel."""
        began = time.monotonic()
        self._virsh("start", NAME)
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.home / "agent"))
            hello(channel)
        return time.monotonic() - began

    def _virsh(self, *words: str) -> None:
        done = subprocess.run(
            [*_as_user(self.home), "virsh", "-q", "-c", "qemu:///session", *words],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"

    def define(self, xml: str) -> None:
        """Make it known."""
        path = self.home / "domain.xml"
        path.write_text(xml)
        self._virsh("define", str(path))

    def end(self) -> None:
        """End it, if it runs."""
        words = ("virsh", "-q", "-c", "qemu:///session", "destroy", NAME)
        subprocess.run([*_as_user(self.home), *words], capture_output=True, timeout=60, check=False)


@contextmanager
def like(subject: Subject) -> Iterator[Domain]:
    """A domain that is what ``subject``, which runs, is; not started. Leaves nothing."""
    home = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    home.chmod(0o711)
    domain = Domain(home)
    try:
        with _daemon(home):
            xml = _xml(subject, subject.argv, home)
            user = pwd.getpwnam(USER)
            for path in home.iterdir():
                shutil.chown(path, user.pw_uid, user.pw_gid)
            domain.define(xml)
            try:
                yield domain
            finally:
                domain.end()
    finally:
        shutil.rmtree(home)


def _xml(subject: Subject, argv: tuple[str, ...], home: Path) -> str:
    def value(option: str) -> str:
        return argv[argv.index(option) + 1]

    overlay = subject.place / "disk" / "overlay.raw"
    asyncio.run(disk.create_overlay(home / "overlay", overlay.stat().st_size))
    shutil.copy(subject.place / "config.img", home / "config")
    image = re.search(r'"filename":"([^"]*rootfs[^"]*)"', " ".join(argv))
    assert image
    shutil.copy(image[1], home / "rootfs")
    for name in ("kernel", "initrd"):
        shutil.copy(value(f"-{name}"), home / name)
    for name in ("log", "report", "console"):
        (home / name).touch()
    disks = (
        _DISK.format(
            path=home / serial, dev=f"vd{letter}", serial=serial,
            readonly="" if serial == "overlay" else "<readonly/>",
        )
        for letter, serial in zip("abc", ("rootfs", "overlay", "config"), strict=True)
    )  # fmt: skip
    ports = [_PORT.format(kind="unix", source=f"mode='bind' path='{home}/agent'", name="agent")]
    for name in ("report", "log"):
        ports.append(_PORT.format(kind="file", source=f"path='{home}/{name}'", name=name))
    return _DOMAIN.format(
        name=NAME, mib=subject.ram // MIB, machine=value("-machine").split(",")[0], qemu=argv[0],
        kernel=home / "kernel", initrd=home / "initrd", cmdline=value("-append"), home=home,
        disks="".join(disks), ports="".join(ports),
    )  # fmt: skip


@contextmanager
def _daemon(home: Path) -> Iterator[None]:
    """libvirtd of our own, as long as this lasts."""
    user = pwd.getpwnam(USER)
    for name in ("run", "conf", "conf/libvirt", "cache", "data"):
        (home / name).mkdir(mode=0o700)
        shutil.chown(home / name, user.pw_uid, user.pw_gid)
    # else it would start another daemon, for the VMM's log, and leave it behind
    (home / "conf/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
    os.chown(home, user.pw_uid, user.pw_gid)
    with (home / "libvirtd.log").open("wb") as log:
        process = subprocess.Popen(
            [*_as_user(home), "libvirtd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not (home / "run/libvirt/libvirt-sock").is_socket():
            said = (home / "libvirtd.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _as_user(home: Path) -> list[str]:
    user = pwd.getpwnam(USER)
    variables = {
        "HOME": home, "XDG_RUNTIME_DIR": home / "run", "XDG_CONFIG_HOME": home / "conf",
        "XDG_CACHE_HOME": home / "cache", "XDG_DATA_HOME": home / "data", "LC_ALL": "C",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in variables.items()]
    return [
        *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
        *("env", "-i", *words),
    ]
