"""``torpor operator`` and ``torpor node``: the two processes, against any kubeconfig.

This is how a real cluster runs them, and how ``torpor up`` does. What does not live here: what they
do (``operator.app``, ``node.app``).
"""

import asyncio
import logging
from pathlib import Path

import click

from controller import settings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, help="Settings, a YAML file.")
_KUBECONFIG = click.option(
    "--kubeconfig", type=_FILE, help="How to reach the cluster; default: as a Pod in it."
)
_LOG_LEVEL = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning"]), default="info"
)


@click.command()
@_CONFIG
@_KUBECONFIG
@_LOG_LEVEL
def operator(config: Path | None, kubeconfig: Path | None, log_level: str) -> None:
    """Run the operator: reservations, placement, silent nodes."""
    from controller.operator import app

    _log(log_level)
    asyncio.run(app.run(settings.load(settings.OperatorSettings, config), kubeconfig))


@click.command()
@_CONFIG
@_KUBECONFIG
@_LOG_LEVEL
def node(config: Path | None, kubeconfig: Path | None, log_level: str) -> None:
    """Run this host's node agent. Needs root."""
    from controller.node import app

    _log(log_level)
    asyncio.run(app.run(settings.load(settings.NodeSettings, config), kubeconfig))


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # it warns that signals are not its own, which is how we run it
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
