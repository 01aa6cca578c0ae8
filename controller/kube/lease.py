"""Leases: who leads (``LeaderLease``), and which node agent is alive (``NodeLease``).

A Lease of somebody else is over when it has not changed for its own duration *as seen by this
reader's clock*; clocks of two hosts are never compared. That clock runs on during a suspend, or a
host that slept would wake up believing that it still leads. A Lease is no fence: what must not
happen twice is fenced in the data it writes. What does not live here: what a leader does.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from controller import metrics
from controller.errors import Rejected, TorporError
from controller.kube.client import Client
from controller.kube.errors import Conflict, NotFound
from controller.kube.resources import LEASES, Object

log = logging.getLogger(__name__)

RELEASE_SECONDS = 3.0


def boot_seconds() -> float:
    """Seconds since boot, suspends included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class HeldByAnother(TorporError):
    """The Lease has a live holder that is not us."""

    default_reason = "HeldByAnother"


class Claim:
    """One Lease seen by one would-be holder: take it, renew it, give it back."""

    def __init__(
        self,
        client: Client,
        name: str,
        namespace: str,
        identity: str,
        duration: int,
        clock: Callable[[], float],
        owner: Object | None = None,
    ) -> None:
        self._client = client
        self.name = name
        self._namespace = namespace
        self.identity = identity
        self.duration = duration
        self._clock = clock
        self._owner = owner
        self._lease: Object | None = None
        self._seen: tuple[Any, Any] | None = None  # (holder, renewTime) as last read
        self._seen_at = 0.0
        self.renewed_at = float("-inf")  # the clock before the last write that succeeded

    async def hold(self) -> None:
        """Take or renew. Raises HeldByAnother, Conflict (read again), or any client error."""
        began = self._clock()
        if self._lease is None:
            await self._look()
        if self._lease is None:
            written = await self._create()
        else:
            self._refuse_if_taken(self._lease)
            written = await self._write(self._renewed(self._lease))
        self._remember(written)
        self.renewed_at = began

    async def release(self) -> None:
        """Give it back so that the next one need not wait. Only what we hold."""
        if self._lease is None or self._holder(self._lease) != self.identity:
            return
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        await self._write(spec)
        self._lease, self.renewed_at = None, float("-inf")

    def forget(self) -> None:
        """Read the Lease anew next time: our copy may be stale."""
        self._lease = None

    async def _look(self) -> None:
        lease = await self._client.get(LEASES, self.name, self._namespace)
        if lease is not None:
            self._remember(lease)

    def _remember(self, lease: Object) -> None:
        self._lease = lease
        spec = lease.get("spec") or {}
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    def _refuse_if_taken(self, lease: Object) -> None:
        holder = self._holder(lease)
        if holder in ("", self.identity):
            return
        lasts = (lease.get("spec") or {}).get("leaseDurationSeconds") or self.duration
        if self._clock() - self._seen_at < lasts:
            self.forget()
            raise HeldByAnother(f"Lease {self._namespace}/{self.name} is held by {holder}")

    def _renewed(self, lease: Object) -> Object:
        spec: Object = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration,
            "renewTime": _now(),
        }
        if self._holder(lease) != self.identity:
            transitions = (lease.get("spec") or {}).get("leaseTransitions") or 0
            spec |= {"acquireTime": _now(), "leaseTransitions": transitions + 1}
        return spec

    async def _create(self) -> Object:
        metadata: Object = {"name": self.name, "namespace": self._namespace}
        if self._owner is not None:
            metadata["ownerReferences"] = [self._owner]
        spec = self._renewed({"spec": {"leaseTransitions": -1}})
        return await self._client.create(
            LEASES, {"metadata": metadata, "spec": spec}, self._namespace
        )

    async def _write(self, spec: Object) -> Object:
        assert self._lease is not None
        version = self._lease["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._client.patch(LEASES, self.name, body, namespace=self._namespace)

    @staticmethod
    def _holder(lease: Object) -> str:
        return str((lease.get("spec") or {}).get("holderIdentity") or "")


class LeaderLease:
    """At most one leader, most of the time. ``acquire``, then ``run`` until it returns."""

    def __init__(
        self,
        client: Client,
        name: str,
        namespace: str,
        identity: str,
        *,
        duration: float = 15,
        renew: float = 10,
        retry: float = 2,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        """Seconds: others wait ``duration``; without a renewal for ``renew`` we stop leading;
        tries are ``retry`` apart. ``identity`` must differ between any two processes."""
        if not retry < renew < duration:
            raise Rejected(f"Lease {name}: retry {retry} < renew {renew} < duration {duration}")
        self._claim = Claim(client, name, namespace, identity, math.ceil(duration), clock)
        self._renew = renew
        self._retry = retry
        self._clock = clock
        self._gauge = metrics.LEASE_HELD.labels(name)

    @property
    def is_leader(self) -> bool:
        """True only while our last renewal is young, however long the event loop was stuck."""
        return self._clock() - self._claim.renewed_at < self._renew

    async def acquire(self) -> None:
        """Return once we lead. Outlives every failure of the API server."""
        while True:
            try:
                await self._try(self._renew / 2)
            except HeldByAnother as error:
                log.debug("%s", error)
            except TorporError as error:
                log.warning("cannot take Lease %s: %s", self._claim.name, error)
            if self.is_leader:
                self._gauge.set(1)
                log.info("leading: Lease %s as %s", self._claim.name, self._claim.identity)
                return
            await asyncio.sleep(self._retry * random.uniform(1.0, 1.2))

    async def run(self, on_lost: Callable[[], Awaitable[None] | None]) -> None:
        """Renew until leadership is lost, then call ``on_lost`` and return.

        Cancelled, it releases the Lease (a clean exit: the next leader need not wait).
        """
        try:
            await self._renew_while_leading()
        except asyncio.CancelledError:
            await self._release()
            raise
        finally:
            self._claim.renewed_at = float("-inf")
            self._gauge.set(0)
        log.error("lost Lease %s", self._claim.name)
        if (waiting := on_lost()) is not None:
            await waiting

    async def _renew_while_leading(self) -> None:
        while self.is_leader:
            left = self._claim.renewed_at + self._renew - self._clock()
            await asyncio.sleep(min(self._retry, max(0.0, left)))
            try:
                left = self._claim.renewed_at + self._renew - self._clock()
                # Half of it: one connection that hangs must leave time for a second.
                await self._try(min(left, self._renew / 2))
            except HeldByAnother as error:
                log.warning("%s", error)
                return
            except TorporError as error:
                log.warning("cannot renew Lease %s: %s", self._claim.name, error)

    async def _try(self, seconds: float) -> None:
        """One attempt within ``seconds``; what happened is in ``is_leader``."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._claim.hold()
        except TimeoutError:
            self._claim.forget()
        except (Conflict, NotFound):
            self._claim.forget()  # written or deleted under us, maybe by our own lost attempt
        except HeldByAnother:
            raise
        except TorporError:
            self._claim.forget()
            raise

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._claim.release()
        except (TorporError, TimeoutError) as error:
            log.info("Lease %s not released, it will expire: %r", self._claim.name, error)


class NodeLease:
    """A node agent's heartbeat: one small write each ``interval``, whatever the Instances do.

    A second agent for the same node does not overwrite a live one: ``contested`` names the holder,
    and ``held`` stays False until that one falls silent.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        namespace: str = "torpor-system",
        *,
        identity: str | None = None,
        duration: int = 40,
        interval: float = 10,
        owner: Object | None = None,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        """``identity`` must survive a restart of the agent (else the restart waits ``duration``);
        the default is ``name``. ``owner``: an ownerReference, so the Lease goes with its Node."""
        self._claim = Claim(client, name, namespace, identity or name, duration, clock, owner)
        self._interval = interval
        self._clock = clock
        self._gauge = metrics.LEASE_HELD.labels("node")
        self.contested: str | None = None

    @property
    def held(self) -> bool:
        """The last heartbeat that arrived is younger than the Lease's duration."""
        return self._clock() - self._claim.renewed_at < self._claim.duration

    async def beat(self) -> bool:
        """One heartbeat. False if it did not arrive, or another agent holds the Lease."""
        try:
            async with asyncio.timeout(self._interval):
                await self._claim.hold()
        except HeldByAnother as error:
            if self.contested is None:
                log.error("%s: another agent serves this node; this one waits", error)
            self.contested = str(error)
        except (Conflict, NotFound):
            self._claim.forget()
        except (TorporError, TimeoutError) as error:
            self._claim.forget()
            log.warning("heartbeat %s: %s", self._claim.name, error or "no answer in time")
        else:
            self.contested = None
            self._gauge.set(1)
            return True
        self._gauge.set(1 if self.held else 0)
        return False

    async def run(self) -> None:
        """Beat until cancelled. After a failure the next beat comes sooner, with jitter."""
        while True:
            arrived = await self.beat()
            share = 1.0 if arrived else 0.2
            await asyncio.sleep(self._interval * share * random.uniform(0.9, 1.1))


def _now() -> str:
    """A Kubernetes MicroTime; for people only, nobody compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


__all__ = ["LeaderLease", "NodeLease", "HeldByAnother", "boot_seconds"]
