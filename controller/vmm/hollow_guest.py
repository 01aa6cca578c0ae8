"""The inside of a hollow VMM: what a guest would keep in its RAM, and write to its disk.

A part of the program of ``hollow_process``, imports as little, and like a guest knows no host.

RAM is the mapping of the memory image. Page 1 holds how far the guest has counted and where its
journal goes on, page 2 who it thinks it is, pages from 16 up what ``fill`` left there. Nothing in
it is touched while the guest stands still.

A guest that ticks keeps a journal on its first writable disk: slot k (8 bytes, little endian, at
byte 8 * k, k = 1, 2, …) gets the count at each resume and every 20th tick, and is never written
again. Before each it looks whether the disk is as RAM remembers it. Slot 0 is a mark and how often
it was not (``gaps``): then RAM and disk are of two moments. A guest that boots goes on counting
from the last slot.
"""

import binascii
import json
import mmap
import os
import struct

from controller.vmm.hollow_wire import unpacked

BOOT_ID, NONCE, HOSTNAME, MACHINE_ID, WALL, SEED, TOKEN = 5, 6, 32, 33, 48, 49, 50
TIME, RESEED, IDENTITY = 32, 34, 36
EINVAL = 22
PAGE = 4096
FIRST_FILLED = 16 * PAGE
MIB = 1024 * 1024
SLOTS = 4096  # then it writes no more
EVERY = 20
COUNTS = struct.Struct("<QQQ")  # how far it has counted, the next slot, what is in the last one
HEAD = struct.Struct("<6sH")  # slot 0
MARK = b"hollow"
MAGIC = b"torpor hollow device state "
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")

Told = dict[str, str]


class Guest:
    """What runs in a VMM. ``disk``: descriptor of its first writable disk, -1: it has none."""

    def __init__(self, memory: mmap.mmap, disk: int) -> None:
        self.memory, self.disk = memory, disk

    @property
    def lives(self) -> bool:
        """Whether a guest is in this RAM at all."""
        return self.memory[2 * PAGE : 2 * PAGE + len(MARK)] == MARK

    @property
    def count(self) -> int:
        """How far it has counted."""
        return self._counts()[0]

    @property
    def identity(self) -> Told:
        """Who it thinks it is; numbers as text."""
        if not self.lives:
            return {}
        start = 2 * PAGE + len(MARK)
        (length,) = struct.unpack_from("<I", self.memory, start)
        found: Told = json.loads(self.memory[start + 4 : start + 4 + length])
        return found

    @property
    def gaps(self) -> int:
        """How often its disk was not of the same moment as its RAM."""
        head = os.pread(self.disk, HEAD.size, 0) if self.disk >= 0 else b""
        mark, gaps = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
        return gaps if mark == MARK else 0

    def boot(self, told: Told) -> None:
        """Begin, with what the config disk says; randomness and boot id are its own."""
        raw = os.urandom(16).hex()
        boot_id = "-".join((raw[:8], raw[8:12], "4" + raw[13:16], "a" + raw[17:20], raw[20:]))
        names = {name: told.get(name, "") for name in ("hostname", "machine_id", "nonce")}
        random = {"urandom": os.urandom(16).hex(), "boot_id": boot_id, "clock": "0"}
        self._remember({**names, **random})
        COUNTS.pack_into(self.memory, PAGE, 0, 0, 0)

    def tick(self, *, journal: bool) -> None:
        """Count one further, and keep the journal if there is to be one."""
        count, slot, last = self._counts()
        COUNTS.pack_into(self.memory, PAGE, count + 1, slot, last)
        if journal:
            self._note()

    def ticked(self) -> None:
        """Some time has passed."""
        self.tick(journal=(self.count + 1) % EVERY == 0)

    def fill(self, mib: int) -> int:
        """Write so many MiB of random bytes into RAM; how many fitted."""
        most = (len(self.memory) - FIRST_FILLED) // MIB
        for number in range(min(mib, most)):
            start = FIRST_FILLED + number * MIB
            self.memory[start : start + MIB] = os.urandom(MIB)
        return min(mib, most)

    def repair(self, kind: int, payload: bytes) -> int:
        """Take a new time, randomness or identity; 0, or the errno of a request that is none."""
        try:
            told = unpacked(payload)
            if len(told[TOKEN]) != 16:
                return EINVAL
            changed = {TIME: _time, RESEED: self._reseeded, IDENTITY: _renamed}[kind](told)
        except (KeyError, ValueError, struct.error):
            return EINVAL
        self._remember({**self.identity, **changed})
        return 0

    def _reseeded(self, told: dict[int, bytes]) -> Told:
        seed, old = told[SEED], bytes.fromhex(self.identity["urandom"])
        if not 64 <= len(seed) <= 512:
            raise ValueError(len(seed))
        return {"urandom": bytes(one ^ two for one, two in zip(old, seed, strict=False)).hex()}

    def _remember(self, identity: Told) -> None:
        text = json.dumps(identity).encode()
        data = MARK + struct.pack("<I", len(text)) + text
        self.memory[2 * PAGE : 2 * PAGE + len(data)] = data

    def _counts(self) -> tuple[int, int, int]:
        count, slot, last = COUNTS.unpack_from(self.memory, PAGE)
        return count, slot, last

    def _note(self) -> None:
        """Write the count into the next slot, unless the disk is full or the journal is."""
        try:
            if self.disk >= 0 and self._counts()[1] == 0:
                self._open_journal()
            count, slot, last = self._counts()
            if self.disk < 0 or slot >= SLOTS:
                return
            before, here = struct.unpack("<QQ", os.pread(self.disk, 16, 8 * (slot - 1)))
            if here != 0 or (slot > 1 and before != last):
                os.pwrite(self.disk, HEAD.pack(MARK, self.gaps + 1), 0)
            os.pwrite(self.disk, struct.pack("<Q", count), 8 * slot)
        except OSError:
            return
        COUNTS.pack_into(self.memory, PAGE, count, slot + 1, count)

    def _open_journal(self) -> None:
        """Find the end of the journal, or begin one on a disk that has none."""
        data = os.pread(self.disk, 8 * SLOTS, 0)
        if not data.startswith(MARK):
            data = HEAD.pack(MARK, 0) + bytes(8 * (SLOTS - 1))
            os.pwrite(self.disk, data, 0)
        slots = struct.unpack(f"<{SLOTS}Q", data)
        slot = next((number for number in range(1, SLOTS) if slots[number] == 0), SLOTS)
        last = slots[slot - 1] if slot > 1 else 0
        COUNTS.pack_into(self.memory, PAGE, self.count + last, slot, last)


def _time(told: dict[int, bytes]) -> Told:
    (wall,) = struct.unpack("<q", told[WALL])
    if wall < 0:
        raise ValueError(wall)
    return {"clock": str(wall)}


def _renamed(told: dict[int, bytes]) -> Told:
    keys = (("hostname", HOSTNAME), ("machine_id", MACHINE_ID), ("nonce", NONCE))
    names = {name: told[key].decode("ascii") for name, key in keys}
    for name, value in names.items():
        if not 1 <= len(value) <= 64 or not PLAIN.issuperset(value):
            raise ValueError(value)
        if name == "machine_id" and len(value) != 32:
            raise ValueError(value)
    return names


def packed(known: dict[str, object]) -> bytes:
    """Device state: what a VMM knows, with a checksum."""
    body = json.dumps(known).encode()
    return MAGIC + f"{binascii.crc32(body):08x} ".encode() + body


def unpacked_state(data: bytes) -> dict[str, object]:
    """The inverse of ``packed``; {} for what is damaged, or none."""
    checksum, _, body = data[len(MAGIC) :].partition(b" ")
    if not data.startswith(MAGIC) or checksum != f"{binascii.crc32(body):08x}".encode():
        return {}
    known: dict[str, object] = json.loads(body)
    return known
