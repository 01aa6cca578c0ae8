"""The process behind ``hollow``: one VMM, or a herd. A program, given to ``python`` on stdin.

With ``hollow_vmm``, ``hollow_guest`` and ``hollow_wire`` it imports nothing else of ours and little
of anything, because there is one process for each VMM: what it takes is what a hollow VMM takes.
One loop serves any number of VMMs. What does not live here: what a VMM is.
"""

import json
import os
import socket
import sys
import time

from controller.vmm.hollow_vmm import Vmm
from controller.vmm.hollow_wire import Loop


def take(loop: Loop, listener: socket.socket) -> None:
    """A herd's new VMM: its config and its descriptors in one message."""
    sock, _ = listener.accept()
    with sock:
        data, numbers, _, _ = socket.recv_fds(sock, 64 * 1024, 64)
        if not data:  # who only asked whether we are there
            return
        config = json.loads(data)
        fds = dict(zip(config["names"], numbers, strict=True))
        try:
            vmm = Vmm(loop, config, fds)
        except OSError as error:
            for fd in fds.values():
                os.close(fd)
            sock.sendall(f"no {error}\n".encode())
            return
        if refused := vmm.fault("start"):
            vmm.end()
        sock.sendall(b"no ordered to die at its start\n" if refused else b"ok\n")


def main() -> None:
    """``CONFIG``: one VMM. ``--herd FD``: any number, taken from a listening socket."""
    loop = Loop(herd=sys.argv[1] == "--herd")
    if loop.herd:
        listener = socket.socket(fileno=int(sys.argv[2]))
        listener.listen(128)  # again, so that who connects is told our pid
        loop.watch(listener, lambda: take(loop, listener))
    else:
        config = json.loads(sys.argv[1])
        fds = dict(zip(config["names"], config["fds"], strict=True))
        fault = Vmm(loop, config, fds).fault("start")
        if fault == "hang":
            time.sleep(1e9)
        elif fault:
            sys.exit("hollow: ordered to die at its start")
    loop.run()


if __name__ == "__main__":
    main()
