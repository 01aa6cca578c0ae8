"""Where the RAM of a process is, and which of its pages are its own.

Guest RAM is a private mapping of a memory image. It is found by the identity of the image's file
(device and inode; two mappings may have the same size) and may be cut into several areas, which
must follow each other without a gap. A page that was written since is anonymous: present or
swapped, and not of the file. An untouched or merely read page belongs to the image.

``/proc/PID`` is held open as a directory, so a pid that is given to another process later cannot
be read or written by mistake. What does not live here: copying (``copier``), and stopping the
process, without which the answer is out of date when it arrives.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from controller.errors import Blocked, Retry
from controller.host.process import Gone, Identity, identity

PAGE = 4096
PageNumbers = NDArray[np.int64]

_MAPS_LIMIT = 16 * 1024 * 1024  # a kernel's default of 65,530 areas, with room
_ENTRIES = 128 * 1024  # of the page map read at a time: 1 MiB, 512 MiB of RAM
_PRESENT_OR_SWAPPED = np.uint64(0b11 << 62)
_OF_FILE = np.uint64(1 << 61)
_AREA = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)", re.M
)


@dataclass(frozen=True, slots=True)
class FileId:
    """A file as the kernel knows it, whatever its names."""

    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileId":
        """The identity of what was stat'ed."""
        return cls(status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class Area:
    """One line of the maps file; addresses and offset in bytes."""

    start: int
    end: int
    private: bool
    offset: int
    file: FileId


@dataclass(frozen=True, slots=True)
class Mapping:
    """The RAM of a process: byte n of it is at address ``start + n``."""

    start: int
    size: int


class ProcessMemory:
    """A process whose memory is looked at; use as a context manager. Raises Gone, Retry."""

    def __init__(self, who: Identity, *, writable: bool = False) -> None:
        self.who = who
        self._directory = -1
        self.mem = -1  # descriptor of its memory: offset n is address n
        try:
            self._directory = os.open(f"/proc/{who.pid}", os.O_RDONLY | os.O_DIRECTORY)
            if identity(who.pid) != who:
                raise Gone(f"pid {who.pid} belongs to another process now")
            self.mem = self._open("mem", os.O_RDWR if writable else os.O_RDONLY)
        except OSError as err:
            self.close()
            raise_for(who, "open the memory of", err)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the process."""
        for fd in (self.mem, self._directory):
            if fd >= 0:
                os.close(fd)
        self.mem = self._directory = -1

    def ram(self, image: FileId, size: int) -> Mapping:
        """The private mapping of ``image``, ``size`` bytes. Raises Blocked (MemoryNotFound)."""
        try:
            areas = [area for area in parse_maps(self._read_maps()) if self._maps(area, image)]
        except OSError as err:
            raise_for(self.who, "read the memory map of", err)
        return assemble(areas, size, self.who.pid)

    def changed_pages(self, ram: Mapping) -> PageNumbers:
        """Numbers of the pages of ``ram`` that are not the image's, ascending. 8 bytes read each.

        A page that was only read where the image is /dev/zero counts too: it is all zeros.
        """
        found = []
        try:
            fd = self._open("pagemap", os.O_RDONLY)
            try:
                for first in range(0, ram.size // PAGE, _ENTRIES):
                    count = min(_ENTRIES, ram.size // PAGE - first)
                    data = os.pread(fd, count * 8, (ram.start // PAGE + first) * 8)
                    if len(data) != count * 8:
                        raise Gone(f"process {self.who.pid} ended while its pages were listed")
                    found.append(own_pages(data) + first)
            finally:
                os.close(fd)
        except OSError as err:
            raise_for(self.who, "list the pages of", err)
        return np.concatenate(found)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._directory)

    def _read_maps(self) -> bytes:
        fd = self._open("maps", os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            data = file.read(_MAPS_LIMIT + 1)
        if len(data) > _MAPS_LIMIT:
            raise Blocked(f"process {self.who.pid} has too many memory areas to look through")
        return data

    def _maps(self, area: Area, image: FileId) -> bool:
        """Whether ``area`` is of ``image``. Some file systems show another device in maps."""
        if area.file.inode == 0:
            return False
        if area.file == image:
            return True
        try:
            link = f"map_files/{area.start:x}-{area.end:x}"
            return FileId.of(os.stat(link, dir_fd=self._directory)) == image
        except OSError:  # the area is gone, or the kernel was built without them
            return False


def parse_maps(text: bytes) -> list[Area]:
    """The lines of a maps file, in the order of their addresses."""
    return [
        Area(
            start=int(start, 16),
            end=int(end, 16),
            private=flags.endswith(b"p"),
            offset=int(offset, 16),
            file=FileId(os.makedev(int(major, 16), int(minor, 16)), int(inode)),
        )
        for start, end, flags, offset, major, minor, inode in _AREA.findall(text)
    ]


def assemble(areas: Iterable[Area], size: int, pid: int) -> Mapping:
    """Join the areas of one image to its one mapping of ``size`` bytes.

    Raises Blocked (MemoryNotFound) when there is none, more than one, or a shared one: then this
    is no VMM of ours, or somebody inside it rearranged its memory.
    """
    whole: list[Area] = []
    for area in areas:
        if not area.private:
            raise _not_found(pid, "maps its memory image shared")
        last = whole[-1] if whole else None
        if last is not None and last.end == area.start and _continues(last, area):
            whole[-1] = Area(last.start, area.end, True, last.offset, last.file)
        else:
            whole.append(area)
    fitting = [area for area in whole if area.end - area.start == size]
    if len(fitting) != 1 or len(whole) != 1:
        sizes = ", ".join(str(area.end - area.start) for area in whole[:8]) or "nothing"
        raise _not_found(pid, f"maps {sizes} bytes of its memory image")
    return Mapping(fitting[0].start, size)


def own_pages(entries: bytes) -> PageNumbers:
    """Which entries of a page map, counted from its first, are anonymous pages."""
    flags = np.frombuffer(entries, dtype=np.uint64)
    own = ((flags & _PRESENT_OR_SWAPPED) != 0) & ((flags & _OF_FILE) == 0)
    return np.flatnonzero(own).astype(np.int64)


def runs_of(pages: PageNumbers) -> PageNumbers:
    """Ascending page numbers as rows of (first page, count)."""
    if not len(pages):
        return np.empty((0, 2), dtype=np.int64)
    firsts = np.flatnonzero(np.diff(pages, prepend=pages[0] - 2) != 1)
    counts = np.diff(firsts, append=len(pages))
    return np.stack([pages[firsts], counts], axis=1)


def raise_for(who: Identity, verb: str, err: OSError) -> NoReturn:
    """Turn an OSError on a process's files into ours."""
    if isinstance(err, FileNotFoundError | ProcessLookupError):
        raise Gone(f"cannot {verb} process {who.pid}: it is gone") from err
    raise Retry(
        f"cannot {verb} process {who.pid}: {err.strerror}; the agent must be root and allowed to"
        " trace it",
        reason="MemoryUnreadable",
    ) from err


def _continues(last: Area, area: Area) -> bool:
    # Private mappings of /dev/zero keep one offset whatever is split off on some kernels.
    return area.offset in (last.offset, last.offset + (area.start - last.start))


def _not_found(pid: int, why: str) -> Blocked:
    return Blocked(
        f"process {pid} {why}: its memory cannot be saved or restored; stop the Instance",
        reason="MemoryNotFound",
    )
