"""``torpor tree``: the family of an Instance, from the one it began with down to the last fork.

By lineage, so that it holds together when parents are gone: of those only the UID is known. What
does not live here: which Instance a word means (``lookup``).
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from controller.cli import lookup
from controller.core.source import waits_for
from controller.kube.resources import INSTANCES, Object, Objects

_GAP = "   "


@dataclass
class Member:
    """One of a family. ``instance`` is None for one that was deleted."""

    uid: str
    instance: Object | None
    children: list["Member"] = field(default_factory=list)


@click.command()
@click.argument("word", metavar="NAME|ID|ID-PREFIX")
@lookup.namespace_option
@lookup.kubeconfig_option
def tree(word: str, namespace: str | None, kubeconfig: Path | None) -> None:
    """Print the family of an Instance: the first at the top, below each its forks, with state and
    size of the memory on disk. Parents that are gone are shown by their UID.
    """
    config = lookup.kubeconfig(kubeconfig)
    where = namespace or lookup.current_namespace(config)
    subject, listed = asyncio.run(_read(config, word, where))
    click.echo("\n".join(lines(family(subject, listed))))


async def _read(config: Path | None, word: str, namespace: str) -> tuple[Object, Objects]:
    client = await lookup.connect(config)
    try:
        listed, _ = await client.list(INSTANCES, namespace)
        return lookup.choose(listed, word, namespace), listed
    finally:
        await client.close()


def family(subject: Object, listed: Sequence[Object]) -> Member:
    """All relatives of ``subject`` in ``listed``, as a tree from their root."""
    parents = _parents(listed)
    by_uid = {_uid(obj): obj for obj in listed}
    roots = {uid: _root(uid, by_uid, parents) for uid in by_uid}
    root = roots[_uid(subject)]
    relatives = sorted((obj for uid, obj in by_uid.items() if roots[uid] == root), key=_age)
    members = {_uid(obj): Member(_uid(obj), obj) for obj in relatives}
    top = members.setdefault(root, Member(root, None))
    for uid in map(_uid, relatives):
        parent = parents[uid]
        if uid == root or parent is None:
            continue
        if parent not in members:  # gone, and nobody knows whose fork it was
            members[parent] = Member(parent, None)
            top.children.append(members[parent])
        members[parent].children.append(members[uid])
    return top


def lines(top: Member) -> list[str]:
    """A header and one line for each member: the branch and its name, state, snapshot size."""
    rows = [("NAME", "STATE", "SNAPSHOT"), *(_row(*each) for each in _walk(top))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _walk(top: Member) -> Iterator[tuple[str, Member]]:
    """Each member with the branch that leads to it; without recursion: families may be deep."""
    stack = [("", "", top)]  # what stands before it, what stands before what is below it
    while stack:
        branch, below, member = stack.pop()
        yield branch, member
        for child in reversed(member.children):
            last = child is member.children[-1]
            marks = ("└─ ", "   ") if last else ("├─ ", "│  ")
            stack.append((below + marks[0], below + marks[1], child))


def _row(branch: str, member: Member) -> tuple[str, str, str]:
    if member.instance is None:
        return f"{branch}{member.uid}", "(deleted)", ""
    status = member.instance.get("status") or {}
    size = (status.get("snapshot") or {}).get("size", "")
    return f"{branch}{member.instance['metadata']['name']}", status.get("state") or "", size


def _parents(listed: Sequence[Object]) -> dict[str, str | None]:
    """UID to UID of what it was forked from; of what it is to be, by name, while it waits."""
    by_name = {obj["metadata"]["name"]: _uid(obj) for obj in listed}
    return {
        _uid(obj): str(lineage["parent"])
        if (lineage := _lineage(obj))
        else by_name.get(waits_for(obj))
        for obj in listed
    }


def _root(uid: str, by_uid: Mapping[str, Object], parents: Mapping[str, str | None]) -> str:
    way = [uid]
    while True:
        if lineage := _lineage(by_uid[way[-1]]):
            return str(lineage["root"])
        parent = parents[way[-1]]
        if parent is None:
            return way[-1]
        if parent in way:  # forks that wait for each other: the same one for all of them
            return min(way[way.index(parent) :])
        way.append(parent)


def _lineage(obj: Object) -> Object:
    return (obj.get("status") or {}).get("lineage") or {}


def _age(obj: Object) -> tuple[str, str]:
    return str(obj["metadata"].get("creationTimestamp")), obj["metadata"]["name"]


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])
