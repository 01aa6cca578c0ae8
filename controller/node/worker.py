"""The loop: observe -> plan -> act (one step, then look again) -> report.

One key (an Instance's UID) is never worked on twice at once; many keys are. What a pass did ends in
one sentence. A pass may be cut off at any point: the next one starts from what is.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from controller import metrics
from controller.core import invariants, wish
from controller.core.conditions import Failure
from controller.core.desired import Desired, Mode
from controller.core.observed import Observed
from controller.core.ownership import ready_is_operators
from controller.core.plan import plan as make_plan
from controller.core.state import State
from controller.core.steps import DropFinalizer, Plan, Step
from controller.errors import Blocked, Bug, Rejected, Retry, TorporError
from controller.node import clock, report, tell
from controller.node.act import act
from controller.node.intake import Intake
from controller.node.observe import observe
from controller.node.parts import Parts

log = logging.getLogger(__name__)

Object = dict[str, Any]

MAX_STEPS = 40  # of one pass; no way through the graph needs half of it
PROGRESS_AFTER = 2.0  # seconds: a transition shorter than this writes only its end
PROGRESS_EVERY = 10.0
SHORT_STEP = 0.2  # a step that ends sooner is not worth a write of its own
RETRY_FIRST, RETRY_LAST = 0.5, 60.0

# Reasons of a transition under way: worth a write only when it takes long.
UNDER_WAY = frozenset(
    {
        "Reconciling",
        "Booting",
        "Stopping",
        "ImagePulling",
        "Unscheduled",
        "StaleView",
        "KernelMissing",
    }
)


@dataclass
class Track:
    """What the worker remembers of one Instance between passes; all of it may be lost."""

    wish: Desired | None = None  # what was asked when the transition began
    since: float | None = None  # when it began; None: settled
    written: float = float("-inf")  # when progress was last written
    tries: int = 0  # failed steps in a row
    failure: Failure | None = None
    retry_at: float = 0.0


@dataclass
class Look:
    """One pass's newest view."""

    seen: Observed
    plan: Plan


@dataclass
class Worker:
    """Makes one node's VMMs agree with its Instances."""

    parts: Parts
    intake: Intake
    tracks: dict[str, Track] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    contested: Callable[[], str | None] = lambda: None  # another agent serves this node: hands off

    async def reconcile(self, uid: str) -> float | None:
        """One pass for one Instance. Seconds until the next look; None: only when told."""
        async with self.parts.memory.alone[uid]:
            return await self._reconcile(uid)

    async def _reconcile(self, uid: str) -> float | None:
        if self.contested():
            return PROGRESS_EVERY
        obj = self.intake.get(uid)
        if obj is None:
            self._forget(uid)
            return None
        try:
            desired = replace(wish.desired(obj), draining=self.parts.memory.draining)
        except Rejected as err:
            await self._refuse(obj, err)
            return None
        track = self._track(uid, desired)
        look = await self._look(desired)
        last: Step | None = None
        for _ in range(MAX_STEPS):
            if not look.plan.steps or clock.now() < track.retry_at:
                break
            step = look.plan.steps[0]
            if step == last:
                # It was done and the world is as before: do not spin, look again later.
                failure = Retry(f"{step.name} changed nothing", reason="NoProgress")
                self._failed(desired, step, failure, track)
                break
            last = step
            done, obj = await self._step(desired, obj, look, step, track)
            if done and isinstance(step, DropFinalizer):
                return None
            if self.intake.moved_on(uid, replace(desired, draining=False)):
                return 0.0  # the newest desire wins, at every step
            look = await self._look(desired)
            if not done:
                break
            obj = await self._progress(obj, desired, look, track)
        return await self._finish(obj, desired, look, track)

    async def _refuse(self, obj: Object, err: Rejected) -> None:
        """A stored object that no schema of ours allows: say so, leave its guest alone."""
        log.error("%s", err)
        written = await report.write(self.parts.client, obj, report.refusal(obj, err))
        if written is not None:
            self.intake.put(written)

    async def reap(self, desired: Desired) -> bool:
        """Take down what has no object any more; True when nothing is left of it on this host."""
        async with self.parts.memory.alone[desired.uid]:
            for _ in range(MAX_STEPS):
                look = await self._look(desired)
                steps = look.plan.steps
                if not steps or isinstance(steps[0], DropFinalizer):
                    self._forget(desired.uid)  # nobody watches it, so nobody else would
                    return bool(steps)
                await act(self.parts, desired, {"metadata": {}}, steps[0])
            return False

    async def _look(self, desired: Desired) -> Look:
        seen = await observe(self.parts, desired)
        hypervisor = desired.hardware.hypervisor if desired.hardware else ""
        plan = make_plan(desired, seen, clock.now(), self.parts.rules(hypervisor))
        invariants.check(plan, seen)
        self._count(desired.uid, plan.origin)
        return Look(seen, plan)

    def _count(self, uid: str, state: State) -> None:
        """Keep the gauge of Instances by state, and count the hops that were seen."""
        before = self.states.get(uid)
        if before is state:
            return
        if before is not None:
            metrics.INSTANCES.labels(before.value).dec()
            metrics.TRANSITIONS.labels(before.value, state.value).inc()
        metrics.INSTANCES.labels(state.value).inc()
        self.states[uid] = state

    def _forget(self, uid: str) -> None:
        self.tracks.pop(uid, None)
        if state := self.states.pop(uid, None):
            metrics.INSTANCES.labels(state.value).dec()

    def _track(self, uid: str, desired: Desired) -> Track:
        track = self.tracks.setdefault(uid, Track())
        if track.wish != desired:  # a new wish is a new chance
            if _asked(track.wish) != _asked(desired):
                track.written = float("-inf")  # what somebody asked for is shown as it goes
            track.wish, track.since = desired, clock.now()
            track.failure, track.tries, track.retry_at = None, 0, 0.0
        return track

    async def _step(
        self, desired: Desired, obj: Object, look: Look, step: Step, track: Track
    ) -> tuple[bool, Object]:
        """Carry ``step`` out: whether it was done, and the newest object."""
        log.info("%s/%s: %s: %s", desired.namespace, desired.name, step.name, look.plan.because)
        work = asyncio.ensure_future(act(self.parts, desired, obj, step))
        try:
            with metrics.STEP_SECONDS.labels(step.name).time():
                obj = await self._shown_when_long(work, obj, desired, look, track)
                await work
        except TimeoutError:
            failure = Retry(f"{step.name} took too long", reason="Timeout")
            self._failed(desired, step, failure, track)
            return False, obj
        except TorporError as err:
            self._failed(desired, step, err, track)
            return False, obj
        finally:
            if not work.done():  # we are cancelled; what it holds is not left behind
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        track.failure, track.tries = None, 0
        return True, obj

    async def _shown_when_long(
        self, work: asyncio.Future[None], obj: Object, desired: Desired, look: Look, track: Track
    ) -> Object:
        """Wait for a step; one that takes long is written down once while it goes on."""
        since = track.since if track.since is not None else clock.now()
        due = max(since + PROGRESS_AFTER, track.written + PROGRESS_EVERY)
        await asyncio.wait({work}, timeout=max(SHORT_STEP, due - clock.now()))
        if work.done() or not self._worth_a_word(obj, look, track):
            return obj
        track.written = clock.now()
        try:
            return await self._write(obj, desired, look, track)
        except TorporError as err:  # the step's end will be told
            log.debug("%s/%s: progress: %s", desired.namespace, desired.name, err)
            return obj

    def _failed(self, desired: Desired, step: Step, err: TorporError, track: Track) -> None:
        stalled = isinstance(err, Blocked | Rejected | Bug)
        metrics.STEP_ERRORS.labels(step.name, err.reason).inc()
        track.tries += 1
        delay = min(RETRY_LAST, RETRY_FIRST * 2.0 ** min(track.tries - 1, 16))
        if isinstance(err, Retry) and err.after is not None:
            delay = err.after
        track.failure = Failure(err.reason, str(err), stalled)
        track.retry_at = clock.now() + (RETRY_LAST if stalled else delay)
        log.warning("%s/%s: %s failed: %s", desired.namespace, desired.name, step.name, err)

    async def _progress(self, obj: Object, desired: Desired, look: Look, track: Track) -> Object:
        if not self._worth_a_word(obj, look, track):
            return obj
        track.written = clock.now()
        return await self._write(obj, desired, look, track)

    async def _finish(
        self, obj: Object, desired: Desired, look: Look, track: Track
    ) -> float | None:
        plan, now = look.plan, clock.now()
        if plan.settled:
            track.failure, track.tries, track.since = None, 0, None
        elif track.since is None:
            track.since = now
        if plan.settled or self._worth_a_word(obj, look, track):
            if not plan.settled:
                track.written = now
            await self._write(obj, desired, look, track)
        log.debug("%s/%s: %s", desired.namespace, desired.name, plan.sentence)
        return self._next_look(plan, track)

    def _worth_a_word(self, obj: Object, look: Look, track: Track) -> bool:
        """Whether a pass that has not settled is to be written down now."""
        waiting = look.plan.waiting
        if track.failure is not None or (waiting and waiting.reason not in UNDER_WAY):
            return True
        if waiting and waiting.reason == "Unscheduled" and not ready_is_operators(obj):
            return True  # the operator makes no reservation before it has read that there is none
        now = clock.now()
        began = track.since if track.since is not None else now
        return now - began >= PROGRESS_AFTER and now - track.written >= PROGRESS_EVERY

    async def _write(self, obj: Object, desired: Desired, look: Look, track: Track) -> Object:
        before = obj.get("status") or {}
        after = report.status(desired, look.seen, look.plan, track.failure, before)
        if look.plan.settled:
            after["plan"] = None
        written = await report.write(self.parts.client, obj, after)
        if written is None:
            return obj
        self.intake.put(written)
        tell.transition(self.parts.events, obj, after)
        return written

    def _next_look(self, plan: Plan, track: Track) -> float:
        now = clock.now()
        times = [now + self.parts.settings.resync_seconds]
        if plan.wake_at is not None:
            times.append(plan.wake_at)
        if track.failure is not None:
            times.append(track.retry_at)
        if track.since is not None:  # show progress when the transition turns out to be long
            times.append(max(track.since + PROGRESS_AFTER, track.written + PROGRESS_EVERY))
        return max(0.02, min(times) - now)


def _asked(desired: Desired | None) -> tuple[int, Mode] | None:
    """What a person changed, as against what our own writes change."""
    return None if desired is None else (desired.generation, desired.mode)
