"""``torpor up``, ``status``, ``down``: a whole cluster on this machine.

What does not live here: how it is done (``controller.local``); here are words, tables, questions.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from controller.errors import Blocked, Rejected, Timeout
from controller.local import install as installs
from controller.local import state, supervisor, takedown
from controller.local.cluster import sole_supervisor, state_path
from controller.local.install import Install

HEARTBEAT_SECONDS = 15.0
STOP, LEAVE = "stop", "leave"

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    help="Where the cluster lives; default: $TORPOR_DIR, else /var/lib/torpor.",
)


@click.command()
@directory_option
@click.option("--nodes", type=int, help="How many Nodes; default: as before, else 1.")
@click.option("--detach", is_flag=True, help="Return when it is up; it runs on by itself.")
@click.option("--registry-port", type=int, help="Of the image registry; 0: any. Default 5055.")
@click.option("--node-cpus", type=int, help="CPUs that each Node offers; default: the host's.")
@click.option("--node-pods", type=int, help="Pods that each Node offers; default: 500.")
@click.option("--node-memory", type=int, metavar="BYTES", help="Default: the host's, divided.")
@click.option("--node-lease-seconds", type=int, help="Silent for longer: NotReady. Default 20.")
def up(directory: Path | None, detach: bool, node_memory: int | None, **chosen: int | None) -> None:
    """Start a whole cluster on this machine.

    A control plane, an image registry, Nodes with an agent each, and the operator. In the
    foreground it runs until Ctrl-C; with --detach until torpor down.
    """
    directory = _directory(directory)
    chosen["node_memory_bytes"] = node_memory
    if os.geteuid() != 0:
        raise Rejected("torpor up needs root: agents start VMMs under uids of their own; use sudo")
    progress = _progress()
    if detach:
        supervisor.detach(directory, chosen, progress)
        click.echo(usage(_install(directory)))
        click.echo("torpor down ends it.")
        return

    def ready(install: Install) -> None:
        click.echo(usage(install))
        click.echo("Ctrl-C ends it.")

    def ending(install: Install) -> None:
        if _ask(None) == STOP:
            takedown.drain(install, progress)

    supervisor.supervise(directory, chosen, progress, ready, ending)
    _clean(_install(directory), progress)


@click.command()
@directory_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def status(directory: Path | None, output: str) -> int:
    """List every process of the local cluster: name, pid, ready.

    The exit code is 0 when all of them are ready, else 1.
    """
    directory = _directory(directory)
    rows = _rows(state.read(state_path(directory)))
    if output == "json":
        click.echo(json.dumps({"dir": str(directory), "processes": rows}, indent=2))
    elif not rows:
        click.echo(f"nothing runs for {directory}; start it with torpor up")
        install = installs.load(directory)
        if left := takedown.guests(install) if install else []:
            click.echo(_left(left))
    else:
        _table(rows)
    return 0 if rows and all(row["ready"] for row in rows) else 1


@click.command()
@directory_option
@click.option("--purge", is_flag=True, help="Remove all its data too; stops the guests.")
@click.option(
    "--guests",
    type=click.Choice([STOP, LEAVE]),
    help="Stop the guests or let them run on; default: asked on a terminal, else stop.",
)
def down(directory: Path | None, purge: bool, guests: str | None) -> None:
    """Stop the local cluster.

    Guests that were stopped start again at the next torpor up; those that were left are adopted.
    """
    directory = _directory(directory)
    if purge and guests == LEAVE:
        raise Rejected("--purge removes the guests' disks: it cannot go with --guests leave")
    install = installs.load(directory)
    if install is None:
        click.echo(f"there is no cluster in {directory}")
        return
    progress = _progress()
    if purge:
        _drain_if_possible(install, progress)
    elif _ask(guests) == STOP:
        takedown.drain(install, progress)
    takedown.end_processes(directory, progress)
    if purge:
        takedown.end_guests(install)
    _clean(install, progress)
    if purge:
        with sole_supervisor(directory):
            takedown.purge(install)


def usage(install: Install) -> str:
    """What a person types next."""
    home = install.directory
    usual = home == _directory(None)
    place = [] if usual else [f"  export TORPOR_DIR={home}"]
    return "\n".join(
        [
            f"The cluster is up. Nodes: {', '.join(install.node_names)}",
            f"Images: {install.registry_address}",
            "",
            f"  export KUBECONFIG={home / 'kubeconfig'}",
            f"  export PATH={home / 'bin'}:$PATH      # kubectl as new as the cluster, torpor",
            *place,
            "  kubectl get nodes",
            "",
        ]
    )


def _drain_if_possible(install: Install, progress: Callable[[str], None]) -> None:
    """Stop the guests in order where their agents answer; their disks go anyway."""
    try:
        takedown.drain(install, progress)
    except (Blocked, Timeout) as err:
        progress(f"{err}: they are ended by force")


def _left(pids: list[int]) -> str:
    some = "1 guest process runs on" if len(pids) == 1 else f"{len(pids)} guest processes run on"
    return f"{some}; the next torpor up adopts what was left"


def _clean(install: Install, progress: Callable[[str], None]) -> None:
    """Remove the run directories unless guests live on in them."""
    if left := takedown.guests(install):
        progress(_left(left))
    else:
        takedown.remove_run_dir(install)


def _ask(guests: str | None) -> str:
    if guests is not None:
        return guests
    if not sys.stdin.isatty():
        return STOP
    return STOP if click.confirm("Stop the guests too?", default=True) else LEAVE


def _directory(given: Path | None) -> Path:
    usual = os.environ.get("TORPOR_DIR") or installs.DEFAULT_DIRECTORY
    directory = (given or Path(usual)).absolute()
    if directory.is_dir() and not os.access(directory, os.R_OK):
        raise Rejected(f"the cluster of {directory} is another user's; use sudo")
    return directory


def _install(directory: Path) -> Install:
    install = installs.load(directory)
    if install is None:
        raise Rejected(f"{directory} has no cluster; torpor up makes one")
    return install


def _rows(running: state.State | None) -> list[dict[str, str | int | bool | None]]:
    if running is None:
        return []
    entries = (state.Entry("supervisor", running.supervisor), *running.processes)
    return [
        {
            "name": entry.name,
            "pid": entry.who.pid if entry.who and entry.running else None,
            "ready": entry.ready,
            "restarts": entry.restarts,
        }
        for entry in entries
    ]


def _table(rows: list[dict[str, str | int | bool | None]]) -> None:
    table = Table("NAME", "PID", "READY", "RESTARTS", box=None, pad_edge=False)
    for row in rows:
        pid = "-" if row["pid"] is None else str(row["pid"])
        table.add_row(str(row["name"]), pid, str(row["ready"]), str(row["restarts"]))
    Console(highlight=False).print(table)


def _progress() -> Callable[[str], None]:
    """Lines on stderr. A build's thousand lines are thinned out, so that a log stays readable."""
    last = 0.0

    def say(line: str) -> None:
        nonlocal last
        noisy = "/" in line and " " not in line  # a Go package that was compiled
        if not noisy or time.monotonic() - last > HEARTBEAT_SECONDS:
            last = time.monotonic()
            click.echo(line, err=True)

    return say
