"""Whether what was seen of an Instance can be explained by some order of what was asked of it.

The operating mode is one register. Writers write it, each over some time; whoever looks at the
status reads it, late: a read may be of an older write, but never of one that is older than what was
read before, nor of one that had not begun. At the end the newest write is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Write:
    """``value`` was asked for, by a request that was on its way from ``begun`` to ``done``."""

    value: str
    begun: float
    done: float


@dataclass(frozen=True)
class Read:
    """``value`` was seen to be so."""

    value: str
    at: float


def explained(writes: Sequence[Write], reads: Sequence[Read]) -> tuple[Write, ...] | None:
    """A serial order of ``writes`` that gives ``reads``, in their order; None: there is none.

    Of writes that follow each other without a read between, the order is any that is possible.
    """
    before = [
        sum(1 << i for i, earlier in enumerate(writes) if earlier.done < write.begun)
        for write in writes
    ]
    everything = (1 << len(writes)) - 1
    start = (0, -1, 0)  # written so far, the last of them, how many reads are explained
    came_from: dict[tuple[int, int, int], tuple[int, int, int]] = {start: start}
    stack = [start]
    while stack:
        state = stack.pop()
        written, last, seen = state
        if written == everything and seen == len(reads):
            return _way(writes, came_from, state)
        after = []
        newest = written == everything or seen + 1 < len(reads)  # the last read is of the newest
        if last >= 0 and seen < len(reads) and newest and _fits(writes[last], reads[seen]):
            after.append((written, last, seen + 1))
        for i, needs in enumerate(before):
            if not written >> i & 1 and needs & ~written == 0:
                after.append((written | 1 << i, i, seen))
        for following in after:
            if following not in came_from:
                came_from[following] = state
                stack.append(following)
    return None


def _fits(write: Write, read: Read) -> bool:
    return write.value == read.value and write.begun <= read.at


def _way(
    writes: Sequence[Write],
    came_from: dict[tuple[int, int, int], tuple[int, int, int]],
    state: tuple[int, int, int],
) -> tuple[Write, ...]:
    way = []
    while came_from[state] != state:
        if came_from[state][0] != state[0]:
            way.append(writes[state[1]])
        state = came_from[state]
    return tuple(reversed(way))
