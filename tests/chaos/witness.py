"""What hollow guests themselves know of how they were treated: nobody runs twice, none goes back.

Every guest counts in its RAM and keeps a journal on its disk (``tick=on``, see ``hollow_guest``).
A memory image that is used twice, or with a disk of another moment, shows in the journal as a gap;
one that is lost shows as a boot. And what is on disk must be what somebody still names.
"""

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from controller.host import files
from controller.memory import commit
from controller.memory.manifest import Manifest
from controller.memory.store import NAME
from controller.node.record import Record, Records
from controller.vmm.hollow_guest import HEAD, MARK, SLOTS
from tests.agentkit import Rig, Site


@dataclass(frozen=True)
class Journal:
    """What is on the disk of a guest: its counts in order, and how often RAM did not fit it."""

    counts: tuple[int, ...]
    gaps: int

    @property
    def last(self) -> int:
        """How far it had come when it last wrote."""
        return self.counts[-1] if self.counts else 0


def journal(site: Site, uid: str) -> Journal:
    """Read it, while the guest runs or not. Nothing is there before the first boot."""
    data = site.places.overlay(uid).open("rb").read(8 * SLOTS)
    mark, gaps = HEAD.unpack_from(data)
    if mark != MARK:
        return Journal((), 0)
    slots = struct.unpack(f"<{SLOTS}Q", data)[1:]
    end = slots.index(0) if 0 in slots else len(slots)
    return Journal(slots[:end], gaps)


def count(site: Site, uid: str) -> int | None:
    """How far the guest has counted in RAM; None when no VMM answers."""
    try:
        answer = site.ask(uid, "count")
    except OSError:
        return None
    return int(answer.removeprefix("ok ")) if answer.startswith("ok ") else None


@dataclass
class Witness:
    """Remembers how far each guest was seen to have come. ``look`` raises when one went back."""

    rig: Rig
    seen: dict[str, tuple[int, int, Journal]] = field(default_factory=dict)  # boots, RAM, disk

    def look(self, uid: str) -> int:
        """Look at one Instance; how far its guest has come. AssertionError: it went back."""
        site = self.rig.site
        boots, ram, disk = site.starts(uid), count(site, uid), journal(site, uid)
        before = self.seen.get(uid, (boots, 0, Journal((), 0)))
        assert disk.gaps == 0, f"{uid}: RAM and disk were of two moments: {disk}"
        assert list(disk.counts) == sorted(set(disk.counts)), f"{uid}: {disk} goes back"
        assert disk.counts[: len(before[2].counts)] == before[2].counts, f"{uid}: disk {disk}"
        if ram is not None:
            assert ram >= before[2].last, f"{uid}: RAM is at {ram}, its disk was at {before[2]}"
            if boots == before[0]:
                assert ram >= before[1], f"{uid}: RAM went from {before[1]} back to {ram}"
        # what was only in RAM is lost by a cold boot
        kept = before[1] if boots == before[0] else 0
        self.seen[uid] = (boots, max(ram or 0, kept), disk)
        return max(ram or 0, kept, disk.last)

    def born(self, uid: str, source: str, *, memory: bool) -> None:
        """``uid`` is to be forked from ``source``, which was looked at: it begins no earlier."""
        _, ram, disk = self.seen[source]
        self.seen[uid] = (0, ram if memory else 0, disk)


def strays(rig: Rig) -> list[str]:
    """What lies on disk for sleepers and nobody names, and what is named and is not there."""
    places, found = rig.site.places, []
    records = Records(places.instances)
    records.load()
    named: set[str] = set()
    for record in records.known():
        here, wrong = _of(rig.site, record)
        named |= here
        found += wrong
    stored = {}
    for folder in places.memory.glob("[0-9]*"):
        for path in _listed(folder):
            match = NAME.fullmatch(path.name)
            stored[match[2] if match else path.name] = path
    found += [f"{path} is named by nobody" for name, path in stored.items() if name not in named]
    return found + [f"{digest} is gone" for digest in sorted(named - stored.keys())]


def _listed(folder: Path) -> list[Path]:
    """What is in it; nothing where it goes this moment, with the last of its files."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _of(site: Site, record: Record) -> tuple[set[str], list[str]]:
    home = site.places.instance(record.uid)
    named = {record.open.base.digest} if record.open and record.open.base else set()
    wrong = []
    for path in commit.manifests(home):
        manifest: Manifest | None = commit.read_file(path)
        if path.parent != commit.folder(home, record.disk_generation) or manifest is None:
            wrong.append(f"{path.parent} is left over")
        if manifest is not None:
            named |= {file.digest for file in manifest.files}
    for folder, _, names in os.walk(home):
        wrong += [f"{folder}/{name}" for name in names if name.endswith(files.TEMPORARY_SUFFIX)]
    return named, wrong
