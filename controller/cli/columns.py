"""Instances as a table, the way kubectl prints them: columns from the API's own list of columns.

What does not live here: which columns there are (``api.instance``).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from controller.api.instance import INSTANCE
from controller.api.kind import Column
from controller.kube.resources import Object

_GAP = "   "
_FILTERED = re.compile(r'(\w+)\[\?\(@\.(\w+)=="(\w+)"\)\]')


def table(
    instances: Sequence[Object], now: datetime, *, wide: bool = False, namespaces: bool = False
) -> list[str]:
    """Lines, the header first. ``namespaces`` adds a first column with them."""
    columns = [column for column in INSTANCE.columns if wide or not column.wide]
    header = ["NAME", *(column.name.upper() for column in columns)]
    rows = [
        [instance["metadata"]["name"], *(_cell(instance, column, now) for column in columns)]
        for instance in instances
    ]
    if namespaces:
        header = ["NAMESPACE", *header]
        rows = [
            [instance["metadata"]["namespace"], *row]
            for instance, row in zip(instances, rows, strict=True)
        ]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def age(seconds: float) -> str:
    """How kubectl writes a duration: two units at most, fewer as it grows."""
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{max(whole, 0)}s"
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365 if days < 2920 else 0, "d")


def _two(big: int, unit: str, small: int, small_unit: str) -> str:
    return f"{big}{unit}{small}{small_unit}" if small else f"{big}{unit}"


def _cell(instance: Object, column: Column, now: datetime) -> str:
    found = value(instance, column.path)
    if found is None:
        return ""
    if column.type == "date":
        return age((now - datetime.fromisoformat(str(found))).total_seconds())
    return str(found)


def value(instance: Object, path: str) -> Any:
    """What a column's path finds, None for nothing: ``.a.b`` and ``.a[?(@.k=="v")].b`` only."""
    found: Any = instance
    for part in re.findall(r'\w+(?:\[\?\(@\.\w+=="\w+"\)\])?', path):
        if match := _FILTERED.fullmatch(part):
            items = (found or {}).get(match[1]) or ()
            found = next((item for item in items if item.get(match[2]) == match[3]), None)
        else:
            found = (found or {}).get(part)
    return found


def utc_now() -> datetime:
    """Now, comparable with the API's times."""
    return datetime.now(UTC)
