"""Counts in memory, one line a second. Nothing is written down: what it knows, its RAM knows."""

import signal
import sys
import time

count = 0


def goodbye(*_: object) -> None:
    print(f"stopped at {count}", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, goodbye)
while True:
    count += 1
    print(count, flush=True)
    time.sleep(1)
