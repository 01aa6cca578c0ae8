"""A guest under a bare QEMU process, without any of our drivers: for tests of what runs inside."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from controller.guest import configdisk
from controller.guest.artifacts import GuestArtifacts, make
from controller.guest.report import Reports, read_reports
from controller.settings import cache_dir

NONCE = "5f1d0c0ffee"
_BUSYBOX = shutil.which("busybox") or "/bin/busybox"
_PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
_GROUP = "root:x:0:\napp:x:1001:\nstaff:x:50:app\nwheel:x:10:other\n"


def artifacts() -> GuestArtifacts:
    """The real kernel and the real initrd, kept between test runs."""
    return make(cache_dir() / "kernels")


def rootfs(out: Path) -> Path:
    """An erofs image: busybox and an /etc, with some traps."""
    tree = out.with_suffix(".tree")
    for name in ("bin", "etc", "home/app", "opt", "tmp"):
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copy(_BUSYBOX, tree / "bin/busybox")
    for applet in subprocess.check_output([_BUSYBOX, "--list"], text=True).split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text(_PASSWD)
    (tree / "etc/group").write_text(_GROUP)
    (tree / "etc/hosts").symlink_to("/opt/readme")  # an image may not steer what init writes
    (tree / "opt/readme").write_text("not a program\n")
    subprocess.run(
        ["mkfs.erofs", "-x-1", "-T0", str(out), str(tree)], check=True, capture_output=True
    )
    shutil.rmtree(tree)
    return out


def overlay(out: Path) -> Path:
    """An empty ext4 disk of 256 MiB, sparse."""
    with out.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(
        ["mke2fs", "-qF", "-text4", "-m0", "-Elazy_itable_init=1,nodiscard", "-Jsize=4", str(out)],
        check=True,
    )
    return out


class BareGuest:
    """One QEMU process. Its log port is a pipe that ``drain`` empties; nobody else does."""

    def __init__(
        self,
        home: Path,
        boot: GuestArtifacts,
        root: Path,
        *argv: str,
        memory: int = 192,
        disks: tuple[str, ...] = ("rootfs", "overlay", "config"),
        **config: object,
    ) -> None:
        home.mkdir()
        self.home = home
        self.channel = home / "agent.sock"
        self.monitor = home / "qmp.sock"
        shutil.copy(root, home / "rootfs")
        overlay(home / "overlay")
        settings = {"hostname": "guest-1", "machine_id": "0123456789abcdef" * 2, "nonce": NONCE}
        configdisk.write(
            home / "config",
            configdisk.GuestConfig(argv=argv, **settings, **config),  # type: ignore[arg-type]
        )
        self._log_read, log = os.pipe()
        fcntl.fcntl(self._log_read, fcntl.F_SETFL, os.O_NONBLOCK)
        self.log = bytearray()
        try:
            self.process = subprocess.Popen(
                self._argv(boot, memory, disks, log),
                pass_fds=(log,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(home / "stderr").open("wb"),
            )
        finally:
            os.close(log)

    def _argv(
        self, boot: GuestArtifacts, memory: int, disks: tuple[str, ...], log: int
    ) -> list[str]:
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]
        argv += ["-M", "q35,sata=off,smbus=off,usb=off,vmport=off", "-bios", "qboot.rom"]
        argv += ["-accel", "tcg,tb-size=32", "-cpu", "max", "-smp", "1", "-m", f"{memory}M"]
        argv += ["-kernel", str(boot.vmlinuz), "-initrd", str(boot.initrd)]
        argv += ["-append", boot.command_line]
        argv += ["-chardev", f"file,id=con,path={self.home}/console", "-serial", "chardev:con"]
        argv += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        for name in disks:
            kind = f"file={self.home}/{name},if=none,format=raw,id={name}"
            argv += ["-drive", kind + (",readonly=on" if name != "overlay" else "")]
            argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
        argv += ["-device", "virtio-serial-pci,id=vser0", "-device", "virtio-rng-pci"]
        argv += ["-add-fd", f"fd={log},set=1"]
        chardevs = {
            "agent": f"socket,id=agent,path={self.channel},server=on,wait=off",
            "report": f"file,id=report,path={self.home}/report",
            "log": "file,id=log,path=/dev/fdset/1,append=on",
        }
        for number, (name, chardev) in enumerate(chardevs.items(), start=1):
            argv += ["-chardev", chardev]
            port = f"nr={number},chardev={name},name=torpor.{name}.0"
            argv += ["-device", f"virtserialport,bus=vser0.0,{port}"]
        return argv

    def drain(self) -> bytes:
        """Take what the log port holds now; gives everything taken so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._log_read, 1 << 16):
                self.log += data
        return bytes(self.log)

    @property
    def console(self) -> bytes:
        path = self.home / "console"
        return path.read_bytes() if path.exists() else b""

    @property
    def reports(self) -> Reports:
        return read_reports(self.home / "report")

    def said(self, name: str) -> bytes:
        """What the workload printed between ``<name>`` and ``</name>``."""
        found = re.search(rb"<%s>(.*?)</%s>" % (name.encode(), name.encode()), self.log, re.DOTALL)
        assert found, f"the workload said nothing about {name}: {bytes(self.log[-2000:])!r}"
        return found[1]

    def wait(self, seconds: float = 60.0) -> Reports:
        """Drain until the VMM has ended. Gives what the guest reported."""
        stop = threading.Event()
        drainer = threading.Thread(target=self._drain_until, args=(stop,))
        drainer.start()
        try:
            self.process.wait(seconds)
        finally:
            stop.set()
            drainer.join()
        self.drain()
        return self.reports

    def _drain_until(self, stop: threading.Event) -> None:
        while not stop.wait(0.005):
            self.drain()

    def press_power_button(self) -> None:
        """By QMP, as a host does."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self.monitor))
            monitor.sendall(b'{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}')
            heard = b""
            while heard.count(b'"return"') < 2:
                heard += monitor.recv(4096)

    def destroy(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._log_read)


@contextlib.contextmanager
def running(*args: object, **kwargs: object) -> Iterator[BareGuest]:
    """A BareGuest that is gone afterwards."""
    guest = BareGuest(*args, **kwargs)  # type: ignore[arg-type]
    try:
        yield guest
    finally:
        guest.destroy()
