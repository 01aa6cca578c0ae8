"""``torpor setup``: makes this machine ready and says what it did.

What does not live here: the steps themselves (``controller.local.setup``).
"""

import time
from collections.abc import Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from controller.local.setup.machine import steps
from controller.local.setup.steps import Outcome, Step, Verdict, run_steps

HEARTBEAT_SECONDS = 20.0  # without a terminal: a log that is silent for minutes looks hung
STYLES = {
    Verdict.THERE: "dim",
    Verdict.MADE: "green",
    Verdict.FAILED: "bold red",
    Verdict.SKIPPED: "yellow",
}


@click.command()
def setup() -> int:
    """Install and build what this machine still needs.

    Installs Debian packages (as root), builds the local control plane and the guest's parts, and
    keeps what it built in the cache. A second run finds everything there and changes nothing.
    """
    console = Console(highlight=False)
    outcomes: list[Outcome] = []
    run = _with_bar if console.is_terminal else _with_lines
    try:
        run(console, steps(), outcomes)
    except KeyboardInterrupt:
        report(console, outcomes)
        console.print("interrupted; what is done stays, torpor setup goes on from here")
        raise
    return report(console, outcomes)


def report(console: Console, outcomes: Sequence[Outcome]) -> int:
    """Say what became of every step; the exit code."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for outcome in outcomes:
        style = STYLES[outcome.verdict]
        took = f"{outcome.seconds:.1f} s" if outcome.seconds >= 0.05 else ""
        table.add_row(outcome.step.name, f"[{style}]{outcome.verdict.value}[/]", took)
    console.print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            said = f"{outcome.step.name}, needed for {outcome.step.needed_for}: {outcome.error}"
            console.print(f"[bold red]torpor:[/] {escape(said)}", soft_wrap=True)
            return 1
    return 0


def _with_bar(console: Console, work: Sequence[Step], outcomes: list[Outcome]) -> None:
    """On a terminal: one bar over all steps, the latest line of output beside it."""
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description} [dim]{task.fields[line]}[/]"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("looking", total=len(work), line="")
        width = max(20, console.width - 70)

        def say(line: str) -> None:
            progress.update(bar, line=escape(line[:width]))

        def begin(step: Step) -> None:
            progress.update(bar, description=escape(step.name), line="")

        for outcome in run_steps(work, say, begin):
            outcomes.append(outcome)
            progress.update(bar, advance=1, line="")


def _with_lines(console: Console, work: Sequence[Step], outcomes: list[Outcome]) -> None:
    """Without a terminal (CI): a line when a step begins and ends, and now and then between."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARTBEAT_SECONDS:
            last = time.monotonic()
            console.print(f"    … {line}", markup=False, soft_wrap=True)

    def begin(step: Step) -> None:
        nonlocal last
        last = time.monotonic()
        console.print(f"{step.name}: not here yet, needed for {step.needed_for}", soft_wrap=True)

    for outcome in run_steps(work, say, begin):
        outcomes.append(outcome)
        if outcome.verdict is Verdict.MADE:
            console.print(f"{outcome.step.name}: done in {outcome.seconds:.1f} s")
