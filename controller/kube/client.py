"""The client: generic verbs on raw dicts, for any kind.

Deadlines, retries and errors are ``transport``'s. What does not live here: caching (``reflector``),
or any knowledge of what a kind means.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from controller.kube.credentials import Credentials
from controller.kube.errors import Expired, NotFound, Unavailable
from controller.kube.resources import (
    EVENTS,
    INSTANCES,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    Object,
    Objects,
    Resource,
)
from controller.kube.transport import JSON, Call, Patience, Transport

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

PAGE = 500  # objects per page of a list
GRACE = 30  # seconds a watch may outlive the end it asked for


class Client:
    """One API server as one identity. Make it by ``connect``, end it by ``close``."""

    def __init__(
        self, credentials: Credentials, *, user_agent: str, patience: Patience | None = None
    ) -> None:
        self._transport = Transport(
            credentials, user_agent=user_agent, patience=patience or Patience()
        )

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None, *, user_agent: str, patience: Patience | None = None
    ) -> "Client":
        """Read a kubeconfig, or the Pod's service account where None. Sends nothing yet.

        Raises Unreachable where there is nothing usable to read.
        """
        credentials = Credentials(kubeconfig)
        await credentials.load()
        return cls(credentials, user_agent=user_agent, patience=patience)

    async def close(self) -> None:
        await self._transport.close()

    async def get(self, res: Resource, name: str, namespace: str | None = None) -> Object | None:
        """The object, read with quorum; None only if the server says that *it* does not exist."""
        try:
            return _object(await self._transport.request(Call("get", res.plural, "GET",
                                                  res.path(namespace, name), {})))  # fmt: skip
        except NotFound as error:
            if error.is_object:
                return None
            raise

    async def list(
        self,
        res: Resource,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
    ) -> tuple[Objects, str]:
        """All objects of one consistent, fresh snapshot, and its resourceVersion.

        Complete or an error: never a part, and never empty because something failed.
        """
        params = _selectors(field_selector, label_selector)
        try:
            return await self._pages(res, namespace, {**params, "limit": str(PAGE)})
        except Expired:  # the snapshot was compacted between two pages: take it in one
            return await self._pages(res, namespace, params)

    async def create(self, res: Resource, body: Object, namespace: str | None = None) -> Object:
        """The object as stored. Raises AlreadyExists; after Timeout it may exist or not."""
        path = res.path(namespace)
        body = {"apiVersion": res.api_version, "kind": res.kind, **body}
        call = Call("create", res.plural, "POST", path, {}, body, idempotent=False)
        return _object(await self._transport.request(call))

    async def patch(
        self,
        res: Resource,
        name: str,
        body: Any,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        content_type: str = MERGE_PATCH,
        params: Mapping[str, str] | None = None,
    ) -> Object:
        """The object after a patch. With ``metadata.resourceVersion`` in it: Conflict if stale."""
        path = res.path(namespace, name, subresource)
        call = Call(
            "patch", res.plural, "PATCH", path, params or {}, body, content_type,
            idempotent=content_type != JSON_PATCH,
        )  # fmt: skip
        return _object(await self._transport.request(call))

    async def delete(
        self,
        res: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace: int | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str | None = None,
    ) -> bool:
        """Ask for deletion. False if it is gone already; Conflict if a precondition fails.

        ``grace`` in seconds; ``propagation`` Foreground, Background or Orphan.
        """
        body = _delete_options(grace, uid, resource_version, propagation)
        path = res.path(namespace, name)
        # Without a UID a repeated delete could hit a successor of the same name.
        call = Call("delete", res.plural, "DELETE", path, {}, body, idempotent=uid is not None)
        try:
            await self._transport.request(call)
        except NotFound as error:
            if error.is_object:
                return False
            raise
        return True

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> Any:
        """Any other request (tokens, /version, /readyz): JSON as parsed, text as str."""
        idempotent = method == "GET"
        return await self._transport.request(
            Call("call", "other", method, path, params or {}, body, content_type, idempotent)
        )

    @asynccontextmanager
    async def watch(
        self,
        res: Resource,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
        *,
        resource_version: str,
        timeout_seconds: int = 300,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A raw watch response with bookmarks: one JSON event a line. One attempt, no retry."""
        params = _selectors(field_selector, label_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        call = Call("watch", res.plural, "GET", res.path(namespace), params)
        response = await self._transport.stream(call, timeout_seconds + GRACE)
        try:
            yield response
        finally:
            response.close()

    async def _pages(
        self, res: Resource, namespace: str | None, params: dict[str, str]
    ) -> tuple[Objects, str]:
        items: Objects = []
        while True:
            page = await self._transport.request(
                Call("list", res.plural, "GET", res.path(namespace), params)
            )
            found, meta = _page(res, page)
            for item in found:
                # Lists of built-in kinds leave these out of their items.
                item.setdefault("apiVersion", res.api_version)
                item.setdefault("kind", res.kind)
            items += found
            if not meta.get("continue"):
                return items, meta["resourceVersion"]
            params = {**params, "continue": meta["continue"]}


def _selectors(field_selector: str | None, label_selector: str | None) -> dict[str, str]:
    given = {"fieldSelector": field_selector, "labelSelector": label_selector}
    return {key: value for key, value in given.items() if value}


def _delete_options(
    grace: int | None, uid: str | None, resource_version: str | None, propagation: str | None
) -> Object:
    given = {"uid": uid, "resourceVersion": resource_version}
    preconditions = {key: value for key, value in given.items() if value is not None}
    options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    if preconditions:
        options["preconditions"] = preconditions
    if propagation is not None:
        options["propagationPolicy"] = propagation
    return options


def _object(answer: Any) -> Object:
    if not isinstance(answer, dict):
        raise Unavailable(f"the API server answered with {type(answer).__name__}, not an object")
    return answer


def _page(res: Resource, page: Any) -> tuple[Objects, Object]:
    """Items and metadata of one page. A 200 that is no list must not read as an empty one."""
    if isinstance(page, dict) and str(page.get("kind", "")).endswith("List"):
        meta, items = page.get("metadata"), page.get("items", False)
        if items is None:  # how Go writes a nil slice
            items = []
        if isinstance(items, list) and isinstance(meta, dict) and meta.get("resourceVersion"):
            return items, meta
    raise Unavailable(f"list {res.plural}: the answer is no {res.kind}List")


__all__ = [
    "Client", "Patience", "Resource", "Object", "Objects",
    "INSTANCES", "PODS", "NODES", "LEASES", "EVENTS", "NAMESPACES",
    "JSON_PATCH", "MERGE_PATCH", "APPLY_PATCH",
]  # fmt: skip
