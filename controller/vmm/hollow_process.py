"""The process behind ``hollow``: VMMs without a guest. A program, given to ``python`` on stdin.

Alone among our modules it imports nothing of ours and little of anything, because there is one
process for each VMM: what it takes is what a hollow VMM takes. One loop serves any number of VMMs,
so the same program is a herd's.

A VMM is what its driver sees: a monitor that speaks lines ("NUMBER WORD" in, "NUMBER ok|no TEXT"
out, "event WORD" unasked), a channel and a report pipe with the frames of the real init, a run lock
that is held while the descriptor is open. A second monitor is for people and tests, without numbers
("exit 3", "signal 9", "reboot", "panic", "crash", "storage-full", "pause", "resume", "print TEXT").

Faults: the file named by ``faults`` (read at each command, absent = none) has lines "WORD=FAULT".
WORD is a command of the monitor, or greet, start, workload, shutdown; FAULT is hang, refuse,
garbage, die, close or a number (a delay in seconds). What does not live here: anything that a real
VMM would decide.
"""

import contextlib
import json
import mmap
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable

HELLO, HELLO_REPLY, INFO, INFO_REPLY, PING, PONG, SHUTDOWN, SHUTDOWN_REPLY, REFUSED = range(1, 10)
REPORT = 16
BOOTED, STARTED, EXIT = 1, 2, 3
KIND, PROTOCOL, KERNEL, INIT, BOOT_ID, NONCE, PID, CODE, SIGNAL, OOM, ASKED, MESSAGE = range(1, 13)
ERRNO, LOST = 13, 14
SIGTERM, ENOSYS = 15, 38
LINE_BYTES = 4096
FRAME_BYTES = 64 * 1024 + 5
MAGIC = b"torpor hollow device state "
ROLES = ("monitor", "people", "channel")

Field = tuple[int, int | bytes]
Config = dict[str, object]  # as hollow.py packs it


def fields(*pairs: Field) -> bytes:
    """Fields as the real init packs them: key, length, value; a number is eight bytes."""
    out = b""
    for key, value in pairs:
        raw = struct.pack("<q", value) if isinstance(value, int) else value
        out += struct.pack("<BI", key, len(raw)) + raw
    return out


def frame(kind: int, nonce: int, payload: bytes = b"") -> bytes:
    """One frame of the channel or the report pipe."""
    return struct.pack("<IBI", 5 + len(payload), kind, nonce) + payload


class Connection:
    """One accepted socket and what came over it that is not complete."""

    def __init__(self, sock: socket.socket, role: str) -> None:
        self.sock, self.role, self.buffer = sock, role, b""
        sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Write, or lose it: a peer that does not read is not waited for."""
        with contextlib.suppress(OSError):
            self.sock.send(data)


class Loop:
    """What is readable, and who is told."""

    def __init__(self, herd: bool) -> None:
        self.herd = herd
        self.selector = selectors.DefaultSelector()

    def watch(self, sock: socket.socket, tell: Callable[[], None]) -> None:
        """Call ``tell`` whenever ``sock`` is readable."""
        self.selector.register(sock, selectors.EVENT_READ, tell)

    def forget(self, sock: socket.socket) -> None:
        """Never again; nothing where it was not watched."""
        if sock.fileno() in self.selector.get_map():
            self.selector.unregister(sock)

    def run(self) -> None:
        """For ever."""
        while True:
            for key, _ in self.selector.select():
                if key.fd in self.selector.get_map():  # not forgotten a moment ago
                    key.data()


class Vmm:
    """One VMM: its descriptors, its state, its report number."""

    def __init__(self, loop: Loop, config: Config, fds: dict[str, int]) -> None:
        self.loop, self.config, self.fds = loop, config, fds
        self.uid = str(config["uid"])
        self.state, self.ending = "created", "-"
        self.storage_full = self.started = self.asked = self.button = False
        self.sequence = 0
        self.connections: list[Connection] = []
        self.nonce = str(config["nonce"]).encode()
        for name in ("report", "console", "log"):
            os.set_blocking(fds[name], False)
        # Opened as a real one does, so that a missing disk fails here and a busy one is busy.
        for path, mode in json.loads(str(config["disks"])):
            fds[path] = os.open(path, mode)
        image = os.open(str(config["image"]), os.O_RDONLY)
        self.memory = mmap.mmap(image, int(str(config["memory"])), mmap.MAP_PRIVATE)
        os.close(image)
        self.memory[0:1] = b"\1"
        self.listeners = {role: socket.socket(fileno=fds.pop(role)) for role in ROLES}
        for role in ROLES:
            self.offer(role)

    def fault(self, word: str) -> str:
        """The fault that is ordered for ``word`` now, or ""."""
        try:
            with open(str(self.config["faults"])) as file:  # noqa: PTH123 - pathlib costs memory
                lines = file.read(LINE_BYTES).splitlines()
        except OSError:
            return ""
        return dict(line.split("=", 1) for line in lines if "=" in line).get(word, "")

    def offer(self, role: str) -> None:
        """Serve whoever comes next."""
        self.loop.watch(self.listeners[role], lambda: self.accept(role))

    def accept(self, role: str) -> None:
        """Take the next connection, and no other meanwhile: a monitor serves one at a time."""
        sock, _ = self.listeners[role].accept()
        self.loop.forget(self.listeners[role])
        connection = Connection(sock, role)
        self.connections.append(connection)
        self.loop.watch(sock, lambda: self.readable(connection))
        if role == "monitor" and (fault := self.fault("greet")) != "hang":
            connection.send(b"???\n" if fault == "garbage" else b"hollow 1\n")
        if role == "channel":
            self.event("spoke")

    def drop(self, connection: Connection) -> None:
        """Close it, and serve whoever waited."""
        self.loop.forget(connection.sock)
        connection.sock.close()
        self.connections.remove(connection)
        self.offer(connection.role)
        if connection.role == "channel":
            self.event("spoke")

    def readable(self, connection: Connection) -> None:
        """Bytes, or the end."""
        try:
            data = connection.sock.recv(64 * 1024)
        except OSError:
            data = b""
        connection.buffer += data
        if not data or len(connection.buffer) > 4 * FRAME_BYTES:
            self.drop(connection)
        elif connection.role == "channel":
            self.listen(connection)
        else:
            self.read_lines(connection)

    def read_lines(self, connection: Connection) -> None:
        """Every complete line of a monitor."""
        while b"\n" in connection.buffer:
            line, _, connection.buffer = connection.buffer.partition(b"\n")
            text = line.decode(errors="replace")
            if connection.role == "people":
                self.act(text)
                connection.send(b"ok\n")
            else:
                self.command(connection, *text.partition(" ")[::2])

    def command(self, connection: Connection, number: str, words: str) -> None:
        """One line of the monitor, or the fault that is ordered for it."""
        fault = self.fault(words.partition(" ")[0])
        if fault == "garbage":
            connection.send(b"\xff\xfe {]\n")
        elif fault == "close":
            self.drop(connection)
        elif fault == "die":
            self.end()
        elif fault == "refuse":
            connection.send(f"{number} no ordered to refuse\n".encode())
        elif fault != "hang":
            time.sleep(float(fault or 0))
            if answer := self.obey(words):
                connection.send(f"{number} {answer}\n".encode())

    def obey(self, words: str) -> str:
        """Do what a command says; the answer, "" for none."""
        word, _, rest = words.partition(" ")
        if word == "uid":
            return f"ok {self.uid}"
        if word == "state":
            return f"ok {self.state} {self.ending} {int(self.storage_full)}"
        if word == "resume" and self.state in ("created", "paused", "running"):
            self.run()
        elif word == "pause" and self.state in ("running", "paused"):
            self.act("pause")
        elif word == "powerdown":
            self.button = True
            self.press()
        elif word == "save" and self.state == "paused":
            return "ok " + (MAGIC + self.uid.encode()).hex()
        elif word == "load" and self.state == "created" and self.config["incoming"]:
            if not bytes.fromhex(rest).startswith(MAGIC):
                self.end()
                return ""
            self.started = True
            self.become("paused")
        elif word == "kill":
            self.end()
            return ""
        else:
            return f"no {word} in state {self.state}"
        return "ok"

    def run(self) -> None:
        """Boot, or go on."""
        if self.state == "running":
            return
        self.storage_full = False
        self.become("running")
        if not self.started:
            self.boot()
        for connection in list(self.connections):
            if connection.role == "channel":
                self.listen(connection)
        self.press()

    def boot(self) -> None:
        """What the real init says of itself in its first second."""
        self.started = True
        self.print("console", b"hollow: no kernel, no guest\n")
        boot_id = (BOOT_ID, self.uid.encode())
        self.report(BOOTED, (KERNEL, b"hollow"), (INIT, b"hollow"), boot_id)
        if self.fault("workload") != "hang":
            self.report(STARTED, (PID, 2))
            self.print("log", b"hollow: started\n")

    def press(self) -> None:
        """The guest sees a power button that was pressed; it must run for that."""
        if self.button and self.state == "running":
            self.button = False
            self.ask()

    def act(self, words: str) -> None:
        """What happens to a guest by itself, as people and tests order it."""
        word, _, rest = words.partition(" ")
        if word == "exit":
            self.finish(int(rest or 0), 0)
        elif word == "signal":
            self.finish(128 + int(rest), int(rest))
        elif word == "reboot":
            self.stop("reset")
        elif word == "panic":
            self.print("console", b"Kernel panic - not syncing: ordered\r\n")
            self.stop("panicked")
        elif word == "crash":
            os.abort()
        elif word == "storage-full":
            self.storage_full = True
            self.event("storage")
            self.become("paused")
        elif word == "pause" and self.state == "running":
            self.become("paused")
        elif word == "resume":
            self.run()
        elif word == "print":
            self.print("log", rest.encode() + b"\n")

    def ask(self) -> None:
        """The guest was asked to end: its workload does, by SIGTERM, unless ordered not to."""
        self.asked = True
        if self.fault("shutdown") != "hang":
            self.finish(128 + SIGTERM, SIGTERM)

    def finish(self, code: int, signal: int) -> None:
        """The workload has ended: report it and switch off."""
        text = f"killed by signal {signal}" if signal else f"exited {code}"
        how: tuple[Field, ...] = ((CODE, code), (SIGNAL, signal), (OOM, 0))
        self.report(EXIT, (LOST, 0), *how, (ASKED, int(self.asked)), (MESSAGE, text.encode()))
        self.stop("powered-off")

    def stop(self, ending: str) -> None:
        """The guest is over; the VMM stays to be asked why."""
        self.ending = ending
        self.become("shutdown")

    def become(self, state: str) -> None:
        """A new state, told to whoever listens."""
        self.state = state
        self.event("changed")

    def event(self, word: str) -> None:
        """Tell the driver that something happened."""
        self.tell("monitor", f"event {word}\n".encode())

    def report(self, kind: int, *more: Field) -> None:
        """One REPORT, to the pipe and to an open channel."""
        self.sequence += 1
        data = frame(REPORT, self.sequence, fields((KIND, kind), *more))
        self.print("report", data)
        self.tell("channel", data)

    def tell(self, role: str, data: bytes) -> None:
        """Send to whoever is connected there."""
        for connection in self.connections:
            if connection.role == role:
                connection.send(data)

    def print(self, name: str, data: bytes) -> None:
        """Write into a pipe, or lose it when it is full."""
        with contextlib.suppress(OSError):
            os.write(self.fds[name], data)

    def listen(self, connection: Connection) -> None:
        """The guest's side of the channel; a guest that does not run hears nothing."""
        while self.state == "running" and len(connection.buffer) >= 9:
            length, kind, nonce = struct.unpack_from("<IBI", connection.buffer)
            if len(connection.buffer) < 4 + length:
                return
            payload = connection.buffer[9 : 4 + length]
            connection.buffer = connection.buffer[4 + length :]
            self.answer(connection, kind, nonce, payload)

    def answer(self, connection: Connection, kind: int, nonce: int, payload: bytes) -> None:
        """One request of the channel."""
        hello = fields((PROTOCOL, 1), (BOOT_ID, self.uid.encode()), (NONCE, self.nonce))
        info = fields((KERNEL, b"hollow"), (INIT, b"hollow"), (ASKED, int(self.asked)), (LOST, 0))
        replies = {
            HELLO: (HELLO_REPLY, hello),
            INFO: (INFO_REPLY, hello + info + fields((PID, 2))),
            PING: (PONG, payload),
            SHUTDOWN: (SHUTDOWN_REPLY, b""),
        }
        reply, body = replies.get(kind, (REFUSED, fields((ERRNO, ENOSYS))))
        connection.send(frame(reply, nonce, body))
        if kind == SHUTDOWN:
            self.ask()

    def end(self) -> None:
        """The death of this VMM: the process's own, or, in a herd, all that it holds."""
        if not self.loop.herd:
            os._exit(9)
        self.memory.close()
        for fd in self.fds.values():  # the lock first: who sees the sockets close may rely on it
            os.close(fd)
        for sock in [*self.listeners.values(), *(c.sock for c in self.connections)]:
            self.loop.forget(sock)
            sock.close()
        self.connections.clear()


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
