"""Who talks to the test cluster: users by certificate, node agents by tokens bound to their Nodes.

Nothing here may be known to the code under test: requests are plain HTTP, so that what is allowed
and what is refused is the API server's word alone.
"""

import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.local import binaries
from controller.local.admin import Admin, Refused
from controller.local.controlplane import ControlPlane
from tests.clusterkit import ROOT
from tests.waiting import until

Object = dict[str, Any]
SYSTEM = "torpor-system"
INSTANCES = "/apis/torpor.dev/v1alpha1"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
RBAC = "rbac.authorization.k8s.io"
PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


@dataclass(frozen=True)
class Answer:
    """What the API server said: the HTTP status, and its message when it refused."""

    code: int
    body: Object

    @property
    def allowed(self) -> bool:
        return self.code < 400

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class Bearer:
    """A client that is nobody but the owner of ``token``."""

    def __init__(self, plane: ControlPlane, token: str) -> None:
        self._port = plane.ports.apiserver
        self._context = ssl.create_default_context(cadata=plane.pki.ca_pem.decode())
        self._token = token

    def __call__(
        self, method: str, path: str, body: Object | None = None, patch: str = "merge"
    ) -> Answer:
        """One request; any answer is returned, refusals too."""
        kind = PATCHES[patch] if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=20, context=self._context
        )
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return Answer(response.status, json.loads(text) if text[:1] == b"{" else {})


def apply_base(plane: ControlPlane) -> None:
    """The project's manifests as an administrator applies them."""
    command = [str(binaries.find()["kubectl"]), f"--kubeconfig={plane.kubeconfig}", "apply"]
    command += ["--server-side", "--force-conflicts", "--field-manager=torpor-up"]
    command += ["-k", str(ROOT / "manifests" / "base")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def token(plane: ControlPlane, account: str, node: Object | None = None) -> str:
    """A token of a service account in torpor-system, bound to ``node`` (a Node) when given."""
    spec: Object = {"expirationSeconds": 3600}
    if node is not None:
        meta = node["metadata"]
        bound = {"apiVersion": "v1", "kind": "Node", "name": meta["name"], "uid": meta["uid"]}
        spec["boundObjectRef"] = bound
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token"
    answer = plane.admin.create(path, {"spec": spec})
    return str(answer["status"]["token"])


def user(plane: ControlPlane, directory: Path, name: str, *groups: str) -> Admin:
    """A client with a certificate of this user and these groups."""
    directory.mkdir(parents=True, exist_ok=True)
    credential = plane.pki.user(name, *groups)
    return Admin(plane.ports.apiserver, plane.pki.ca_pem, directory, credential)


async def until_refused(attempt: Callable[[], Answer]) -> None:
    """A new policy takes a moment to act: repeat a forbidden request until it is refused."""
    await until(lambda: not attempt().allowed)


def bind(admin: Admin, role: str, subject: str, name: str, namespace: str | None = None) -> str:
    """Give a ClusterRole to ``User:x`` or ``Group:x``, everywhere or in one namespace.

    Returns the path of the binding once the authorizer knows of it.
    """
    kind, _, who = subject.partition(":")
    where = f"namespaces/{namespace}/rolebindings" if namespace else "clusterrolebindings"
    path = f"/apis/{RBAC}/v1/{where}"
    body = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": kind, "name": who}],
    }
    admin.create(path, body)
    _wait_until_bound(admin, kind, who, namespace or SYSTEM)
    return f"{path}/{name}"


def _wait_until_bound(admin: Admin, kind: str, who: str, namespace: str) -> None:
    asked = {
        "group": "torpor.dev",
        "resource": "instances",
        "verb": "create",
        "namespace": namespace,
    }
    subject: Object = {"user": who} if kind == "User" else {"user": "anybody", "groups": [who]}
    review = {"spec": subject | {"resourceAttributes": asked}}
    deadline = time.monotonic() + 20
    while not admin.create(REVIEWS, review)["status"]["allowed"]:
        assert time.monotonic() < deadline, f"the binding of {who} does not act"
        time.sleep(0.01)


def delete_all(plane: ControlPlane, paths: Iterable[str]) -> None:
    """Delete these objects, finalizers and all; what is gone already is fine."""
    for path in paths:
        with suppress(Refused):
            plane.admin.patch(path, {"metadata": {"finalizers": None}})
        with suppress(Refused):
            plane.admin.delete(path)
