"""The commit point of a snapshot, and how it is taken back.

====== ============================ ==============================================================
step   effect                       a crash before it leaves
====== ============================ ==============================================================
folder ``snap.N/`` and its name     nothing
commit ``snap.N/manifest.json``     an empty folder: no snapshot; the files it names are collected
void   the manifest's name removed  a snapshot that somebody must still void
swap   another manifest renamed     the old or the new one, of the same memory
       over it
====== ============================ ==============================================================

N is the disk generation, so a generation has one snapshot at most. The files that a manifest names
and every writable disk are durable before ``commit`` is called: that is the caller's promise.
Whoever continues the guest after a commit calls ``void`` first. What does not live here: deciding
either.
"""

import contextlib
from pathlib import Path

from controller.errors import Bug, Rejected, Retry, Timeout
from controller.host import failpoint, files
from controller.memory.manifest import LIMIT, Manifest, decode, encode

NAME = "manifest.json"
PREFIX = "snap."

_POINTS = ("memory.folder", "memory.commit", "memory.void", "memory.replace")
failpoint.register(*(f"{point}.{when}" for point in _POINTS for when in ("before", "after")))


def folder(home: Path, generation: int) -> Path:
    """Where the snapshot of a disk generation lies below ``home``, one Instance's directory."""
    return home / f"{PREFIX}{generation}"


def commit(home: Path, generation: int, manifest: Manifest) -> Path:
    """Make the snapshot be, durably; return the manifest's path. ``home`` exists.

    Raises Retry: there is no snapshot, durably, and the guest may go on. Raises Timeout
    (CommitUnknown): nobody can tell, so the guest must neither go on nor be ended before ``read``
    or ``void`` succeeded. Raises Bug when this generation has another snapshot already.
    """
    place = folder(home, generation)
    data = encode(manifest)
    if (there := read(home, generation)) is not None and there != manifest:
        raise Bug(f"{place} holds another snapshot of the same disk generation")
    _make_folder(place)
    try:
        failpoint.hit("memory.commit.before")
        files.write_atomic(place / NAME, data)
        failpoint.hit("memory.commit.after")
    except Retry as err:
        _take_back(home, generation, err)
        raise
    return place / NAME


def replace(home: Path, generation: int, old: Manifest, new: Manifest) -> None:
    """Let ``new`` take the place of ``old``, the same memory in other files, by one rename.

    Raises Bug when ``old`` is not what is there, Retry: then either is there, and both are right
    as long as the files of both are.
    """
    if read(home, generation) != old:
        raise Bug(f"{folder(home, generation)} does not hold the snapshot that was to be replaced")
    failpoint.hit("memory.replace.before")
    files.write_atomic(folder(home, generation) / NAME, encode(new))
    failpoint.hit("memory.replace.after")


def read(home: Path, generation: int) -> Manifest | None:
    """The committed snapshot of ``generation``, or None.

    Raises Rejected (SnapshotCorrupt, SnapshotIncompatible) and Retry: then it is unknown.
    """
    return read_file(folder(home, generation) / NAME)


def read_file(path: Path) -> Manifest | None:
    """The manifest at ``path``, or None where there is none. Raises as ``read``."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise files.failed("read", path, err) from err
    try:
        return decode(data)
    except Rejected as err:
        raise Rejected(f"{path}: {err}", reason=err.reason) from err


def void(home: Path, generation: int) -> None:
    """Take the snapshot back, durably; none there is success. Raises Retry: it may be either."""
    place = folder(home, generation)
    failpoint.hit("memory.void.before")
    try:
        (place / NAME).unlink(missing_ok=True)
    except OSError as err:
        raise files.failed("remove", place / NAME, err) from err
    if place.is_dir():
        files.fsync_dir(place)
    failpoint.hit("memory.void.after")
    with contextlib.suppress(Retry):  # an empty folder says nothing; ``clean`` comes by
        files.remove_tree(place)


def manifests(home: Path) -> tuple[Path, ...]:
    """Where snapshots may be below one Instance's directory. Raises Retry when it cannot look."""
    try:
        return tuple(p / NAME for p in sorted(home.iterdir()) if p.name.startswith(PREFIX))
    except FileNotFoundError:
        return ()
    except OSError as err:
        raise files.failed("list", home, err) from err


def void_older(home: Path, generation: int) -> None:
    """Take back what a crash left of the generations before ``generation``. Raises Retry.

    They were used or given up when the generation went up, and hold files of the store for nobody.
    """
    for path in manifests(home):
        number = path.parent.name.removeprefix(PREFIX)
        if number.isdigit() and int(number) < generation:
            void(home, int(number))


def clean(home: Path) -> None:
    """Remove what a crash left below ``home``: folders without a manifest, unfinished writes.

    Only for the one writer of that directory, while it commits nothing there. Raises Retry.
    """
    if not home.is_dir():
        return
    files.remove_temporaries(home)
    for place in home.iterdir():
        if place.name.startswith(PREFIX) and place.is_dir():
            if (place / NAME).exists():
                files.remove_temporaries(place)
            else:
                files.remove_tree(place)


def _make_folder(place: Path) -> None:
    failpoint.hit("memory.folder.before")
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise files.failed("create", place, err) from err
    files.fsync_dir(place.parent)
    failpoint.hit("memory.folder.after")


def _take_back(home: Path, generation: int, why: Retry) -> None:
    """After a failed commit its name may be there or not: see to it that it is not, durably."""
    try:
        void(home, generation)
    except Retry as err:
        raise Timeout(
            f"{folder(home, generation)}: {why}; and it cannot be taken back ({err}): whether the"
            " snapshot was committed is unknown, look again",
            reason="CommitUnknown",
        ) from err
