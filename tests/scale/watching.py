"""A watch of one namespace's Instances, as any client has it: each version with its time."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from controller.local.admin import Admin

Object = dict[str, Any]


class Watch:
    """Use as a context manager. ``history``: (monotonic time, object or None: deleted) by name."""

    def __init__(self, admin: Admin, namespace: str) -> None:
        self._admin = admin
        self._collection = f"/apis/torpor.dev/v1alpha1/namespaces/{namespace}/instances"
        self._since: str = admin.get(self._collection)["metadata"]["resourceVersion"]
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._connection = self._connect()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.history: dict[str, list[tuple[float, Object | None]]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def wait(
        self, name: str, holds: Callable[[Object | None], object], *, after: float, seconds: float
    ) -> float:
        """When, not before ``after``, a version of ``name`` came for which ``holds``.

        Raises AssertionError with the last version after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                seen = self.history.get(name, [])
                for at, obj in seen:
                    if at >= after and holds(obj):
                        return at
                left = deadline - time.monotonic()
                assert left > 0, f"{name} after {seconds} s: {seen[-1] if seen else 'never seen'}"
                self._changed.wait(left)

    def versions(self, name: str, after: float) -> list[Object]:
        """What ``name`` was since ``after``, a version for each write."""
        with self._changed:
            return [
                obj for at, obj in self.history.get(name, ()) if at >= after and obj is not None
            ]

    def _follow(self) -> None:
        """Read on from where the last stream ended: a server ends them when it likes."""
        while not self._ended.is_set():
            with suppress(OSError, ValueError, http.client.HTTPException):
                self._read()
            self._connection.close()
            self._connection = self._connect()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self._admin.port, context=self._admin.context
        )

    def _read(self) -> None:
        query = f"watch=true&resourceVersion={self._since}&timeoutSeconds=3600"
        self._connection.request("GET", f"{self._collection}?{query}")
        for line in self._connection.getresponse():
            now, event = time.monotonic(), json.loads(line)
            obj = event["object"]
            self._since = obj["metadata"]["resourceVersion"]
            gone = event["type"] == "DELETED"
            with self._changed:
                versions = self.history.setdefault(obj["metadata"]["name"], [])
                versions.append((now, None if gone else obj))
                self._changed.notify_all()


def ready(reason: str) -> Callable[[Object | None], bool]:
    """Whether an object says Ready=True with ``reason``, for the spec it has now."""

    def holds(obj: Object | None) -> bool:
        found = _ready(obj)
        return (
            obj is not None
            and found.get("status") == "True"
            and found.get("reason") == reason
            and found.get("observedGeneration") == obj["metadata"]["generation"]
        )

    return holds


def failed(obj: Object | None) -> bool:
    """Whether an object says that its run ended by itself."""
    return (
        _ready(obj).get("reason") in ("Completed", "Failed")
        and obj is not None
        and obj["status"].get("state") == "Stopped"
    )


def gone(obj: Object | None) -> bool:
    """Whether the object is deleted."""
    return obj is None


def _ready(obj: Object | None) -> Object:
    conditions = ((obj or {}).get("status") or {}).get("conditions") or ()
    return next((found for found in conditions if found["type"] == "Ready"), {})
