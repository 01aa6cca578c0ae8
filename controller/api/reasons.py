"""The words of conditions: types and reasons, used by the operator and by the node agents.

They are API: programs match on them, so a word never changes its meaning and is never reused. What
does not live here: which of them holds (``core.conditions``). Reasons of errors come from the error
that was raised and may be others than these.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """Which aspect a condition is about."""

    READY = "Ready"  # what is matches what is asked, in every operating mode
    SCHEDULED = "Scheduled"  # its CPU and memory are reserved on a node; written by the operator
    RECONCILING = "Reconciling"  # work is in flight; absent when settled
    STALLED = "Stalled"  # no retry can help without a change of spec or a human; absent otherwise
    RESTART_REQUIRED = "RestartRequired"  # env, command or args differ from what the guest runs
    EXITED = "Exited"  # the workload ended and policy will not restart it


class Ready(StrEnum):
    """Reasons of Ready. The first four go with True, the rest with False or Unknown."""

    RUNNING = "Running"
    PAUSED = "Paused"
    STANDBY = "Standby"
    STOPPED = "Stopped"
    PENDING = "Pending"  # nobody has looked at this object yet
    WAITING_FOR_NODE = "WaitingForNode"  # no reservation yet; see Scheduled
    RECONCILING = "Reconciling"
    COMPLETED = "Completed"  # the workload ended with exit code 0
    FAILED = "Failed"  # the workload or its VMM ended in any other way
    CRASH_LOOP = "CrashLoop"  # failed again and again; the next restart waits
    EVICTING = "Evicting"
    DELETING = "Deleting"
    STALLED = "Stalled"
    STATE_UNKNOWN = "StateUnknown"  # the node agent cannot tell what is; see status.stateError
    NODE_UNREACHABLE = "NodeUnreachable"  # the node agent is silent


class Scheduled(StrEnum):
    """Reasons of Scheduled. While a Pod waits, the scheduler's own reason is passed on verbatim."""

    SCHEDULED = "Scheduled"  # the only one with True
    PENDING = "Pending"  # the reservation Pod was not looked at yet
    UNSCHEDULABLE = "Unschedulable"
    EVICTING = "Evicting"  # the reservation is being taken away: bring the guest down
    RELEASED = "Released"  # the node agent gave the reservation back; the agent's only word here
    NOT_NEEDED = "NotNeeded"  # the operating mode needs no memory
    RESERVATION_REFUSED = "ReservationRefused"  # quota, limit range or admission refused the Pod


class Reconciling(StrEnum):
    """Reasons of Reconciling, while it is True."""

    PROGRESSING = "Progressing"
    PULLING_IMAGE = "PullingImage"
    RETRYING = "Retrying"
    BACK_OFF = "BackOff"  # the next restart or pull waits its turn


class Stalled(StrEnum):
    """Reasons of Stalled, while it is True."""

    SPEC_INVALID = "SpecInvalid"  # a stored object breaks today's rules
    RECORD_UNREADABLE = "RecordUnreadable"
    RECORD_NEWER = "RecordNewer"  # the record was written by a newer release
    HYPERVISOR_UNAVAILABLE = "HypervisorUnavailable"
    TOO_LARGE_FOR_NODE = "TooLargeForNode"  # above the node's per-Instance maximum
    IMAGE_NOT_FOUND = "ImageNotFound"
    IMAGE_DENIED = "ImageDenied"
    IMAGE_UNSUPPORTED = "ImageUnsupported"
    IMAGE_UNPACK_FAILED = "ImageUnpackFailed"
    NO_PATH = "NoPath"  # no legal way from what is to what is asked
    INTERNAL_ERROR = "InternalError"


class ImageError(StrEnum):
    """Why an image is not there: reason of Reconciling or, when retrying cannot help, Stalled."""

    NOT_FOUND = "ImageNotFound"
    DENIED = "ImageDenied"
    REGISTRY_UNREACHABLE = "RegistryUnreachable"
    REGISTRY_TLS = "RegistryTLS"
    UNSUPPORTED = "ImageUnsupported"
    UNPACK_FAILED = "ImageUnpackFailed"
    NO_SPACE = "NoSpace"
