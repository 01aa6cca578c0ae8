"""Which cluster a command talks to, and which Instance a word on the command line means.

A word is an id, else a name, else the beginning of an id: ids are given out by Torpor, so nobody
can take another's by choosing a name. What does not live here: printing, and requests themselves
(``controller.kube``).
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from controller.errors import Rejected, TorporError, Unreachable
from controller.kube.client import Client
from controller.kube.resources import INSTANCES, Object, Objects
from controller.kube.transport import Patience

F = TypeVar("F", bound=Callable[..., Any])

# a person waits in front of it
PATIENCE = Patience(attempt=10.0, connect=3.0, total=12.0, attempts=3, wait_max=1.0)
_ID = re.compile(r"[a-z][a-z0-9]{23}")

kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    help="How to reach the cluster; default: $KUBECONFIG, else ~/.kube/config.",
)
namespace_option = click.option(
    "-n", "--namespace", help="Default: the one of the kubeconfig's current context."
)
socket_option = click.option(
    "--socket", type=click.Path(path_type=Path), help="The agent's; default: of the local cluster."
)
directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="TORPOR_DIR",
    help="The local cluster's; default: $TORPOR_DIR, else the kubeconfig's own.",
)


class Ambiguous(Rejected):
    """The beginning of several ids. ``matches`` are the Instances."""

    def __init__(self, message: str, matches: Objects) -> None:
        super().__init__(message, reason="Ambiguous")
        self.matches = matches


def kubeconfig(given: Path | None) -> Path | None:
    """The file to use; None inside a Pod. Raises Unreachable where there is none at all."""
    if given is not None:
        return given
    usual = Path.home() / ".kube" / "config"
    if listed := os.environ.get("KUBECONFIG"):
        paths = [Path(path) for path in listed.split(os.pathsep) if path]
        if len(paths) == 1:
            return paths[0]  # also when it is not there: that is what the error should name
        usual = next((path for path in paths if path.exists()), usual)
    if usual.exists():
        return usual
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    raise Unreachable(
        f"no kubeconfig: $KUBECONFIG is not set and {usual} does not exist; "
        "export KUBECONFIG=FILE (torpor up prints the line), or pass --kubeconfig FILE",
        reason="NoKubeconfig",
    )


def current_namespace(config: Path | None) -> str:
    """The namespace of the current context, ``default`` where it names none."""
    if config is None:
        return "default"
    try:
        document = yaml.safe_load(config.read_text())
        for entry in document["contexts"]:
            if entry["name"] == document["current-context"]:
                return str(entry["context"].get("namespace") or "default")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        pass  # connecting says what is wrong with the file
    return "default"


async def connect(config: Path | None) -> Client:
    """A client that gives up in seconds. Raises Unreachable."""
    return await Client.connect(config, user_agent="torpor-cli", patience=PATIENCE)


async def find(client: Client, word: str, namespace: str | None) -> Object:
    """The Instance that ``word`` means; ``namespace`` None looks in all of them.

    Raises Ambiguous, TorporError (NotFound), and what the client raises.
    """
    if namespace is not None and not _ID.fullmatch(word) and _is_name(word):
        # no id, so the name is next: no need to read all the others
        named = await client.get(INSTANCES, word, namespace)
        if named is not None:
            return named
    listed, _ = await client.list(INSTANCES, namespace)
    return choose(listed, word, namespace)


def choose(listed: Sequence[Object], word: str, namespace: str | None) -> Object:
    """The one of ``listed`` that ``word`` means. Raises Ambiguous, TorporError (NotFound)."""
    for matches in (partial(_has_id, word), partial(_has_name, word), partial(_starts, word)):
        found = [instance for instance in listed if matches(instance)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(_full_name(instance) for instance in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise Ambiguous(f"{word!r} means {len(found)} Instances: {names}{more}; be more "
                            "exact, or name the namespace (-n)", found)  # fmt: skip
    where = "in any namespace" if namespace is None else f"in namespace {namespace}"
    elsewhere = "" if namespace is None else "; in another one? torpor get -A lists all"
    raise TorporError(
        f"no Instance {where} has the name or the id {word!r}, nor an id that begins so{elsewhere}",
        reason="NotFound",
    )


def _has_id(word: str, instance: Object) -> bool:
    return bool(word) and _id(instance) == word  # a fresh one has no id yet


def _has_name(word: str, instance: Object) -> bool:
    return bool(instance["metadata"]["name"] == word)


def _starts(word: str, instance: Object) -> bool:
    return bool(word) and _id(instance).startswith(word)


def _id(instance: Object) -> str:
    return str((instance.get("status") or {}).get("id") or "")


def _full_name(instance: Object) -> str:
    return f"{instance['metadata']['namespace']}/{instance['metadata']['name']}"


def _is_name(word: str) -> bool:
    """Whether it can stand in a path: an object's name has no slash and is not empty."""
    return re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", word) is not None
