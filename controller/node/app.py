"""The node agent's composition root: wire everything, adopt, work, and leave without a trace.

Order of the start: who are we (identity, lock) -> what is on this host (records, drivers) -> adopt
what lives -> watch and work -> only then sweep. Leaving ends our connections; guests, VMMs and log
keepers go on.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from controller.core.names import node_lease
from controller.errors import Retry, TorporError
from controller.guest.artifacts import ensure_artifacts
from controller.guest.kernel import KernelStore
from controller.host import facts, logs
from controller.host.kvm import Verdict
from controller.host.leaving import leave_within
from controller.images.store import ImageStore
from controller.kube.client import Client
from controller.kube.events import EventRecorder
from controller.kube.health import Health
from controller.kube.lease import NodeLease
from controller.kube.workqueue import run_workers
from controller.memory.store import MemoryStore
from controller.node import adopt, identity, kvm, rundir, snapshots
from controller.node.endpoint import Endpoint
from controller.node.guests import Guests
from controller.node.intake import Intake
from controller.node.parts import Parts
from controller.node.places import Places
from controller.node.pulse import Pulse
from controller.node.record import Records
from controller.node.sweep import Sweep
from controller.node.worker import Worker
from controller.settings import NodeSettings, cache_dir
from controller.vmm import registry

log = logging.getLogger(__name__)

KERNEL_RETRY_SECONDS = 30.0
API_RETRY_SECONDS = 2.0
LEAVE_SECONDS = 8.0
LITTER_SECONDS = 2.0  # what is given up in a row is collected at once


async def run(settings: NodeSettings, kubeconfig: Path | None) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises Blocked or Rejected when it may not go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _agent(settings, kubeconfig) as work:
        # A task that ends by itself is a defect or a refusal: end with it, and be restarted.
        waits = [asyncio.create_task(stop.wait()), *(asyncio.create_task(each) for each in work)]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leave_within(LEAVE_SECONDS, 0 if stop.is_set() else 1)
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for task in done:
            task.result()
    log.info("leaving; guests stay as they are")


@contextlib.asynccontextmanager
async def _agent(
    settings: NodeSettings, kubeconfig: Path | None
) -> AsyncIterator[list[Coroutine[Any, Any, object]]]:
    """A wired agent that has adopted what lives; yields the work that is to run for ever."""
    places = Places(settings.state_dir, settings.run_dir)
    _prepare_directories(places)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(os.close, identity.lock(places.state))
        identity.check(places.state, settings, None)
        client = await Client.connect(kubeconfig, user_agent=f"torpor-node/{settings.node_name}")
        stack.push_async_callback(client.close)
        intake = Intake(client, settings.node_name)
        parts = await _parts(settings, places, client, intake)
        stack.push_async_callback(parts.guests.close)
        stack.push_async_callback(parts.images.close)
        worker = Worker(parts, intake)
        await adopt.adopt_all(parts)
        endpoint = Endpoint(parts, worker)
        await endpoint.start()
        stack.push_async_callback(endpoint.close)
        health = Health(settings.metrics_port, ready=lambda: intake.reflector.synced)
        await health.start()
        stack.push_async_callback(health.close)
        lease = NodeLease(
            client,
            node_lease(settings.node_name),
            namespace=settings.namespace,
            identity=settings.install_id,
            duration=settings.lease_seconds,
            interval=settings.lease_seconds / 4,
        )
        worker.contested = lambda: lease.contested
        yield [
            _watch(parts, intake),
            run_workers(intake.queue, worker.reconcile, settings.workers),
            parts.events.run(),
            lease.run(),
            _kernels(parts, intake),
            Pulse(parts, intake).run(),
            _sweep_after_sync(parts, intake, worker),
            _tidy_memory(parts),
        ]


async def _watch(parts: Parts, intake: Intake) -> None:
    """Watch this node's Instances, once it is certain that this is our cluster."""
    while not parts.cluster:
        try:
            cluster = await identity.cluster_uid(parts.client)
        except Retry as err:
            log.warning("waiting for the API server: %s", err)
            await asyncio.sleep(API_RETRY_SECONDS)
            continue
        identity.check(parts.places.state, parts.settings, cluster)
        parts.cluster = cluster
    await intake.reflector.run()


async def _parts(settings: NodeSettings, places: Places, client: Client, intake: Intake) -> Parts:
    records = Records(places.instances)
    records.load()
    drivers = registry.drivers(settings)
    versions = {name: await driver.probe() for name, driver in drivers.items()}
    store = MemoryStore(places.memory, lambda: snapshots.references(places, records))
    await asyncio.to_thread(store.start)
    await asyncio.to_thread(snapshots.tidy, places, records)
    if any(snapshots.folders(places, record.uid) for record in records.known()):
        await asyncio.to_thread(importlib.import_module, "controller.memory.capture")  # for a wake
    images = ImageStore(
        places.images,
        limit_bytes=settings.image_store_bytes,
        insecure_registries=frozenset(settings.insecure_registries),
    )
    await images.start()
    images.subscribe(intake.image_news)
    for driver in drivers.values():
        driver.on_event = intake.vmm_event
    return Parts(
        settings=settings,
        places=places,
        records=records,
        drivers=drivers,
        versions=versions,
        images=images,
        guests=Guests(intake.news),
        client=client,
        events=EventRecorder(client, "torpor-node", settings.node_name),
        keeper=await asyncio.to_thread(logs.build_keeper, cache_dir()),
        accelerator="tcg",
        threads_per_core=facts.read().threads_per_core,
        cluster="",
        kernels=KernelStore(places.kernels),
        snapshots=store,
        asked=intake.asked,
    )


async def _kernels(parts: Parts, intake: Intake) -> None:
    """Have a guest kernel ready, then whether KVM works proven by a boot of it."""
    settings = parts.settings
    override = (settings.kernel, settings.kernel_modules) if settings.kernel else None
    verdict: Verdict | None = None
    while verdict is None:
        try:
            artifacts = await ensure_artifacts(parts.places.kernels, override)
            verdict = await kvm.settle(parts, artifacts)
            parts.accelerator = "kvm" if verdict.usable else "tcg"
            parts.artifacts = artifacts
        except TorporError as err:
            parts.no_artifacts = str(err)
            log.warning("guest kernel: %s", err)
            await asyncio.sleep(KERNEL_RETRY_SECONDS)
    for uid, _ in intake.reflector.items():
        intake.news(uid)
    await kvm.announce(parts, verdict)
    await asyncio.Event().wait()


async def _sweep_after_sync(parts: Parts, intake: Intake, worker: Worker) -> None:
    await intake.reflector.wait_synced()
    await Sweep(parts, worker).run()


async def _tidy_memory(parts: Parts) -> None:
    """Give back what snapshots that were used, given up or deleted leave in the memory store."""
    while True:
        await parts.memory.litter.wait()
        await asyncio.sleep(LITTER_SECONDS)
        parts.memory.litter.clear()
        await snapshots.collect(parts)


def _prepare_directories(places: Places) -> None:
    for path in (places.state, places.instances, places.images, places.kernels):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.chmod(0o711)
    identity.check_reachable(places.state)
    rundir.prepare(places.run)
