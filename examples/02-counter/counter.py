"""Counts in memory, one line a second, and says who it is. Nothing is written down: what it
knows, its RAM knows. Who it is, it asks anew for each line: a fork is somebody else."""

import os
import signal
import sys
import time

count = 0


def machine() -> str:
    try:
        with open("/etc/machine-id") as file:  # noqa: PTH123 -- python3-minimal may lack pathlib
            return file.read(8)
    except FileNotFoundError:
        return "-"


def goodbye(*_: object) -> None:
    print(f"stopped at {count}", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, goodbye)
while True:
    count += 1
    print(count, os.uname().nodename, machine(), flush=True)
    time.sleep(1)
