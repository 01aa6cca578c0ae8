"""Every error Torpor raises, as a small tree by what the caller should do next.

::

    TorporError
    ├── Retry          try again later, by itself: the world may change without anybody acting
    │   └── Timeout    a deadline passed; the effect is unknown, look again before acting
    ├── Blocked        no retry helps until a human or a change of spec acts  -> Stalled
    ├── Rejected       the request is wrong; nothing was done                 -> usage error
    ├── Unreachable    the cluster does not answer                            -> exit code 3
    └── Bug            an invariant of ours does not hold; nothing was done

Each carries a ``reason`` (CamelCase, stable: it becomes a condition's reason) and a message of one
line: what, where, why, what to do. What does not live here: exceptions of libraries. The room that
calls a library turns them into these at its own border.
"""


class TorporError(Exception):
    """The root. ``reason`` is a CamelCase constant, the message one line for the one who acts."""

    default_reason = "Error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


class Retry(TorporError):
    """The world may change by itself: try again, with back-off. ``after`` is a hint in seconds."""

    default_reason = "Retrying"

    def __init__(
        self, message: str, *, reason: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.after = after


class Timeout(Retry):
    """A deadline passed. Whether the effect happened is unknown: observe before acting again."""

    default_reason = "Timeout"


class Blocked(TorporError):
    """Retrying cannot help until somebody changes something: shown as Stalled."""

    default_reason = "Blocked"


class Rejected(TorporError):
    """The request itself is wrong; nothing was done."""

    default_reason = "Invalid"


class Unreachable(TorporError):
    """The cluster does not answer, or does not know us."""

    default_reason = "Unreachable"


class Bug(TorporError):
    """One of our own invariants does not hold. Nothing was done; please report it."""

    default_reason = "InternalError"
