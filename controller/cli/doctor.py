"""``torpor doctor``: what this host can do, one line for each look.

What does not live here: the looks (``controller.local.setup``).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from controller.local.install import DEFAULT_DIRECTORY
from controller.local.setup import host_checks, part_checks
from controller.local.setup.findings import Check, Finding, Level, look_at_all

COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(readable=False, path_type=Path),
    envvar="TORPOR_DIR",
    default=DEFAULT_DIRECTORY,
    help="Where Instances' disks would live; default: $TORPOR_DIR, else /var/lib/torpor.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def doctor(directory: Path, output: str) -> int:
    """Say what this host can do, and the remedy for the rest.

    Each line is ok, a warning (guests run, with less) or an error (they cannot run here). Exits 1
    when there is an error.
    """
    found: list[tuple[Check, Finding]] = []
    for check, finding in look_at_all(checks(directory.expanduser())):
        found.append((check, finding))
        if output == "text":
            click.echo(line(check, finding))  # at once: proving KVM takes seconds
    if output == "json":
        click.echo(as_json(found))
    return 1 if any(finding.level is Level.ERROR for _, finding in found) else 0


def checks(state_dir: Path) -> list[Check]:
    """Every look at this host."""
    return [*host_checks.checks(state_dir), *part_checks.checks()]


def line(check: Check, finding: Finding) -> str:
    """One line for a person; click takes the colour away where there is no terminal."""
    level = click.style(f"{finding.level.value:<8}", fg=COLOURS[finding.level])
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    return f"{level} {check.name:<16} {finding.said}{remedy}"


def as_json(found: Sequence[tuple[Check, Finding]]) -> str:
    """A list of objects with name, level, said and remedy."""
    return json.dumps(
        [
            {"name": c.name, "level": f.level.value, "said": f.said, "remedy": f.remedy}
            for c, f in found
        ],
        indent=2,
    )
