"""Builders of the core's values for tests: one healthy one each, changed by keyword."""

from dataclasses import replace
from typing import Any

from controller.core.backoff import Backoff
from controller.core.desired import Desired, Hardware, Mode, Permit, Workload
from controller.core.observed import ABSENT, Guest, ImageReady, Lock, Observed, Recorded, Vmm
from controller.core.rules import Rules
from controller.core.state import State
from controller.vmm.driver import BOOT_EDGES, SNAPSHOT_EDGES

UID = "6f1b9a2e-0c5d-4f7a-9a43-2b8f0e6d1c11"
DIGEST = "sha256:" + "a" * 64
HARDWARE = Hardware("qemu", 2, 2**30, 10 * 2**30)
RULES = Rules(BOOT_EDGES | SNAPSHOT_EDGES, Backoff(), boot_deadline=120.0)


def a_wish(mode: Mode = Mode.RUNNING, **changes: Any) -> Desired:
    """What a placed Instance with a live reservation asks for."""
    wish = Desired(
        uid=UID, namespace="team", name="web", generation=1, mode=mode, epoch=1, image="app:1",
        hardware=HARDWARE, permit=Permit.GRANTED, reservation="pod-1", id="c0ffee",
    )  # fmt: skip
    return replace(wish, **changes)


def a_record(**changes: Any) -> Recorded:
    """A provisioned Instance that has never run."""
    record = Recorded(
        epoch=1, run=0, provisioned=True, hardware=HARDWARE, image_digest=None,
        kernel_version=None, kernel_digest=None, workload=None, run_open=False,
        run_prepared=False, boot_ordered=False, run_began_at=None, rebooted=False, released=None,
        exit=None, exit_noted=False, exited=False, restarts=0, retry_at=None, stop_ordered=False,
        stop_ordered_at=None, started_at=None, stopped_at=None, tombstone=False,
    )  # fmt: skip
    return replace(record, **changes)


def a_run(**changes: Any) -> Recorded:
    """The record of an Instance whose VMM runs since boot time 10."""
    running = a_record(
        run=1, image_digest=DIGEST, kernel_version="6.1", kernel_digest="d", workload=Workload(),
        run_open=True, boot_ordered=True, run_began_at=10.0, started_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return replace(running, **changes)


def a_vmm(state: State = State.RUNNING, **changes: Any) -> Vmm:
    """A living VMM."""
    return replace(Vmm(state, 4711, "10.0.2", "tcg"), **changes)


def seen(**changes: Any) -> Observed:
    """A look at a stopped Instance that could boot at once."""
    base = Observed(
        record=a_record(), lock=Lock.FREE, vmm=ABSENT, guest=ABSENT, image=ImageReady(DIGEST),
        kernel="6.1", overlay=True,
    )  # fmt: skip
    return replace(base, **changes)


def seen_running(**changes: Any) -> Observed:
    """A look at an Instance whose workload runs."""
    base = seen(record=a_run(), lock=Lock.HELD, vmm=a_vmm(), guest=Guest(started=True))
    return replace(base, **changes)
