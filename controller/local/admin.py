"""The few API calls that setting up a cluster takes, as its administrator, over plain HTTP.

Synchronous and without a client library on purpose: the supervisor is a small process of threads.
What does not live here: anything that watches; the agent and the operator have ``controller.kube``.
"""

import http.client
import json
import ssl
from pathlib import Path
from typing import Any, Literal

from controller.errors import Rejected, Unreachable
from controller.host.files import write_atomic
from controller.local.pki import Credential

Object = dict[str, Any]
Patch = Literal["merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"]
MANAGER = "torpor-up"  # of the fields that server-side apply writes


class Refused(Rejected):
    """The API server said no. ``code`` is the HTTP status, the reason is the server's own."""

    def __init__(self, code: int, message: str, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code


class Admin:
    """Calls to one API server, each on a connection of its own: it may restart in between.

    Raises Refused (any status from 400 on) and Unreachable (no answer within ``seconds``).
    """

    def __init__(self, port: int, ca_pem: bytes, directory: Path, credential: Credential) -> None:
        self.port = port
        self.context = ssl.create_default_context(cadata=ca_pem.decode())
        # the ssl module reads a client's key from files only
        chain = directory / "admin.pem"
        write_atomic(chain, credential.certificate + credential.key)
        self.context.load_cert_chain(chain)

    def get(self, path: str) -> Object:
        """Read one object or list."""
        return self._call("GET", path)

    def create(self, path: str, body: Object) -> Object:
        """POST to a collection or to a subresource."""
        return self._call("POST", path, body)

    def patch(self, path: str, body: Object, kind: Patch = "merge-patch+json") -> Object:
        """PATCH an object or its status."""
        return self._call("PATCH", path, body, f"application/{kind}")

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply: create it or take over the fields that ``body`` names."""
        query = f"{path}?fieldManager={MANAGER}&force=true"
        return self.patch(query, body, "apply-patch+yaml")

    def delete(self, path: str) -> Object:
        """DELETE one object."""
        return self._call("DELETE", path)

    def find(self, path: str) -> Object | None:
        """Read one object; None only when the server says that there is none."""
        try:
            return self.get(path)
        except Refused as err:
            if err.code == 404:
                return None
            raise

    def _call(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=10, context=self.context
        )
        payload = None if body is None else json.dumps(body)  # JSON is YAML too
        headers = {"Content-Type": kind, "Accept": "application/json"}
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            status, text = response.status, response.read()
        except (OSError, http.client.HTTPException) as err:
            raise Unreachable(
                f"the API server on 127.0.0.1:{self.port} does not answer: {err}; torpor status"
            ) from err
        finally:
            connection.close()
        answer: Object = json.loads(text) if text.startswith(b"{") else {"message": text.decode()}
        if status >= 400:
            said = answer.get("message", "no message")
            raise Refused(
                status, f"{method} {path}: {said}", answer.get("reason") or f"Http{status}"
            )
        return answer
