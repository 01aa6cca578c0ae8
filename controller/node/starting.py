"""Start one run of one Instance: everything between "it may boot" and a Created VMM.

Order and crash safety: the run is counted and journalled (``prepare``) before anything of it
exists; the run lock is taken before the spawn and inherited by the VMM, so a crash right after the
spawn leaves a VMM that the lock's holder leads back to; who it is is noted last. What does not live
here: when to do it (``core.plan``), and the driver's arguments (``vmm``).
"""

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from controller.core.desired import Desired, Workload
from controller.core.names import machine_id
from controller.errors import Blocked, Bug, Retry
from controller.guest import configdisk
from controller.guest.artifacts import GuestArtifacts, find
from controller.host import failpoint, files, logs, runlock
from controller.host.cgroup import Cgroup
from controller.host.spawn import Sandbox
from controller.images.image import Image, ImageConfig
from controller.node.parts import Parts
from controller.node.places import make_owned
from controller.node.record import (
    KernelRecord,
    ModelRecord,
    ProcessRecord,
    Record,
    RunRecord,
    VmmRecord,
    WorkloadRecord,
)
from controller.vmm.machine import Disk, Launch, Machine

# Root, because the logs are root's, but with no capability and outside the VMM's cgroup.
KEEPER = Sandbox(uid=0, gid=0)
RUNS_KEPT = 2  # console and report of the current run and of the one before
REPORT_BYTES = 64 * 1024

# Between them the log keeper lives and the VMM may, and nobody has noted who they are.
failpoint.register("start.before-spawn", "start.spawned")


async def prepare(parts: Parts, desired: Desired, record: Record) -> Record:
    """Count and journal the run, then make its directories and its config disk."""
    artifacts = _newest(parts)
    version = parts.versions[record.hardware.hypervisor]
    image = _image(parts, record)
    said = desired.workload.over(record.inherited.said if record.inherited else None)
    record = parts.records.save(
        record.model_copy(
            update={
                "run": record.run + 1,
                "disk_generation": record.disk_generation + 1,
                "kernel": KernelRecord(
                    version=artifacts.version,
                    digest=artifacts.digest,
                    initrd=artifacts.initrd_digest,
                ),
                "workload": WorkloadRecord.of(said),
                "open": RunRecord(
                    nonce=new_nonce(),
                    machine_type=version.machine_type,
                    accelerator=parts.accelerator,
                ),
                "vmm_version": version.version,
            }
        )
    )
    uid = parts.vmm_uid(record)
    config = parts.places.config(record.uid)
    configdisk.write(config, guest_config(desired, said, record, image.config))
    os.chown(config, 0, uid)
    config.chmod(0o440)
    return make_places(parts, record)


def make_places(parts: Parts, record: Record) -> Record:
    """Make the directories of the counted run, and journal that all is prepared."""
    _make_log_places(parts, record)
    make_owned(parts.places.run_of(record), parts.vmm_uid(record), 0o700)
    return _journal(parts, record, prepared=True)


def new_nonce() -> str:
    """The name of one run, for the guest to say and for us to know it by."""
    return secrets.token_hex(8)


def guest_config(
    desired: Desired, said: Workload, record: Record, image: ImageConfig
) -> configdisk.GuestConfig:
    """What the guest is told at cold boot: the image's word, overridden by the user's."""
    argv = command_line(said, image)
    if not argv:
        raise Blocked(
            f"image {record.image} names no command and spec has none: set spec.command",
            reason="NoCommand",
        )
    env = dict(image.env)
    env.update(dict(said.env))
    return configdisk.GuestConfig(
        hostname=record.name,
        machine_id=machine_id(record.uid),
        nonce=record.open.nonce if record.open else "",
        argv=argv,
        env=tuple(env.items()),
        workdir=image.workdir,
        user=image.user,
        stop_timeout=desired.stop_timeout,
    )


def command_line(said: Workload, image: ImageConfig) -> tuple[str, ...]:
    """The argv by the container rules: a command of the user's also drops the image's cmd."""
    if said.command:
        return said.command + (said.args or ())
    return image.entrypoint + (said.args or image.cmd)


async def start(parts: Parts, record: Record) -> Record:
    """Spawn the VMM of the prepared run, Created, and note who it is."""
    driver = parts.driver(record.hardware.hypervisor)
    machine = machine_of(parts, record)
    model = ModelRecord(**dataclasses.asdict(await driver.describe(machine)))
    # Before anything that may fail: a run that cannot be started is closed, and prepared anew.
    record = _journal(parts, record, starting=True, model=model)
    outputs = streams(parts, record)
    with _run_lock(parts.places.lock(record.uid)) as lock, closing(logs.LogPipes(outputs)) as pipes:
        keeper = await logs.start_keeper(pipes, outputs, binary=parts.keeper, sandbox=KEEPER)
        inodes = {stream.name: pipes.inode(stream.name) for stream in outputs}
        failpoint.hit("start.before-spawn")
        handle = await driver.start(machine, _launch(parts, record, lock, pipes))
        failpoint.hit("start.spawned")
    vmm = VmmRecord(
        process=ProcessRecord.of(handle.identity), keeper=ProcessRecord.of(keeper), pipes=inodes
    )
    return _journal(parts, record, vmm=vmm)


def _journal(parts: Parts, record: Record, **changes: object) -> Record:
    if record.open is None:
        raise Bug(f"instance {record.uid}: a VMM is to start without a prepared run")
    run = record.open.model_copy(update=changes)
    return parts.records.save(record.model_copy(update={"open": run}))


def clear(parts: Parts, record: Record) -> None:
    """Give back what only the VMM of this run used. It is proven dead."""
    files.remove_tree(parts.places.run_of(record))
    Cgroup.at(parts.settings.cgroup_prefix, record.uid).remove()


def machine_of(parts: Parts, record: Record) -> Machine:
    """The VMM of the open run, made of the record and the stores only."""
    if record.open is None or record.kernel is None:
        raise Bug(f"instance {record.uid}: no run is prepared")
    artifacts = artifacts_of(parts, record)
    places, base = parts.places, record.open.base
    return Machine(
        uid=record.uid,
        name=f"{record.namespace}/{record.name}"[:80],
        hardware=record.hardware.frozen,
        threads_per_core=record.hardware.threads_per_core,
        machine_type=record.open.machine_type,
        accelerator=record.open.accelerator,
        kernel=artifacts.vmlinuz,
        initrd=artifacts.initrd,
        command_line=artifacts.command_line,
        memory_image=parts.snapshots.path(base) if base else None,
        disks=(
            Disk("rootfs", _image(parts, record).rootfs, read_only=True),
            Disk("overlay", places.overlay(record.uid), read_only=False, limited=True),
            Disk("config", places.config(record.uid), read_only=True),
        ),
        run_dir=places.run_of(record),
        incoming=record.open.wakes is not None,
    )


_STREAM_NAMES = ("workload", "console", "vmm", "report")


def streams(parts: Parts, record: Record) -> tuple[logs.Stream, ...]:
    """Where the log keeper of this run writes, and how much at most."""
    shared, own = parts.places.logs(record.uid), parts.places.run_logs(record)
    limits = parts.settings
    return (
        logs.Stream("workload", shared, limits.workload_log.max_bytes, limits.workload_log.files),
        logs.Stream("console", own, limits.console_log.max_bytes, limits.console_log.files),
        logs.Stream("vmm", shared, limits.vmm_log.max_bytes, limits.vmm_log.files),
        logs.Stream("report", own, REPORT_BYTES, 1, head=True),
    )


def _launch(parts: Parts, record: Record, lock: int, pipes: logs.LogPipes) -> Launch:
    uid = parts.vmm_uid(record)
    return Launch(
        uid=uid,
        gid=uid,
        run_lock=lock,
        workload_log=pipes.write_fd("workload"),
        console_log=pipes.write_fd("console"),
        vmm_log=pipes.write_fd("vmm"),
        report=pipes.write_fd("report"),
        keep_open=tuple(pipes.read_fd(name) for name in _STREAM_NAMES),
        groups=(record.lineage.gid,) if record.lineage else (),
        vmm_log_file=parts.places.logs(record.uid) / "vmm.log",
        cgroup=Cgroup.create(parts.settings.cgroup_prefix, record.uid).path,
    )


def _make_log_places(parts: Parts, record: Record) -> None:
    shared = parts.places.logs(record.uid)
    make_owned(shared, 0, 0o750)
    make_owned(parts.places.run_logs(record), 0, 0o750)
    runs = sorted(shared.glob("run-*-*"), key=_run_order)
    for old in runs[:-RUNS_KEPT]:
        files.remove_tree(old)


def _run_order(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split("-")[1:])


@contextlib.contextmanager
def _run_lock(path: Path) -> Iterator[int]:
    lock = runlock.acquire(path)
    if lock is None:
        raise Retry(f"run lock {path} is held: a VMM of this Instance lives", reason="Unknown")
    try:
        yield lock
    finally:
        os.close(lock)


def _image(parts: Parts, record: Record) -> Image:
    image = parts.images.get(record.image_digest) if record.image_digest else None
    if image is None:
        raise Retry(f"image {record.image} is not on this node", reason="ImagePulling", after=0.5)
    return image


def artifacts_of(parts: Parts, record: Record) -> GuestArtifacts:
    """Kernel and initrd of the open run, which a wake needs as they were. Raises Retry."""
    kernel = record.kernel
    if kernel is None:
        raise Bug(f"instance {record.uid}: no run is prepared")
    newest = parts.artifacts
    if newest and (newest.digest, newest.initrd_digest) == (kernel.digest, kernel.initrd):
        return newest
    if newest and newest.digest == kernel.digest and not kernel.initrd:
        return newest  # booted by a release that did not note its initrd
    found = find(parts.places.kernels, kernel.digest, kernel.initrd)
    if found is None:
        raise Retry(
            f"the kernel {kernel.version} or the initrd that the guest was booted with is gone from"
            f" {parts.places.kernels}",
            reason="KernelChanged",
        )
    return found


def _newest(parts: Parts) -> GuestArtifacts:
    if parts.artifacts is None:
        raise Retry(f"no guest kernel: {parts.no_artifacts}", reason="KernelMissing")
    return parts.artifacts
