"""``torpor logs``: what an Instance's workload, console, VMM or node agent wrote.

Raw bytes into a file or a pipe; on a terminal every control character is made visible, because
what a guest writes must not drive it. What does not live here: where bytes come from (``agent``,
``agentlog``), which Instance is meant (``lookup``).
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from controller.cli import agentlog, lookup
from controller.cli.agent import Agent, Away, NotHere, Place, local_install, place_of
from controller.core.ownership import condition
from controller.errors import Rejected, TorporError
from controller.host.logread import Sanitiser
from controller.kube.resources import Object

SOURCES = ["workload", "console", "vmm", "agent"]
AWAY_SECONDS = 30.0  # for an agent that is being restarted
AGAIN_SECONDS = 0.2
MISSED = "torpor: the node agent went away; what is written until it is back is not shown"


@click.command()
@click.argument("word", metavar="NAME|ID|ID-PREFIX")
@lookup.namespace_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the Instance is deleted.")
@click.option(
    "--tail", type=click.IntRange(0, 1_000_000), help="Only the last N lines; default: all kept."
)
@click.option("--source", type=click.Choice(SOURCES), default="workload", show_default=True)
@lookup.socket_option
@lookup.directory_option
@lookup.kubeconfig_option
def logs(
    word: str,
    namespace: str | None,
    follow: bool,
    tail: int | None,
    source: str,
    socket: Path | None,
    directory: Path | None,
    kubeconfig: Path | None,
) -> None:
    """Print what an Instance wrote: its workload, its kernel's console, its VMM; or its node
    agent about it.

    Needs root, on the Instance's node.
    """
    config = lookup.kubeconfig(kubeconfig)
    where = namespace or lookup.current_namespace(config)
    out = Out(sys.stdout.buffer, sys.stdout.isatty())

    async def work() -> None:
        subject = await find_subject(config, word, where)
        place = place_of(subject.node, socket, local_install(directory, config))
        if source == "agent":
            stream = agentlog.lines(_own_log(place), subject.uid, subject.name, tail, follow)
        elif follow:
            stream = followed(place.agent, subject.uid, source, tail)
        else:
            out.write(await place.agent.logs(subject.uid, source, tail))
            return
        async for block in stream:
            out.write(block)

    try:
        asyncio.run(work())
    finally:
        out.end()


@dataclass(frozen=True)
class Subject:
    """An Instance that is on a node. ``name`` has its namespace."""

    uid: str
    name: str
    node: str


async def find_subject(config: Path | None, word: str, namespace: str) -> Subject:
    """Whom ``word`` names. Raises TorporError (NotPlaced, and as ``lookup.find``)."""
    client = await lookup.connect(config)
    try:
        return subject_of(await lookup.find(client, word, namespace))
    finally:
        await client.close()


def subject_of(instance: Object) -> Subject:
    """Raises TorporError (NotPlaced), with what the operator says of it."""
    meta, node = instance["metadata"], (instance.get("status") or {}).get("nodeName")
    name = f"{meta['namespace']}/{meta['name']}"
    if node:
        return Subject(meta["uid"], name, node)
    for kind in ("Scheduled", "Ready"):
        if said := condition(instance, kind).get("message"):
            break
    raise TorporError(
        f"{name} is on no node yet, so it has no logs: {said or 'the operator has not seen it'}",
        reason="NotPlaced",
    )


async def followed(agent: Agent, uid: str, source: str, tail: int | None) -> AsyncIterator[bytes]:
    """``agent.follow``, over restarts of the agent: a gap they leave is said on stderr."""
    loop = asyncio.get_running_loop()
    began = False
    until: float | None = None  # while the agent is away: when to give up
    while True:
        try:
            async for block in agent.follow(uid, source, 0 if began else tail):
                began, until = True, None
                yield block
        except NotHere:
            if not began:
                raise
            click.echo("torpor: the Instance is gone", err=True)
            return
        except Away:
            if until is None:
                until = loop.time() + AWAY_SECONDS
                if began:
                    click.echo(MISSED, err=True)
            if not began or loop.time() >= until:
                raise
            await asyncio.sleep(AGAIN_SECONDS)


def _own_log(place: Place) -> Path:
    if place.log is None:
        raise Rejected(
            "the agent's own log is where its service writes it (journalctl, kubectl logs); "
            "--source agent is for a local cluster"
        )
    return place.log


class Out:
    """Standard output: raw, or made harmless on a terminal; flushed block by block."""

    def __init__(self, raw: BinaryIO, terminal: bool) -> None:
        self._raw = raw
        self._sanitiser = Sanitiser() if terminal else None

    def write(self, block: bytes) -> None:
        """Print ``block``. Raises BrokenPipeError when the reader is gone."""
        if self._sanitiser is not None:
            block = self._sanitiser.feed(block).encode()
        self._raw.write(block)
        self._raw.flush()

    def end(self) -> None:
        """Print what the last block left undecided."""
        if self._sanitiser is not None and (rest := self._sanitiser.feed(b"", final=True)):
            self._raw.write(rest.encode())
            self._raw.flush()
