"""How long to wait before the next try: the restart of a guest, the retry of a failed step.

Pure arithmetic; whoever waits brings its own clock and its own chance.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """``base * 2 ** (n - 1)`` seconds before try n + 1, never more than ``cap``.

    A run that lasted ``reset`` seconds starts the count anew (the kubelet's rule for containers).
    """

    base: float = 10.0
    cap: float = 300.0
    reset: float = 600.0

    def delay(self, tries: int) -> float:
        """Seconds to wait after ``tries`` failures in a row; 0 for none."""
        if tries <= 0:
            return 0.0
        # beyond 2**32 every base is past every sensible cap; keeps the float finite
        return min(self.cap, self.base * 2.0 ** min(tries - 1, 32))

    def count(self, before: int, lasted: float | None) -> int:
        """Failures in a row including one that came after ``lasted`` seconds (None: unknown)."""
        return 1 if lasted is not None and lasted >= self.reset else before + 1
