"""The way up: what must be there before a VMM is started, and how a boot is waited for.

The conditions of a start hold for a boot and for a wake alike. What does not live here: what a
woken VMM is made of (``sleep``), and when to start one (``plan``).
"""

from dataclasses import replace

from controller.core.desired import Desired, Permit
from controller.core.observed import (
    Absent,
    Guest,
    ImageFailed,
    ImagePulling,
    ImageReady,
    Observed,
    Recorded,
    Unknown,
)
from controller.core.rules import Rules
from controller.core.steps import (
    FetchImage,
    OrderBoot,
    PinImage,
    Plan,
    PrepareRun,
    ResumeVmm,
    StartVmm,
    Step,
    Waiting,
)
from controller.core.waiting import wait


def boot(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float, rules: Rules
) -> Plan:
    """From Stopped: a new VMM, as soon as everything for it is there."""
    if record.retry_at is not None and now < record.retry_at:
        said = record.exit.message if record.exit else "the guest rebooted again"
        return replace(
            wait(
                draft, now, "CrashLoopBackOff",
                f"{said}; restart {record.restarts} comes after a back-off of "
                f"{rules.backoff.delay(record.restarts):.0f} s",
            ),
            wake_at=record.retry_at,
        )  # fmt: skip
    if missing := cannot_start(draft, desired, record, seen, now):
        return missing
    if isinstance(seen.kernel, Absent | Unknown):
        why = seen.kernel.why if isinstance(seen.kernel, Unknown) else "none is on this node yet"
        return wait(draft, now, "KernelMissing", f"no guest kernel: {why}")
    first: tuple[Step, ...] = () if record.image_digest else (PinImage(),)
    if not record.run_prepared:
        first = (*first, PrepareRun())
    return replace(draft, steps=(*first, StartVmm(), OrderBoot(), ResumeVmm()))


def cannot_start(
    draft: Plan, desired: Desired, record: Recorded, seen: Observed, now: float
) -> Plan | None:
    """What is missing before any VMM may start: permission, the disk, the image. None: nothing."""
    if desired.permit is not Permit.GRANTED or desired.reservation is None:
        return replace(wait(draft, now, "Unscheduled", "waiting for a reservation"), wake_at=None)
    if desired.reservation == record.released:
        message = "its reservation was given back; waiting for a new one"
        return replace(wait(draft, now, "Unscheduled", message), wake_at=None)
    if seen.overlay is not True:
        return _no_overlay(draft, seen, now)
    return _image(draft, seen, now)


def booting(draft: Plan, seen: Observed, record: Recorded, now: float, rules: Rules) -> Plan | None:
    """The wait for a guest that has not said that its workload started; None: it has."""
    if isinstance(seen.guest, Unknown):
        return wait(draft, now, "Unknown", seen.guest.why)
    if isinstance(seen.guest, Guest) and seen.guest.started:
        return None
    deadline = (record.run_began_at or now) + rules.boot_deadline
    if now < deadline:
        waiting = Waiting("Booting", "waiting for the guest to start its workload")
        return replace(draft, waiting=waiting, wake_at=deadline)
    return wait(
        draft, now, "GuestSilent",
        f"the guest has not started its workload within {rules.boot_deadline:.0f} s; see its "
        "console: torpor logs NAME --source console",
    )  # fmt: skip


def _image(draft: Plan, seen: Observed, now: float) -> Plan | None:
    match seen.image:
        case ImageReady():
            return None
        case Unknown(why=why):
            return wait(draft, now, "Unknown", why)
        case ImagePulling(progress=progress):
            waiting = Waiting("ImagePulling", f"waiting for image, {progress}")
            return replace(draft, waiting=waiting)  # the store tells when it is there
        case ImageFailed() as failed if failed.stalled:
            return wait(draft, now, failed.reason, failed.message, stalled=True)
        case ImageFailed() as failed if now < failed.retry_at:
            waiting = Waiting(failed.reason, failed.message)
            return replace(draft, waiting=waiting, wake_at=failed.retry_at)
        case _:
            return replace(draft, steps=(FetchImage(),))


def _no_overlay(draft: Plan, seen: Observed, now: float) -> Plan:
    if isinstance(seen.overlay, Unknown):
        return wait(draft, now, "Unknown", seen.overlay.why)
    return wait(
        draft, now, "DiskMissing",
        "its writable disk is gone from the state directory; bring it back, or delete the Instance "
        "and create it anew",
        stalled=True,
    )  # fmt: skip
