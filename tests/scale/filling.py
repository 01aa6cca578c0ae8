"""Instances by the thousand that have long been Running: object, status and reservation Pod.

Written straight to the API server, as the operator and an agent would have left them, on a Node
that has no agent. The operator has to find nothing to do for any of them.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp

from controller.core.names import FINALIZER, node_lease
from controller.core.placement import resources
from controller.core.reservation import PodSettings, manifest
from controller.local.admin import Admin
from controller.local.nodes import NAMESPACE as SYSTEM
from controller.local.nodes import LocalNode
from controller.operator.defaults import hardware
from controller.settings import Defaults
from tests.scale.hollow import LEASE_SECONDS, ROOMY, Stack
from tests.scale.upped import make_namespace

Object = dict[str, Any]
FULL_NODE = "full-node"
PREFIX = "full-"  # of the names
NAMESPACE = "full"  # which no bench watches
AT_ONCE = 24
SINCE = "2026-01-01T00:00:00Z"
DIGEST = "sha256:" + "0f" * 32
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
_INSTANCES = f"/apis/torpor.dev/v1alpha1/namespaces/{NAMESPACE}/instances/"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_SETTINGS = PodSettings("torpor.dev/reservation:1", "default-scheduler", 10.0)


@contextmanager
def full_node(stack: Stack) -> Iterator[None]:
    """A Node whose agent, as far as anybody can see, lives: its Lease is renewed."""
    make_namespace(stack.admin, NAMESPACE)
    home = stack.home / FULL_NODE
    home.mkdir()
    node = LocalNode(FULL_NODE, token_file=home / "token", **ROOMY)
    stack.keeper.add(node, lambda: True)
    name = node_lease(FULL_NODE)
    spec = {"holderIdentity": "bench", "leaseDurationSeconds": LEASE_SECONDS}
    stack.admin.create(_LEASES, {"metadata": {"name": name}, "spec": spec | _renewed()})
    done = threading.Event()

    def renew() -> None:
        while not done.wait(LEASE_SECONDS / 4):
            stack.admin.patch(f"{_LEASES}/{name}", {"spec": _renewed()})

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def fill(admin: Admin, first: int, last: int, defaults: Defaults) -> None:
    """Make the Instances ``first`` to ``last`` - 1."""
    asyncio.run(_each(admin, range(first, last), lambda api, n: _make(api, n, defaults)))


def touch(admin: Admin, paths: Iterable[str], word: str) -> None:
    """An event for each of these Instances that means nothing to anybody: an annotation."""
    body = {"metadata": {"annotations": {"example.com/touched": word}}}

    async def one(api: "_Api", path: str) -> None:
        await api.send("PATCH", path, body)

    asyncio.run(_each(admin, paths, one))


class _Api:
    def __init__(self, admin: Admin, session: aiohttp.ClientSession) -> None:
        self._base, self._session = f"https://127.0.0.1:{admin.port}", session

    async def send(self, method: str, path: str, body: Object) -> Object:
        kind = "application/json" if method == "POST" else "application/merge-patch+json"
        async with self._session.request(
            method, self._base + path, json=body, headers={"Content-Type": kind}
        ) as answer:
            found: Object = await answer.json()
            assert answer.status < 300, found
            return found


async def _each(admin: Admin, things: Iterable[Any], work: Any) -> None:
    connector = aiohttp.TCPConnector(ssl=admin.context, limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        api, left = _Api(admin, session), iter(things)

        async def worker() -> None:
            for thing in left:
                await work(api, thing)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _make(api: _Api, number: int, defaults: Defaults) -> None:
    obj = await api.send("POST", _INSTANCES.rstrip("/"), _instance(number))
    frozen = hardware(obj["spec"], defaults)
    pod = manifest(obj, frozen, FULL_NODE, _SETTINGS)
    pod["spec"]["nodeName"] = FULL_NODE  # where the scheduler would have put it
    bound = await api.send("POST", _PODS, pod)
    status = _status(number, bound["metadata"]["uid"], resources(frozen))
    await api.send("PATCH", f"{filled(number)}/status", {"status": status})


def _instance(number: int) -> Object:
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {
            "name": f"{PREFIX}{number:05d}",
            "finalizers": [FINALIZER],
            "labels": {"app.kubernetes.io/name": "hello", "app.kubernetes.io/part-of": "bench"},
        },
        "spec": {
            "image": "registry.example.com/team/hello:1",
            "vcpus": 1,
            "memory": {"size": "128Mi"},
            "overlay": {"size": "64Mi"},
            "env": [{"name": "GREETING", "value": "hello"}, {"name": "LEVEL", "value": "info"}],
        },
    }


def _status(number: int, reservation: str, settled: Object) -> Object:
    said = {"status": "True", "observedGeneration": 1, "lastTransitionTime": SINCE}
    return {
        "id": f"b{number:023d}",
        "observedGeneration": 1,
        "state": "Running",
        "nodeName": FULL_NODE,
        "epoch": 1,
        "reservation": reservation,
        "resources": settled,
        "startedAt": SINCE,
        "hypervisor": {"type": "hollow", "version": "1", "pid": number + 2, "accelerator": "tcg"},
        "image": {"digest": DIGEST},
        "kernel": {"digest": DIGEST, "version": "6.1.0-1-cloud-amd64"},
        "conditions": [
            said | {"type": "Ready", "reason": "Running", "message": "the workload runs"},
            said | {"type": "Scheduled", "reason": "Scheduled", "message": "reserved"},
        ],
    }


def filled(number: int) -> str:
    """The path of that Instance."""
    return f"{_INSTANCES}{PREFIX}{number:05d}"


def _renewed() -> Object:
    return {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
