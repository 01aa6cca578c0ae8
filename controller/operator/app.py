"""The operator's composition root: kopf watches Instances, our queue and workers do the rest.

kopf owns login and the Instance watch, through ``on.event`` alone: its create/update handlers would
write annotations and two or three patches for every change. All replicas watch; only the holder of
the Lease acts, and it looks at every key when it takes over.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import kopf
from cuid2 import cuid_wrapper

from controller.host.leaving import leave_within
from controller.kube.client import Client
from controller.kube.events import EventRecorder
from controller.kube.health import Health
from controller.kube.lease import LeaderLease
from controller.kube.workqueue import WorkQueue, run_workers
from controller.operator.cluster import Cluster
from controller.operator.instances import Instances
from controller.settings import OperatorSettings

log = logging.getLogger(__name__)

LEASE = "torpor-operator"
LEAVE_SECONDS = 8.0
INSTANCES = ("torpor.dev", "v1alpha1", "instances")


async def run(settings: OperatorSettings, kubeconfig: Path | None) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(kubeconfig)  # kopf's login reads it from there
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = await Client.connect(kubeconfig, user_agent="torpor-operator")
    try:
        await _serve(settings, client, stop)
    finally:
        await client.close()


async def _serve(settings: OperatorSettings, client: Client, stop: asyncio.Event) -> None:
    identity = settings.identity or f"{socket.gethostname()}-{os.getpid()}"
    queue: WorkQueue[str] = WorkQueue("instances")
    seconds = settings.leader_lease_seconds
    lease = LeaderLease(
        client, LEASE, settings.namespace, identity,
        duration=seconds, renew=seconds * 2 / 3, retry=seconds * 2 / 15,
    )  # fmt: skip
    instances: Instances
    cluster = Cluster(client, settings, queue.add, lambda name: at_node(name))
    events = EventRecorder(client, "torpor-operator", identity)
    instances = Instances(
        client, cluster, events, settings, cuid_wrapper(), lambda: lease.is_leader, queue.add
    )
    at_node = instances.look_at_node
    health = Health(
        settings.probe_port,
        ready=lambda: cluster.synced,
        healthy=lambda: instances.watch_lives,
        address=settings.probe_address,
    )
    await health.start()
    stop_kopf = threading.Event()
    work: list[Coroutine[Any, Any, Any]] = [
        stop.wait(),
        *(reflector.run() for reflector in cluster.reflectors),
        cluster.watch_silence(),
        run_workers(queue, instances.reconcile, settings.workers),
        events.run(),
        _lead(lease, cluster, instances),
    ]
    tasks = [asyncio.create_task(each) for each in work]
    kopfs = asyncio.create_task(_watch(instances, stop_kopf))
    try:
        # The first one to end is either the order to stop or a defect: end with it.
        done, _ = await asyncio.wait([*tasks, kopfs], return_when=asyncio.FIRST_COMPLETED)
    finally:
        leave_within(LEAVE_SECONDS, 0 if stop.is_set() else 1)
        stop_kopf.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, kopfs, return_exceptions=True)
        await health.close()
    for task in done:
        task.result()


async def _lead(lease: LeaderLease, cluster: Cluster, instances: Instances) -> None:
    while True:
        await cluster.wait_synced()
        await lease.acquire()
        instances.look_at_all()
        await lease.run(lambda: log.error("leadership lost; waiting to lead again"))


async def _watch(instances: Instances, stop: threading.Event) -> None:
    """kopf's part: log in, list and watch Instances, hand every event on to our loop.

    It has a thread and a loop of its own, because at its end it waits for, and then cancels, every
    task of its loop that is younger than itself.
    """
    loop = asyncio.get_running_loop()

    def saw(kind: str | None, obj: Any) -> None:
        if kind == "DELETED":
            instances.lost(obj["metadata"]["uid"])
        else:
            instances.watched(obj)

    def hand_on(kind: str | None, obj: Any) -> None:
        loop.call_soon_threadsafe(saw, kind, obj)

    await asyncio.to_thread(_run_kopf, hand_on, stop)


def _run_kopf(hand_on: Callable[[str | None, Any], None], stop: threading.Event) -> None:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(*INSTANCES, registry=registry)
    async def saw(event: kopf.RawEvent, **_: Any) -> None:
        hand_on(event["type"], event["object"])

    asyncio.run(
        kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            clusterwide=True,
            standalone=True,
            stop_flag=stop,
        )
    )


def kopf_settings() -> kopf.OperatorSettings:
    """kopf, told to write nothing and to notice a dead stream."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.queueing.idle_timeout = 1
    settings.persistence.finalizer = "torpor.dev/kopf-unused"
    settings.process.ultimate_exiting_timeout = None
    return settings
