"""Starts processes of ours by fork, from one that has imported everything: 20 ms instead of 2 s.

``python -m tests.zygote``: one JSON order a line on stdin, one line of answer on stdout.
``{"argv": [...], "env": {...}, "log": path}`` -> pid of a process that runs ``torpor ARGV``;
``{"wait": pid}`` -> its wait status, once it is dead. The end of stdin is the end of all of them.
A child is what ``torpor ARGV`` is, but for how it came to be; tests that doubt it start that.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

import controller.node.app
import controller.operator.app  # noqa: F401 - imported so that the children need not
from controller.cli.main import main as torpor
from controller.host import failpoint

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve orders until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, answer = os.waitpid(order["wait"], 0)
        else:
            answer = os.fork()
            if answer == 0:
                _become(order)
        print(answer, flush=True)


def _become(order: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["env"])
    failpoint.load(os.environ.get(failpoint.VARIABLE, ""))
    code = 1
    try:
        sys.argv = ["torpor", *order["argv"]]
        torpor()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
