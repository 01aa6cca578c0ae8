"""The newest object of every Instance, trimmed: by UID, by name, and which forks wait for a name.

A name may pass on to another Instance, and a relist tells of that in any order: a name means the
newest object that bears it. What does not live here: what is decided about one.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from controller.core import source
from controller.core.source import waits_for

Object = dict[str, Any]

_UNREAD = ("managedFields", "annotations")  # most of an object's bytes, and users' to fill
_WORD = 32  # characters: types, reasons and names are shorter, sentences and UIDs are not


class Known(Mapping[str, Object]):
    """UID to object. The indexes take a few hundred bytes for each Instance."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._names: dict[str, dict[str, str]] = {}  # namespace -> name -> UID
        self._waiting: dict[tuple[str, str], set[str]] = {}  # namespace, source -> UIDs of forks

    def __getitem__(self, uid: str) -> Object:
        return self._objects[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, obj: Object) -> bool:
        """Keep ``obj`` unless it is no newer than what is kept; whether it was."""
        uid = obj["metadata"]["uid"]
        before = self._objects.get(uid)
        if before is not None and version(obj) <= version(before):
            return False
        kept = self._objects[uid] = _trim(obj)
        self._give_name(uid, kept)
        if before is not None:
            self._wait_no_more(uid, before)
        if (name := waits_for(kept)) is not None:
            self._waiting.setdefault((kept["metadata"]["namespace"], name), set()).add(uid)
        return True

    def drop(self, uid: str) -> Object | None:
        """Forget it. Returns what was kept, None if nothing was."""
        obj = self._objects.pop(uid, None)
        if obj is None:
            return None
        self._wait_no_more(uid, obj)
        namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        if self._names[namespace].get(name) == uid:
            del self._names[namespace][name]
            if not self._names[namespace]:
                del self._names[namespace]
        return obj

    def named(self, namespace: str, name: str) -> Object | None:
        """The Instance that has this name now."""
        uid = self._names.get(namespace, {}).get(name)
        return None if uid is None else self._objects[uid]

    def forks_waiting_for(self, obj: Object) -> tuple[str, ...]:
        """UIDs of the forks without a node that name ``obj`` as their source."""
        meta = obj["metadata"]
        return tuple(self._waiting.get((meta["namespace"], meta["name"]), ()))

    def circle(self, obj: Object) -> tuple[str, ...]:
        """The names of forks that wait for each other, ``obj`` first; empty if it is in none."""
        namespace = obj["metadata"]["namespace"]
        return source.circle(obj, lambda name: self.named(namespace, name))

    def _give_name(self, uid: str, obj: Object) -> None:
        names = self._names.setdefault(obj["metadata"]["namespace"], {})
        holder = names.get(obj["metadata"]["name"], uid)
        if holder == uid or version(self._objects[holder]) < version(obj):
            names[obj["metadata"]["name"]] = uid

    def _wait_no_more(self, uid: str, obj: Object) -> None:
        name = waits_for(obj)
        if name is None:
            return
        key = (obj["metadata"]["namespace"], name)
        forks = self._waiting.get(key, set())
        forks.discard(uid)
        if not forks:
            self._waiting.pop(key, None)


def version(obj: Object) -> int:
    """The resourceVersion as a number: of one API server's objects, the newest has the highest."""
    return int(obj["metadata"]["resourceVersion"])


def _trim(obj: Object) -> Object:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _UNREAD}
    return dict(_shared({**obj, "metadata": metadata}))


def _shared(value: Any) -> Any:
    """Equal, with its keys and short words kept once for all objects: less than half the memory."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= _WORD else value
