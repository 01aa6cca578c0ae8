"""What a bench found: figures with their budgets, as one table and one JSON file.

No figure fails a test. A bench asserts only that the work it measured was really done; how fast a
busy machine did it is for people to read, beside how busy it was.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "bench.json"
WIDTH = 132
# Once and small: whether the benches work, not what they find. Nothing is written then.
SMOKE = os.environ.get("TORPOR_BENCH", "") == "smoke"


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``samples``: what ``value`` was made of, where that is a few."""

    what: str
    value: float
    unit: str
    budget: float | None  # at most this; None: only to be known
    at_least: bool  # then the budget is a floor
    note: str
    samples: tuple[float, ...]
    loadavg: float  # of the last minute, when it was taken

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None without one."""
        if self.budget is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget


class Figures:
    """Collects the figures of one run."""

    def __init__(self) -> None:
        self.all: list[Figure] = []
        self.remarks: list[str] = []  # printed below the table
        self._began = datetime.now(UTC)
        self._load = os.getloadavg()

    def add(
        self,
        what: str,
        value: float,
        unit: str = "",
        *,
        budget: float | None = None,
        at_least: bool = False,
        note: str = "",
        samples: Sequence[float] = (),
    ) -> None:
        """Note one figure."""
        rounded = tuple(round(sample, 4) for sample in samples)
        load = round(os.getloadavg()[0], 2)
        value = round(value, 4)
        self.all.append(Figure(what, value, unit, budget, at_least, note, rounded, load))
        # at once as well: a run takes minutes, and one that is cut off was not for nothing
        print(f"\n  {_line(self.all[-1])}", end=" ", flush=True)

    def add_median(self, what: str, samples: Sequence[float], unit: str, **rest: object) -> None:
        """Note the median of ``samples``."""
        self.add(what, median(samples), unit, samples=samples, **rest)  # type: ignore[arg-type]

    def show(self) -> None:
        """Print the table."""
        table = Table("figure", "value", "budget", "", "note", box=None, pad_edge=False)
        for each in self.all:
            verdict = {True: "met", False: "NOT MET", None: ""}[each.met]
            sign = "≥" if each.at_least else "≤"
            budget = "" if each.budget is None else f"{sign} {each.budget:g} {each.unit}"
            table.add_row(each.what, f"{each.value:.4g} {each.unit}", budget, verdict, each.note)
        Console(width=WIDTH, highlight=False).print(table)
        for remark in self.remarks:
            print(remark)

    def save(self) -> None:
        """Write the JSON file."""
        document = {
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": {
                "cpus": os.cpu_count(),
                "memoryBytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
                "kernel": platform.release(),
                "python": platform.python_version(),
                "loadavgBefore": self._load,
                "loadavgAfter": os.getloadavg(),
                "shared": "others may have worked on this machine meanwhile: compare ratios",
            },
            "figures": [asdict(each) | {"met": each.met} for each in self.all],
        }
        OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _line(figure: Figure) -> str:
    verdict = {True: "met", False: "NOT MET", None: "no budget"}[figure.met]
    sign = "≥" if figure.at_least else "≤"
    wanted = "" if figure.budget is None else f", wanted {sign} {figure.budget:g}"
    return f"{figure.what}: {figure.value:.4g} {figure.unit}{wanted}: {verdict}; {figure.note}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return done.stdout.strip()
