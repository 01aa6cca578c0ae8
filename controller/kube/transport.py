"""Sends one request: credentials, deadlines, errors, and the repeats that are harmless.

A call is repeated only where the server certainly did not act (no connection, 429), or where it is
idempotent and the failure transient (5xx, a broken connection). What does not live here: paths,
kinds, verbs (``client``).
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import stamina

from controller import metrics
from controller.kube.credentials import Credentials
from controller.kube.errors import (
    Disconnected,
    Timeout,
    Unauthorized,
    Unavailable,
    from_response,
    one_line,
)

JSON = "application/json"

log = logging.getLogger(__name__)

# Its own hooks log a line that names neither the call nor the cause.
stamina.instrumentation.set_on_retry_hooks(())


@dataclass(frozen=True)
class Patience:
    """How long one call may take, in seconds, and how often it may be tried."""

    attempt: float = 30.0
    connect: float = 5.0
    total: float = 60.0
    attempts: int = 4
    wait_initial: float = 0.2
    wait_max: float = 5.0


@dataclass(frozen=True)
class Call:
    verb: str  # bounded: it labels metrics
    kind: str
    method: str
    path: str
    params: Mapping[str, str]
    body: Any = None
    content_type: str = JSON
    idempotent: bool = True

    @property
    def what(self) -> str:
        return f"{self.verb} {self.path}"

    def url(self, host: str) -> str:
        query = f"?{urlencode(self.params)}" if self.params else ""
        return host + quote(self.path) + query


class Transport:
    """One API server as one identity."""

    def __init__(self, credentials: Credentials, *, user_agent: str, patience: Patience) -> None:
        self._credentials = credentials
        self._user_agent = user_agent
        self._patience = patience
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self._credentials.close()

    async def request(self, call: Call) -> Any:
        """The answer to ``call``: JSON as parsed, anything else as text. Raises ``errors``."""
        patience = self._patience
        async for attempt in stamina.retry_context(
            on=partial(_worth_repeating, call),
            attempts=patience.attempts,
            timeout=patience.total,
            wait_initial=patience.wait_initial,
            wait_max=patience.wait_max,
            wait_jitter=patience.wait_initial,
        ):
            with attempt:
                return await self._once(call)
        raise AssertionError("unreachable: the last attempt raises")

    async def stream(self, call: Call, seconds: float) -> aiohttp.ClientResponse:
        """The open response to ``call``, to be read within ``seconds``. One attempt."""
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=self._patience.connect)
        return await self._authenticated(call, limits)

    async def _once(self, call: Call) -> Any:
        response = await self.stream(call, self._patience.attempt)
        try:
            with _network_errors(call):
                raw = await response.read()
        finally:
            response.release()
        if response.content_type != JSON:
            return raw.decode("utf-8", "replace")
        try:
            return json.loads(raw)
        except ValueError as error:
            raise Unavailable(f"{call.what}: the answer is no JSON ({error})") from error

    async def _authenticated(
        self, call: Call, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """A response below 400. After a 401, or where no connection came about and the kubeconfig
        was rewritten, the credentials are read again and the server asked once more."""
        began = time.monotonic()
        try:
            return await self._respond(call, limits)
        except Unauthorized:
            await self._credentials.renew(began)
        except Disconnected as error:
            if not error.refused or not await self._credentials.renew_if_rewritten():
                raise
        return await self._respond(call, limits)

    async def _respond(self, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        response = await self._send(call, limits)
        metrics.API_REQUESTS.labels(call.verb, call.kind, str(response.status)).inc()
        if response.status < 400:
            return response
        try:
            with _network_errors(call):
                body = await response.read()
        finally:
            response.release()
        raise from_response(call.what, response.status, response.headers, body)

    async def _send(self, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        if self._closed:
            raise Disconnected(f"{call.what}: the client is closed")
        headers = {
            "Accept": JSON,
            "Content-Type": call.content_type,
            "User-Agent": self._user_agent,
        }
        if authorization := await self._credentials.authorization():
            headers["Authorization"] = authorization
        api = self._credentials.api
        with _network_errors(call):
            async with asyncio.timeout(self._patience.attempt):
                answer = await api.rest_client.request(
                    call.method, call.url(api.configuration.host),
                    headers=headers, body=call.body, _request_timeout=limits,
                )  # fmt: skip
        response: aiohttp.ClientResponse = answer.response
        return response


def _worth_repeating(call: Call, error: Exception) -> bool | float:
    """stamina's question: False, True (its own back-off), or the seconds to wait."""
    if not isinstance(error, Unavailable | Disconnected | Timeout):
        return False
    if not call.idempotent and not getattr(error, "refused", False):
        return False
    log.info("%s", error)
    after: float | None = getattr(error, "after", None)
    return True if after is None else after


class _network_errors:
    """Turns aiohttp's exceptions into ours; a plain class, because it is on every call's path."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(
            error, aiohttp.ClientError | TimeoutError | OSError | RuntimeError
        ):
            return
        if isinstance(error, RuntimeError) and "closed" not in str(error):
            return
        metrics.API_REQUESTS.labels(self._call.verb, self._call.kind, "none").inc()
        raise _translate(self._call.what, error) from error


def _translate(what: str, error: BaseException) -> Timeout | Disconnected:
    before_sending = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ssl.SSLError)
    if isinstance(error, TimeoutError) and not isinstance(error, before_sending):
        return Timeout(f"{what}: no answer in time")
    said = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error.strerror or type(error.os_error).__name__
        said = f"no connection to the API server at {error.host}:{error.port} ({why}); is it up?"
    lost = Disconnected(one_line(f"{what}: {said}"))
    lost.refused = isinstance(error, before_sending)
    return lost
