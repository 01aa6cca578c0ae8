"""What an API server's refusals and silences mean for the caller.

::

    Retry        Conflict (409)  AlreadyExists (409)  NotFound (404)  Expired (410)
                 Unavailable (429, 5xx; ``after`` = Retry-After)  Timeout (effect unknown)
    Blocked      Invalid (422: permanent until the spec changes)  Forbidden (403)
    Unreachable  Disconnected (no answer)  Unauthorized (401)
    Rejected     BadRequest (400 and the rest of 4xx)

``Forbidden.reason`` is ``NamespaceTerminating`` or ``QuotaExceeded`` where the server said so: both
end without anybody changing a permission. What does not live here: deciding to retry.
"""

import json
from collections.abc import Mapping
from typing import Any

from controller.errors import Blocked, Rejected, Retry, Timeout, TorporError, Unreachable

MESSAGE_LIMIT = 2000  # characters; an API server's message may quote a whole object
RETRY_AFTER_LIMIT = 30.0  # seconds; nobody may park us for longer


class NotFound(Retry):
    """404. ``is_object`` is True only if the server names the object: a 404 for the whole kind
    (its CRD is gone) is no proof that an object does not exist."""

    default_reason = "NotFound"
    is_object = False


class Conflict(Retry):
    """409: somebody else wrote first. Read again, decide again."""

    default_reason = "Conflict"


class AlreadyExists(Conflict):
    """409 on create: the name is taken, maybe by our own earlier attempt."""

    default_reason = "AlreadyExists"


class Expired(Retry):
    """410: this resourceVersion or continue token is too old. List again."""

    default_reason = "Expired"


class Unavailable(Retry):
    """429 or 5xx. ``refused``: the server certainly did not do it (429)."""

    default_reason = "ServerUnavailable"
    refused = False


class Invalid(Blocked):
    """422: schema, CEL or policy refused it; the same request never passes."""

    default_reason = "Invalid"


class Forbidden(Blocked):
    """403: permissions, admission policy, quota, or a namespace that is going away."""

    default_reason = "Forbidden"


class BadRequest(Rejected):
    """Any other 4xx: the request is wrong."""

    default_reason = "BadRequest"


class Disconnected(Unreachable):
    """No answer came. ``refused``: there was no connection, so nothing can have happened."""

    refused = False


class Unauthorized(Unreachable):
    """401, also with credentials read again."""

    default_reason = "Unauthorized"


def one_line(text: str) -> str:
    """``text`` on one line, at most MESSAGE_LIMIT characters."""
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def parse_status(body: bytes) -> dict[str, Any]:
    """The ``Status`` object in an error's body; a proxy's or mux's text becomes its message."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"message": body[:MESSAGE_LIMIT].decode("utf-8", "replace")}


def from_response(what: str, code: int, headers: Mapping[str, str], body: bytes) -> TorporError:
    """The error for an HTTP response of ``code`` ≥ 400. ``what``: verb and object, for people."""
    return from_status(what, {**parse_status(body), "code": code}, headers)


def from_status(
    what: str, status: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> TorporError:
    """The error for a ``Status`` object, as in a body or in an ERROR event of a watch."""
    code = status.get("code") or 0
    message = one_line(f"{what}: {status.get('message') or f'HTTP {code}'}")
    if code == 404:
        return _not_found(message, status)
    if code == 409:
        exists = status.get("reason") == "AlreadyExists"
        return AlreadyExists(message) if exists else Conflict(message)
    if code == 410:
        return Expired(message)
    if code == 422:
        return Invalid(message)
    if code == 403:
        return Forbidden(message, reason=_forbidden_reason(status))
    if code == 401:
        return Unauthorized(message)
    if code == 429 or code >= 500 or code == 0:
        return _unavailable(message, code, status, headers or {})
    return BadRequest(message)


def _details(status: Mapping[str, Any]) -> Mapping[str, Any]:
    details = status.get("details")
    return details if isinstance(details, dict) else {}


def _not_found(message: str, status: Mapping[str, Any]) -> NotFound:
    error = NotFound(message)
    error.is_object = status.get("reason") == "NotFound" and bool(_details(status).get("name"))
    return error


def _forbidden_reason(status: Mapping[str, Any]) -> str | None:
    causes = _details(status).get("causes") or ()
    if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return "NamespaceTerminating"
    # Quota has no cause of its own on the wire; its admission plugin's wording is stable.
    return "QuotaExceeded" if "exceeded quota" in str(status.get("message")) else None


def _unavailable(
    message: str, code: int, status: Mapping[str, Any], headers: Mapping[str, str]
) -> Unavailable:
    error = Unavailable(message, after=_retry_after(status, headers))
    error.refused = code == 429
    return error


def _retry_after(status: Mapping[str, Any], headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After") or _details(status).get("retryAfterSeconds")
    try:
        seconds = float(value) if value is not None else None
    except (TypeError, ValueError):  # an HTTP date: no API server sends one
        return None
    return None if seconds is None else max(0.0, min(seconds, RETRY_AFTER_LIMIT))


__all__ = [
    "AlreadyExists", "BadRequest", "Conflict", "Disconnected", "Expired", "Forbidden", "Invalid",
    "NotFound", "Timeout", "Unauthorized", "Unavailable", "Unreachable",
    "from_response", "from_status", "one_line",
]  # fmt: skip
