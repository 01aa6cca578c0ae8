"""One hollow VMM, in its process: monitors, states, and a guest that talks as the real init does.

A part of the program of ``hollow_process``. A VMM is what its driver sees: a monitor that speaks
lines ("NUMBER WORD" in, "NUMBER ok|no TEXT" out, "event WORD" unasked), a channel and a report pipe
with the frames of the real init, a run lock that is held while the descriptor is open. A second
monitor is for people and tests, without numbers ("exit 3", "signal 9", "reboot", "panic", "crash",
"storage-full", "pause", "resume", "print TEXT", "fill MIB"; "count" and "gaps" answer "ok N",
"identity" a line of JSON).

Device state is all that the process knows of its guest, and how far that had counted: RAM of
another moment, or none, is a guest that hangs from then on.

Orders: the file named by ``faults`` (read at each command, absent = none) has lines "WORD=FAULT".
WORD is a command of the monitor, or greet, start, workload, shutdown, hello, repair (all three
frames), wake (the guest after ``load``); FAULT is hang, refuse, garbage, die, close or a number (a
delay in seconds); "save=unknown": has unknown memory. "tick=on", read at each resume: the guest
counts every 50 ms, not only at a resume, and keeps its journal. What does not live here: anything
that a real VMM would decide, and what is in the guest's RAM (``hollow_guest``).
"""

import contextlib
import json
import mmap
import os
import socket
import struct
import time

from controller.vmm.hollow_guest import Guest, packed, unpacked_state
from controller.vmm.hollow_wire import Connection, Field, Loop, fields, frame, unpacked

HELLO, HELLO_REPLY, INFO, INFO_REPLY, PING, PONG, SHUTDOWN, SHUTDOWN_REPLY, REFUSED = range(1, 10)
REPORT, TIME, RESEED, IDENTITY = 16, 32, 34, 36
BOOTED, STARTED, EXIT = 1, 2, 3
KIND, PROTOCOL, KERNEL, INIT, BOOT_ID, NONCE, PID, CODE, SIGNAL, OOM, ASKED, MESSAGE = range(1, 13)
ERRNO, LOST, TOKEN = 13, 14, 50
SIGTERM, EPERM, ENOSYS = 15, 1, 38
LINE_BYTES = 4096
FRAME_BYTES = 64 * 1024 + 5
ROLES = ("monitor", "people", "channel")

Config = dict[str, object]  # as hollow.py packs it


class Vmm:
    """One VMM: its descriptors, its state, its report number."""

    def __init__(self, loop: Loop, config: Config, fds: dict[str, int]) -> None:
        self.loop, self.config, self.fds = loop, config, fds
        self.uid = str(config["uid"])
        self.state, self.ending = "created", "-"
        self.storage_full = self.started = self.works = self.asked = self.button = False
        self.hangs = self.loaded = False
        self.expected: object = 0  # how far the guest had counted in the device state
        self.sequence = 0
        self.connections: list[Connection] = []
        for name in ("report", "console", "log"):
            os.set_blocking(fds[name], False)
        # Opened as a real one does, so that a missing disk fails here and a busy one is busy.
        writable = []
        for path, mode in json.loads(str(config["disks"])):
            fds[path] = os.open(path, mode)
            writable += [fds[path]] if mode == os.O_RDWR else []
        image = os.open(str(config["image"]), os.O_RDONLY)
        self.memory = mmap.mmap(image, int(str(config["memory"])), mmap.MAP_PRIVATE)
        os.close(image)
        loop.mapped.append(str(config["image"]))
        self.guest = Guest(self.memory, writable[0] if writable else -1)
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
                connection.send(self.act(text).encode() + b"\n")
            else:
                self.command(connection, *text.partition(" ")[::2])

    def command(self, connection: Connection, number: str, words: str) -> None:
        """One line of the monitor, or the fault that is ordered for it."""
        word = words.partition(" ")[0]
        fault = self.fault(word)
        if fault == "garbage":
            connection.send(b"\xff\xfe {]\n")
        elif fault == "close":
            self.drop(connection)
        elif fault == "die":
            self.end()
        elif fault == "refuse" and word == "load":
            self.refuse(connection, number, "ordered to refuse")
        elif fault in ("refuse", "unknown"):
            verdict = {"refuse": "failed" if word == "save" else "no"}.get(fault, fault)
            connection.send(f"{number} {verdict} ordered to refuse\n".encode())
        elif fault != "hang":
            time.sleep(float(fault or 0))
            answer = self.obey(words)
            if answer.startswith("refused "):
                self.refuse(connection, number, answer[8:])
            elif answer:
                connection.send(f"{number} {answer}\n".encode())

    def refuse(self, connection: Connection, number: str, why: str) -> None:
        """Refuse the device state and end, as a VMM does that cannot be what it was."""
        connection.send(f"{number} refused {why}\n".encode())
        self.end()

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
            if self.loop.mapped.count(str(self.config["image"])) > 1:
                return "unknown another VMM of this process maps the same image"
            return "ok " + self.device_state().hex()
        elif word == "load" and self.state == "created" and self.config["incoming"]:
            if refused := self.take_over(bytes.fromhex(rest)):
                return f"refused {refused}"
            self.become("paused")
        elif word == "kill":
            self.end()
            return ""
        else:
            return f"no {word} in state {self.state}"
        return "ok"

    def device_state(self) -> bytes:
        """What ``load`` needs to go on."""
        known = {name: getattr(self, name) for name in ("started", "works", "asked", "button")}
        more = {"sequence": self.sequence, "count": self.guest.count, "loaded": True}
        return packed({**known, **more, "devices": self.config["devices"]})

    def take_over(self, data: bytes) -> str:
        """Be what the device state says; else why not."""
        known = unpacked_state(data)
        if not known:
            return "it is damaged, or no device state"
        if known.pop("devices") != self.config["devices"]:
            return "it is of other devices"
        self.expected = known.pop("count")
        for name, value in known.items():
            setattr(self, name, value)
        return ""

    def run(self) -> None:
        """Boot, or go on."""
        if self.state == "running":
            return
        self.storage_full = False
        self.become("running")
        if not self.started:
            self.guest.boot(self.config["told"])  # type: ignore[arg-type]
        if self.loaded:
            self.wake()
        if not self.hangs:
            self.go_on()

    def wake(self) -> None:
        """Find the RAM that belongs to the device state, or hang."""
        self.loaded = False
        fits = self.guest.lives and self.guest.count == self.expected
        self.hangs = not fits or self.fault("wake") == "hang"
        if not fits:
            self.print("vmm", b"hollow: RAM and device state are of two moments\n")

    def go_on(self) -> None:
        """A guest that runs: time passes, and it hears what it was told meanwhile."""
        ticking = self.fault("tick") == "on"
        self.guest.tick(journal=ticking)
        if ticking:
            self.loop.ticking.add(self.guest.ticked)
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
        self.works = self.fault("workload") != "hang"
        self.introduce()
        if self.works:
            self.print("log", b"hollow: started\n")

    def introduce(self) -> None:
        """Report all that there is to say so far."""
        boot_id = (BOOT_ID, self.guest.identity["boot_id"].encode())
        self.report(BOOTED, (KERNEL, b"hollow"), (INIT, b"hollow"), boot_id)
        if self.works:
            self.report(STARTED, (PID, 2))

    def press(self) -> None:
        """The guest sees a power button that was pressed; it must run for that."""
        if self.button and self.state == "running" and not self.hangs:
            self.button = False
            self.ask()

    def act(self, words: str) -> str:
        """What happens to a guest by itself, as people and tests order it; an answer."""
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
        elif word == "fill":
            return f"ok {self.guest.fill(int(rest))}" if self.state == "running" else "no"
        elif word in ("count", "gaps"):
            return f"ok {getattr(self.guest, word)}"
        elif word == "identity":
            return json.dumps(self.guest.identity)
        return "ok"

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
        self.loop.ticking.discard(self.guest.ticked)
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
        while self.state == "running" and not self.hangs and len(connection.buffer) >= 9:
            length, kind, nonce = struct.unpack_from("<IBI", connection.buffer)
            if len(connection.buffer) < 4 + length:
                return
            payload = connection.buffer[9 : 4 + length]
            connection.buffer = connection.buffer[4 + length :]
            self.answer(connection, kind, nonce, payload)

    def answer(self, connection: Connection, kind: int, nonce: int, payload: bytes) -> None:
        """One request of the channel."""
        if kind in (TIME, RESEED, IDENTITY):
            self.repair(connection, kind, nonce, payload)
            return
        known = self.guest.identity
        boot_id, name = (known[key].encode() for key in ("boot_id", "nonce"))
        hello = fields((PROTOCOL, 1), (BOOT_ID, boot_id), (NONCE, name))
        info = fields((KERNEL, b"hollow"), (INIT, b"hollow"), (ASKED, int(self.asked)), (LOST, 0))
        replies = {
            HELLO: (HELLO_REPLY, hello),
            INFO: (INFO_REPLY, hello + info + fields((PID, 2))),
            PING: (PONG, payload),
            SHUTDOWN: (SHUTDOWN_REPLY, b""),
        }
        reply, body = replies.get(kind, (REFUSED, fields((ERRNO, ENOSYS))))
        if kind != HELLO or self.fault("hello") != "hang":
            connection.send(frame(reply, nonce, body))
        if kind == SHUTDOWN:
            self.ask()

    def repair(self, connection: Connection, kind: int, nonce: int, payload: bytes) -> None:
        """A new time, randomness or identity. A guest with a new nonce says all again."""
        fault, before = self.fault("repair"), self.guest.identity["nonce"]
        if fault == "hang":
            return
        errno = EPERM if fault == "refuse" else self.guest.repair(kind, payload)
        body = (ERRNO, errno) if errno else (TOKEN, unpacked(payload)[TOKEN])
        connection.send(frame(REFUSED if errno else kind + 1, nonce, fields(body)))
        if self.guest.identity["nonce"] != before:
            self.introduce()

    def end(self) -> None:
        """The death of this VMM: the process's own, or, in a herd, all that it holds."""
        if not self.loop.herd:
            os._exit(9)
        self.loop.ticking.discard(self.guest.ticked)
        self.loop.mapped.remove(str(self.config["image"]))
        self.memory.close()
        for fd in self.fds.values():  # the lock first: who sees the sockets close may rely on it
            os.close(fd)
        for sock in [*self.listeners.values(), *(c.sock for c in self.connections)]:
            self.loop.forget(sock)
            sock.close()
        self.connections.clear()
