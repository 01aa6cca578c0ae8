"""FakeApiServer: enough of an API server's protocol, in this process, to inject faults into it.

It stores objects, counts resourceVersions, pages lists, streams watches with bookmarks, refuses
stale writes, keeps what has finalizers until they are gone. It proves nothing about schemas, CEL,
selectors beyond equality, or admission: those belong to a real kube-apiserver.

Faults: ``fail`` (answers, lost answers, none at all), ``compact`` (410), ``cut`` / ``mute``
(watches), ``say`` (raw bytes into open watches), ``stop`` / ``start`` (connection refused).
"""

import asyncio
import copy
import json
import uuid
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Object = dict[str, Any]

WITH_STATUS = ("instances", "pods", "nodes")  # kinds with a status subresource


@dataclass
class Fault:
    """An answer instead of the real one, for the next ``times`` requests that match."""

    status: int
    method: str | None = None
    path: str = ""  # a part of the path
    watch: bool | None = None  # None: watches and others
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    act: bool = False  # do it, then lose the answer
    hold: bool = False  # never answer


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    at: float

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == "true"


class Watcher:
    def __init__(self, kind: str, matches: Callable[[Object], bool]) -> None:
        self.kind = kind
        self.matches = matches
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.muted = False

    def send(self, data: bytes) -> None:
        if not self.muted:
            self.queue.put_nowait(data)


class FakeApiServer:
    """Use ``async with fake_apiserver() as server``; ``server.kubeconfig(path)`` to connect."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}  # plural -> (ns, name)
        self.version = 100
        self.compacted = 0
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.watchers: list[Watcher] = []
        self.token: str | None = None  # if set, every request must bear it
        self.no_expired_status = False  # True: 410 comes as an ERROR event, not as a status
        self._log: list[tuple[int, str, str, Object]] = []  # version, plural, type, object
        self._runner: web.AppRunner | None = None
        self._port = 0

    # -- running ---------------------------------------------------------------------------

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """No answer at all, as a server that is down: open watches break, connects are refused."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def kubeconfig(self, path: Path, user: Object | None = None) -> Path:
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "me", "user": user or {}}],
                }
            )
        )
        return path

    # -- what a test does to it -------------------------------------------------------------

    def put(self, plural: str, obj: Object) -> Object:
        """Create or replace as somebody else would; watchers hear of it."""
        metadata = obj.setdefault("metadata", {})
        key = (metadata.get("namespace") or "", metadata["name"])
        table = self.objects.setdefault(plural, {})
        old = table.get(key)
        obj = copy.deepcopy(obj)
        obj["metadata"].setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
        self._stamp(obj)
        table[key] = obj
        self._tell(plural, "MODIFIED" if old else "ADDED", obj)
        return copy.deepcopy(obj)

    def remove(
        self, plural: str, name: str, namespace: str = "", *, silently: bool = False
    ) -> None:
        """Delete; ``silently``: no watcher is told, as if the event had been compacted away."""
        obj = self.objects[plural].pop((namespace, name))
        self._stamp(obj)
        if not silently:
            self._tell(plural, "DELETED", obj)

    def get(self, plural: str, name: str, namespace: str = "") -> Object:
        return copy.deepcopy(self.objects[plural][(namespace, name)])

    def fail(self, status: int, **how: Any) -> Fault:
        fault = Fault(status, **how)
        self.faults.append(fault)
        return fault

    def compact(self) -> None:
        """Forget history: a watch from before now gets 410."""
        self.compacted = self.version
        self._log.clear()

    def cut(self) -> None:
        """End every open watch cleanly, as a server does when timeoutSeconds passed."""
        for watcher in self.watchers:
            watcher.queue.put_nowait(None)

    def mute(self) -> None:
        """Open watches stay open and say nothing more: the silent death of a stream."""
        for watcher in self.watchers:
            watcher.muted = True

    def say(self, data: bytes) -> None:
        """Raw bytes into every open watch: half lines, garbage, ERROR events."""
        for watcher in self.watchers:
            watcher.send(data)

    def bookmark(self) -> None:
        self.version += 1
        event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        self.say(json.dumps(event).encode() + b"\n")

    def count(self, method: str, *, watch: bool = False) -> int:
        return sum(1 for seen in self.requests if seen.method == method and seen.is_watch == watch)

    # -- the protocol -----------------------------------------------------------------------

    def _stamp(self, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)

    def _tell(self, plural: str, event: str, obj: Object) -> None:
        obj = copy.deepcopy(obj)
        self._log.append((self.version, plural, event, obj))
        for watcher in self.watchers:
            if watcher.kind == plural and watcher.matches(obj):
                watcher.send(_line(event, obj))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        at = asyncio.get_running_loop().time()
        seen = Seen(
            request.method, request.path, dict(request.query), body, dict(request.headers), at
        )
        self.requests.append(seen)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized", "Unauthorized")
        fault = self._take_fault(seen)
        if fault is None:
            return await self._answer(request, seen)
        if fault.act:
            await self._answer(request, seen)
        if fault.hold:
            await asyncio.Event().wait()
        if fault.status == 0:  # hang up in the middle
            assert request.transport is not None
            request.transport.abort()
        return _status(fault.status, "Fault", "injected", fault.headers, fault.body)

    def _take_fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if (
                fault.times > 0
                and fault.method in (None, seen.method)
                and fault.path in seen.path
                and fault.watch in (None, seen.is_watch)
            ):
                fault.times -= 1
                return fault
        return None

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        plural, namespace, name, subresource = _parse(seen.path)
        if seen.method == "GET" and seen.is_watch:
            return await self._watch(request, plural, namespace, seen.query)
        if seen.method == "GET" and name is None:
            return self._list(plural, namespace, seen.query)
        if seen.method == "POST":
            return self._create(plural, namespace, seen.body)
        obj = self.objects.get(plural, {}).get((namespace, name or ""))
        if obj is None:
            return _not_found(plural, name or "")
        if seen.method == "PATCH":
            return self._patch(plural, obj, seen.body, subresource)
        if seen.method == "DELETE":
            return self._delete(plural, obj, seen.body or {})
        return web.json_response(obj)

    def _list(self, plural: str, namespace: str, query: dict[str, str]) -> web.Response:
        matches = _matcher(namespace, query)
        found = [obj for _, obj in sorted(self.objects.get(plural, {}).items()) if matches(obj)]
        limit, start = int(query.get("limit", "0")), 0
        version = str(self.version)
        if token := query.get("continue"):
            version, _, offset = token.partition("/")
            if int(version) < self.compacted:
                return _status(410, "Expired", "the provided continue parameter is too old")
            start = int(offset)
        page = found[start : start + limit] if limit else found[start:]
        more = start + len(page) < len(found)
        meta = {"resourceVersion": version}
        if more:
            meta["continue"] = f"{version}/{start + len(page)}"
        return web.json_response({"kind": "FakeList", "metadata": meta, "items": page})

    def _create(self, plural: str, namespace: str, body: Object) -> web.Response:
        name = body["metadata"]["name"]
        if (namespace, name) in self.objects.get(plural, {}):
            return _status(409, "AlreadyExists", f'{plural} "{name}" already exists')
        body = _permitted(plural, body, None)
        body["metadata"].pop("uid", None)
        if namespace:
            body["metadata"]["namespace"] = namespace
        return web.json_response(self.put(plural, body), status=201)

    def _patch(self, plural: str, obj: Object, body: Any, sub: str | None) -> web.Response:
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected not in (None, obj["metadata"]["resourceVersion"]):
            return _status(409, "Conflict", "the object has been modified")
        new = copy.deepcopy(obj)
        _merge(new, _permitted(plural, body, sub))
        metadata = new["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.remove(plural, metadata["name"], metadata.get("namespace") or "")
            return web.json_response(new)
        if new == obj:
            return web.json_response(obj)  # as the real one: no write, no new version
        if new.get("spec") != obj.get("spec") and "generation" in metadata:
            metadata["generation"] += 1
        return web.json_response(self.put(plural, new))

    def _delete(self, plural: str, obj: Object, options: Object) -> web.Response:
        metadata = obj["metadata"]
        for key, value in (options.get("preconditions") or {}).items():
            if metadata[key] != value:
                return _status(409, "Conflict", f"the {key} in the precondition does not match")
        if metadata.get("finalizers"):
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            return web.json_response(self.put(plural, obj))
        self.remove(plural, metadata["name"], metadata.get("namespace") or "")
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _watch(
        self, request: web.Request, plural: str, namespace: str, query: dict[str, str]
    ) -> web.StreamResponse:
        since = int(query["resourceVersion"])
        expired = since < self.compacted
        if expired and not self.no_expired_status:
            return _status(410, "Expired", "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        watcher = Watcher(plural, _matcher(namespace, query))
        if expired:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            watcher.send(_line("ERROR", status))
            watcher.queue.put_nowait(None)
        for version, kind, event, obj in self._log:
            if version > since and kind == plural and watcher.matches(obj):
                watcher.send(_line(event, obj))
        self.watchers.append(watcher)
        try:
            while (data := await watcher.queue.get()) is not None:
                await response.write(data)
        except ConnectionError:
            pass
        finally:
            self.watchers.remove(watcher)
        return response


@asynccontextmanager
async def fake_apiserver() -> Any:
    """A running FakeApiServer, stopped at the end."""
    server = FakeApiServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def _line(event: str, obj: Object) -> bytes:
    return json.dumps({"type": event, "object": obj}).encode() + b"\n"


def _parse(path: str) -> tuple[str, str, str | None, str | None]:
    """(plural, namespace or "", name, subresource) of a path."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    padded = [*rest, None, None]
    return rest[0], namespace, padded[1], padded[2]


def _matcher(namespace: str, query: dict[str, str]) -> Callable[[Object], bool]:
    fields = _pairs(query.get("fieldSelector", ""))
    labels = _pairs(query.get("labelSelector", ""))

    def matches(obj: Object) -> bool:
        metadata = obj["metadata"]
        if namespace and metadata.get("namespace") != namespace:
            return False
        given = metadata.get("labels") or {}
        if any(key not in given or value not in ("", given[key]) for key, value in labels):
            return False  # a key alone asks that it is there
        return all(_field(obj, key) == value for key, value in fields)

    return matches


def _pairs(selector: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in selector.split(",") if part)
    return [(key, value.lstrip("=")) for key, _, value in pairs]


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _merge(target: Object, patch: Object) -> None:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, dict):
            target[key] = {}
            _merge(target[key], value)
        else:
            target[key] = value


def _permitted(plural: str, body: Object, subresource: str | None) -> Object:
    """What a patch may touch: status only through its subresource, and there nothing else."""
    if subresource == "status":
        return {"status": body.get("status", {})}
    if plural in WITH_STATUS:
        return {key: value for key, value in body.items() if key != "status"}
    return body


def _status(
    code: int,
    reason: str,
    message: str,
    headers: dict[str, str] | None = None,
    body: Any = None,
    details: Object | None = None,
) -> web.Response:
    status = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message, "details": details or {},
    }  # fmt: skip
    return web.json_response(body or status, status=code or 500, headers=headers)


def _not_found(plural: str, name: str) -> web.Response:
    message = f'{plural} "{name}" not found'
    return _status(404, "NotFound", message, details={"name": name, "kind": plural})
