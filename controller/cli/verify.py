"""``torpor verify``: whether the files that an Instance sleeps in are whole, read by its node.

What does not live here: the reading (the node agent does it), which Instance is meant (``lookup``),
where its agent is (``agent``).
"""

import asyncio
from pathlib import Path

import click

from controller.cli import lookup
from controller.cli.agent import Verified, local_install, place_of
from controller.cli.logs import find_subject
from controller.core.capacity import rounded


@click.command()
@click.argument("word", metavar="NAME|ID|ID-PREFIX")
@lookup.namespace_option
@lookup.socket_option
@lookup.directory_option
@lookup.kubeconfig_option
def verify(
    word: str,
    namespace: str | None,
    socket: Path | None,
    directory: Path | None,
    kubeconfig: Path | None,
) -> int:
    """Read every file of an Instance's snapshot and compare it with what was written.

    A line for each file, or one for each problem; exits 1 when there is one. Nothing is changed.
    Needs root, on the Instance's node.
    """
    config = lookup.kubeconfig(kubeconfig)
    where = namespace or lookup.current_namespace(config)
    subject = asyncio.run(find_subject(config, word, where))
    place = place_of(subject.node, socket, local_install(directory, config))
    found = asyncio.run(place.agent.verify(subject.uid))
    for line in lines(found, subject.name):
        click.echo(line)
    return 1 if found.problems else 0


def lines(found: Verified, name: str) -> list[str]:
    """What was found of the Instance ``name``, for a person."""
    if found.problems:
        return [f"BAD  {problem}" for problem in found.problems]
    if not found.files:
        return [f"{name} has no snapshot: there is nothing to verify"]
    roles = max(len(file.role) for file in found.files)
    return [
        f"OK   {file.role:<{roles}}  {rounded(file.size):>6}  {file.digest}" for file in found.files
    ]
