"""What a look at this host found: ok, a warning or an error, each with its remedy.

What does not live here: the looks themselves (``host_checks``, ``part_checks``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from controller.errors import TorporError


class Level(Enum):
    """ERROR: guests cannot run here. WARNING: they can, with less."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """``said`` is what was seen; ``remedy`` what to do about it, empty when nothing is wrong."""

    level: Level
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One look: it changes nothing that stays."""

    name: str
    look: Callable[[], Finding]


def ok(said: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, said)


def warning(said: str, remedy: str) -> Finding:
    """It works, with less."""
    return Finding(Level.WARNING, said, remedy)


def error(said: str, remedy: str) -> Finding:
    """Guests cannot run until somebody acts."""
    return Finding(Level.ERROR, said, remedy)


def look_at_all(checks: Iterable[Check]) -> Iterable[tuple[Check, Finding]]:
    """Each check with what it found. A look that itself fails is an error finding, not the end."""
    for check in checks:
        try:
            yield check, check.look()
        except (TorporError, OSError) as err:
            yield check, error(f"could not look: {err}", "see the message; run it as root")
