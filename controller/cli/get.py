"""``torpor get``: Instances by name, id or the beginning of an id.

What does not live here: what a word means (``lookup``), how a table looks (``columns``).
"""

import asyncio
import json
from pathlib import Path

import click
import yaml

from controller.cli import columns, lookup
from controller.kube.resources import INSTANCES, Object, Objects


@click.command()
@click.argument("words", metavar="[NAME|ID|ID-PREFIX]...", nargs=-1)
@lookup.namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Look in every namespace.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table"
)
@lookup.kubeconfig_option
def get(
    words: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    output: str,
    kubeconfig: Path | None,
) -> None:
    """Show Instances by name, id or the beginning of an id; all of them without one.

    An id comes first, then a name, then the beginning of an id. One that begins several ids lists
    them and exits 2.
    """
    config = lookup.kubeconfig(kubeconfig)
    where = None if all_namespaces else namespace or lookup.current_namespace(config)
    try:
        found = asyncio.run(_read(config, words, where))
    except lookup.Ambiguous as err:
        now = columns.utc_now()
        for line in columns.table(err.matches, now, namespaces=all_namespaces):
            click.echo(line, err=True)
        raise
    if output in ("table", "wide"):
        if not found:
            click.echo(_nothing(where), err=True)
            return
        lines = columns.table(
            found, columns.utc_now(), wide=output == "wide", namespaces=all_namespaces
        )
        click.echo("\n".join(lines))
    else:
        shown = [_without_bookkeeping(instance) for instance in found]
        document = shown[0] if len(words) == 1 else _list(shown)
        click.echo(_as_yaml(document) if output == "yaml" else json.dumps(document, indent=2))


async def _read(config: Path | None, words: tuple[str, ...], namespace: str | None) -> Objects:
    client = await lookup.connect(config)
    try:
        if not words:
            return (await client.list(INSTANCES, namespace))[0]
        return [await lookup.find(client, word, namespace) for word in words]
    finally:
        await client.close()


def _list(found: Objects) -> Object:
    return {"apiVersion": "v1", "kind": "List", "items": found}


def _without_bookkeeping(instance: Object) -> Object:
    """As kubectl shows it: who wrote which field is left out."""
    meta = {key: value for key, value in instance["metadata"].items() if key != "managedFields"}
    return instance | {"metadata": meta}


def _as_yaml(document: Object) -> str:
    return yaml.safe_dump(document, sort_keys=True).rstrip()


def _nothing(namespace: str | None) -> str:
    return "No Instances found" + ("" if namespace is None else f" in {namespace} namespace")
