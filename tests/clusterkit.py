"""A real control plane for tests, and the few ways to talk to it and to wait for it.

Used by tests/cluster, tests/chaos and tests/scale. One control plane per pytest session, in a
directory of its own; a session that was killed is cleaned up by the next one.
"""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from controller.host.process import identity
from controller.local import binaries, state
from controller.local.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "torpor-controlplane-"
Object = dict[str, Any]


@contextmanager
def running_control_plane(**options: Any) -> Iterator[ControlPlane]:
    """Start one with the project's CRDs (if they are there), yield it, leave nothing behind."""
    _clean_up_after_killed_sessions()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    options.setdefault("crds", sorted((ROOT / "crds").glob("torpor.dev_*.yaml")))
    plane: ControlPlane | None = None
    record = state.StateFile(
        directory / "state.json", identity(os.getpid()), lambda: plane.processes if plane else ()
    )
    try:
        record.save()
        plane = ControlPlane(directory, binaries.ensure(print), changed=record.save, **options)
        began = time.monotonic()
        plane.start()
        print(f"control plane up in {time.monotonic() - began:.2f} s")
        yield plane
    finally:
        if plane is not None:
            plane.stop()
        shutil.rmtree(directory)


def _clean_up_after_killed_sessions() -> None:
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/state.json"):
        left = state.read(file)
        if left is not None and not left.supervised:
            left.end()
            shutil.rmtree(file.parent)


@dataclass(frozen=True)
class Kubectl:
    """``kubectl(...)`` as a user of one kubeconfig, in one namespace unless another is named."""

    binary: Path
    kubeconfig: Path
    namespace: str = "default"

    def __call__(
        self, *args: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run it. With ``check`` a failure is an AssertionError that shows what kubectl said."""
        done = subprocess.run(
            [
                self.binary,
                f"--kubeconfig={self.kubeconfig}",
                f"--namespace={self.namespace}",
                *args,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(args)}: {done.stderr}"
        return done

    def json(self, *args: str) -> Object:
        """The answer to ``kubectl ARGS -o json``."""
        answer: Object = json.loads(self(*args, "-o", "json").stdout)
        return answer

    def apply(self, *documents: Object) -> None:
        """``kubectl apply`` of these objects."""
        self("apply", "-f", "-", stdin=_as_list(documents))

    def refusal(self, *documents: Object) -> str:
        """What the server says against these objects. Fails when it takes them."""
        done = self("apply", "-f", "-", stdin=_as_list(documents), check=False)
        assert done.returncode != 0, f"the server accepted {documents}"
        return done.stderr

    def as_user(self, kubeconfig: Path) -> "Kubectl":
        """The same, as somebody else."""
        return replace(self, kubeconfig=kubeconfig)


def wait_for(
    plane: ControlPlane,
    collection: str,
    name: str,
    condition: Callable[[Object | None], object],
    seconds: float = 20.0,
) -> Object | None:
    """Watch one object until ``condition(object)`` holds (None: there is none); returns it.

    ``collection`` is an API path such as ``/api/v1/namespaces/x/pods``. Raises AssertionError,
    with the last state seen, after ``seconds``. From asyncio: ``await asyncio.to_thread(...)``.
    """
    deadline = time.monotonic() + seconds
    seen = plane.admin.find(f"{collection}/{name}")
    while not condition(seen):
        for change in _changes(plane, collection, name, seen, deadline):
            seen = change
            if condition(seen):
                return seen
        assert time.monotonic() < deadline, f"{collection}/{name} after {seconds} s: {seen}"
        seen = plane.admin.find(f"{collection}/{name}")  # the watch ended early: look anew
    return seen


def _changes(
    plane: ControlPlane, collection: str, name: str, seen: Object | None, deadline: float
) -> Iterator[Object | None]:
    """The object after each change, None after its deletion, until the stream or the time ends."""
    query = {"watch": "true", "fieldSelector": f"metadata.name={name}"}
    if seen is not None:
        query["resourceVersion"] = seen["metadata"]["resourceVersion"]
    left = max(deadline - time.monotonic(), 0.1)
    context = plane.admin.context
    connection = http.client.HTTPSConnection(
        "127.0.0.1", plane.ports.apiserver, timeout=left, context=context
    )
    try:
        connection.request("GET", f"{collection}?{urlencode(query)}")
        for line in connection.getresponse():
            event = json.loads(line)
            if event.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
                return
            yield None if event["type"] == "DELETED" else event["object"]
    except (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError):
        return
    finally:
        connection.close()


def _as_list(documents: tuple[Object, ...]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
