"""The end of a process of ours: soon, whatever of it still hangs.

An event loop's end waits for every thread it lent work to, and a thread in a slow system call or a
child's deadline cannot be cancelled. Nothing of ours needs a goodbye: what matters is durable at
every step. So a process that was told to leave leaves, and says what it left behind.
"""

import faulthandler
import logging
import os
import threading

log = logging.getLogger(__name__)


def leave_within(seconds: float, code: int) -> None:
    """End this process with ``code`` in ``seconds`` if it has not ended by itself until then."""
    timer = threading.Timer(seconds, _leave, (code,))
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    log.warning("leaving without what still hangs")
    faulthandler.dump_traceback()
    os._exit(code)
