"""The agent's own Unix socket (0600): what the command line asks of this node.

========================= ====================================================================
GET  /logs                 ?uid= &source=workload|console|vmm &tail=N &follow=1: raw bytes
POST /drain                {"guests": "stop"}: stop every guest, specs untouched; answers when done
GET  /instances            what this agent knows, for people
GET  /healthz              200 when the loop turns
========================= ====================================================================

The caller is root on this node or it could not connect. What does not live here: anything that
changes one Instance; that is asked for in its spec.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.core.observed import Unknown
from controller.errors import Rejected, TorporError
from controller.host import logread
from controller.node import snapshots
from controller.node.parts import Parts
from controller.node.record import Record
from controller.node.worker import Worker

DRAIN_LOOK_SECONDS = 0.1
MAX_TAIL = 1_000_000


@dataclass
class Endpoint:
    """Serves the socket from ``start`` to ``close``."""

    parts: Parts
    worker: Worker
    _runner: web.AppRunner | None = field(default=None)

    async def start(self) -> None:
        """Listen on the socket; an old one is replaced."""
        app = web.Application(middlewares=[_errors])
        app.add_routes(
            [
                web.get("/logs", self.logs),
                web.post("/drain", self.drain),
                web.get("/instances", self.instances),
                web.get("/verify", self.verify),
                web.get("/healthz", _healthz),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        path = self.parts.places.socket
        path.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(path)).start()
        path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening; requests under way are cut off after a second."""
        if self._runner is not None:
            await self._runner.cleanup()
        self.parts.places.socket.unlink(missing_ok=True)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The bytes of one stream, as they lie on disk; the reader makes them harmless."""
        record = self._record(request.query.get("uid", ""))
        place, name = self._stream(record, request.query.get("source", "workload"))
        tail = _number(request.query.get("tail", str(MAX_TAIL)))
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        await response.prepare(request)
        if request.query.get("follow"):
            with contextlib.suppress(ConnectionResetError):
                async for chunk in logread.follow(place, name, tail):
                    await response.write(chunk)
        else:
            await response.write(await asyncio.to_thread(logread.tail, place, name, tail))
        await response.write_eof()
        return response

    async def drain(self, request: web.Request) -> web.Response:
        """Stop every guest of this node gracefully and answer when none is left."""
        self.parts.memory.draining = True
        while living := [r.uid for r in self.parts.records.known() if r.open is not None]:
            for uid in living:
                self.worker.intake.news(uid)
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        return web.json_response({"stopped": True})

    async def instances(self, request: web.Request) -> web.Response:
        """Every record, as far as it can be read."""
        found = [
            {"uid": uid, "unreadable": record.why}
            if isinstance(record, Unknown)
            else record.model_dump(mode="json", exclude={"workload"})
            for uid, record in self.parts.records.items()
        ]
        return web.json_response(found)

    async def verify(self, request: web.Request) -> web.Response:
        """Read the whole snapshot of one Instance: {"problems": [text], "files": [{…}]}."""
        record = self._record(request.query.get("uid", ""))
        return web.json_response(await snapshots.verify(self.parts, record))

    def _record(self, uid: str) -> Record:
        record = self.parts.records.get(uid)
        if not isinstance(record, Record):
            raise Rejected(f"this node has nothing of an Instance with UID {uid}", reason="NotHere")
        return record

    def _stream(self, record: Record, source: str) -> tuple[Path, str]:
        if source == "console":
            return self.parts.places.run_logs(record), "console"
        if source in ("workload", "vmm"):
            return self.parts.places.logs(record.uid), source
        raise Rejected(f"no log source {source[:32]!r}: use workload, console or vmm")


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TorporError as err:
        return web.json_response({"reason": err.reason, "message": str(err)}, status=400)


def _number(text: str) -> int:
    if text.isdigit() and int(text) <= MAX_TAIL:
        return int(text)
    raise Rejected(f"tail must be a number of lines up to {MAX_TAIL}, not {text[:32]!r}")
