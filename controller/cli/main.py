"""The ``torpor`` group: which commands there are, where each lives, how the process ends.

Commands are imported when they are called and not before: ``torpor --help`` and shell completion
must not pay for kopf or a Kubernetes client. So each line of help below is written here, beside the
command's address. What does not live here: any command.
"""

import importlib
import os
import sys
from dataclasses import dataclass

import click

from controller.cli.errors import run_at_edge
from controller.errors import TorporError


@dataclass(frozen=True)
class Entry:
    """Where a command lives (``module`` under controller.cli, ``attribute`` in it) and its help."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("cluster", "up", "Start a whole cluster on this machine."),
    "status": Entry("cluster", "status", "List the processes of the local cluster."),
    "down": Entry("cluster", "down", "Stop the local cluster."),
    "demo": Entry("demo", "demo", "Show an Instance living, from Pending to deleted."),
    "get": Entry("get", "get", "Show Instances by name, id or the beginning of an id."),
    "tree": Entry("tree", "tree", "Print an Instance's family: what was forked from what."),
    "verify": Entry("verify", "verify", "Check the files that an Instance sleeps in."),
    "logs": Entry("logs", "logs", "Print what an Instance's workload, console or VMM wrote."),
    "plan": Entry("plan", "plan", "Print the plan for an Instance, offline."),
    "doctor": Entry("doctor", "doctor", "Say what this host can do, and the remedy for the rest."),
    "setup": Entry("setup", "setup", "Install and build what this machine still needs."),
    "crds": Entry("crds", "crds", "Write the CustomResourceDefinitions."),
    "operator": Entry("processes", "operator", "Run the operator against a cluster."),
    "node": Entry("processes", "node", "Run the node agent of this node."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name, on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click's own version loads every command to suggest one for a mistyped name
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}. Commands: {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)


def load(name: str) -> click.Command:
    """Import the command ``name``. Raises TorporError when its module cannot be imported."""
    entry = COMMANDS[name]
    address = f"controller.cli.{entry.module}"
    try:
        command = getattr(importlib.import_module(address), entry.attribute)
    except (ImportError, AttributeError) as err:
        raise TorporError(
            f"the command {name!r} cannot be loaded: {err}; install torpor again"
        ) from err
    if not isinstance(command, click.Command):
        raise TorporError(f"{address}.{entry.attribute} is not a command; install torpor again")
    return command


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from controller import __version__

        click.echo(f"torpor {__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def torpor() -> None:
    """MicroVMs that sleep, declared in Kubernetes."""


def program_name(argv0: str) -> str:
    """How the command was called, for usage lines: kubectl runs plugins by their file's name."""
    return "kubectl torpor" if os.path.basename(argv0) == "kubectl-torpor" else "torpor"  # noqa: PTH119


def main() -> None:
    """Run the command line and exit with a code of ``controller.cli.errors``."""
    name = program_name(sys.argv[0])
    sys.exit(run_at_edge(lambda: torpor.main(prog_name=name, standalone_mode=False)))
