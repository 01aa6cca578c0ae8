"""The planner against the model world: any wish, any fault, a crash at any effect.

The model works as the worker does: look, plan, carry out the first step only, look again. What must
never happen is asserted inside ``tests/world.py``; here is what must happen in the end.
"""

from collections.abc import Iterator
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.core.desired import Desired, Mode, Permit, RestartPolicy, Workload
from controller.core.invariants import problems
from controller.core.observed import ABSENT, ImageReady, Recorded
from controller.core.plan import plan
from controller.core.state import State, can_transition
from controller.core.steps import Plan
from tests.faults import FAULTS, agent_dies, heal
from tests.values import DIGEST, RULES, a_wish
from tests.world import Refused, Stopped, World, ageless, breathe, effects, look

MAX_STEPS = 40  # of one pass, as the worker has it
MAX_ROUNDS = 60  # passes until the end, once nothing disturbs any more
MODES = (Mode.RUNNING, Mode.PAUSED, Mode.STANDBY, Mode.STOPPED, Mode.GONE)
LIVING = MODES[:4]


def next_plan(world: World, wish: Desired) -> Plan:
    """The plan of one look, checked: allowed, legal, and the same when made twice."""
    seen = look(world, wish)
    made = plan(wish, seen, world.now, RULES)
    assert made == plan(wish, seen, world.now, RULES)
    assert problems(made, seen) == ()
    assert all(can_transition(a, b) for a, b in zip(made.way, made.way[1:], strict=False))
    assert not (made.settled and made.steps)
    if seen.state is State.UNKNOWN and wish.mode is not Mode.GONE:
        assert not made.steps, f"it acts on what it does not know: {made.sentence}"
    if not made.steps and not made.settled:
        assert made.waiting is not None, f"nothing to do, not there, and no reason: {made}"
    return made


def carry_out(world: World, wish: Desired, made: Plan, crash: int | None = None) -> World:
    """The world after the first step; ``crash``: after so many of its effects the agent dies."""
    try:
        after = effects(world, wish, made.steps[0])
    except Stopped as failed:
        return replace(failed.world, now=world.now + 0.5)
    except Refused:
        return replace(world, now=world.now + 0.5)
    if crash is not None and crash < len(after):
        return agent_dies(after[crash - 1] if crash else world)
    moved = look(after[-1], wish) != look(world, wish) or not after[-1].finalizer
    assert moved, f"{made.steps[0].name} was carried out and nothing is seen of it: {made.sentence}"
    return after[-1]


def one_pass(world: World, wish: Desired) -> Iterator[tuple[World, Plan]]:
    """Every (world, plan) of one pass; the last one has no steps."""
    for _ in range(MAX_STEPS):
        made = next_plan(world, wish)
        yield world, made
        if not made.steps or not world.finalizer:
            return
        try:
            effects(world, wish, made.steps[0])
        except Stopped:
            pass
        except Refused:  # a step that failed ends the pass
            yield replace(world, now=world.now + 0.5), made
            return
        world = carry_out(world, wish, made)
    raise AssertionError(f"a pass without an end: {made.sentence}")


def hand_over(world: World, wish: Desired) -> Desired:
    """What the operator makes of it: a new reservation where the old one was given back."""
    record = world.record
    exited = record is not None and record.exited
    released = wish.reservation in world.given_back
    asleep = wish.mode is Mode.STANDBY and world.kept is not None
    if wish.mode in (Mode.STOPPED, Mode.GONE) or exited or asleep:
        return replace(wish, permit=Permit.WITHHELD) if released else wish
    if wish.permit is Permit.GRANTED and not released:
        return wish
    if wish.permit is Permit.EVICTING and not released:
        return wish
    number = int((wish.reservation or "pod-0").removeprefix("pod-")) + 1
    return replace(wish, permit=Permit.GRANTED, reservation=f"pod-{number}")


def settle(world: World, wish: Desired) -> tuple[World, Desired, Plan]:
    """Let operator, agent and guest go on until nothing changes any more."""
    *_, (_, at, asked, made) = trail(world, wish)
    return at, asked, made


def trail(world: World, wish: Desired) -> Iterator[tuple[bool, World, Desired, Plan]]:
    """Every (whether a pass ends here, world, wish, plan) on the way to where it rests."""
    for _ in range(MAX_ROUNDS):
        if wish.mode is Mode.STOPPED:
            world = replace(world, held=False)
        for at, made in one_pass(world, wish):
            yield False, at, wish, made
            world = at
        if not world.finalizer:
            return
        handed = hand_over(world, wish)
        yield True, world, handed, made
        rests = made.settled or (made.waiting is not None and made.waiting.stalled)
        after = breathe(world)
        same = ageless(replace(after, now=world.now)) == ageless(world)
        if rests and handed == wish and same:
            return
        if made.wake_at is not None and same:
            after = replace(world, now=max(after.now, made.wake_at))
        world, wish = after, handed
    raise AssertionError(f"no rest: {made.sentence}")


def check_rest(world: World, wish: Desired, made: Plan) -> None:
    """Where it rests is what was asked for, or says truly why not."""
    if wish.mode is Mode.GONE:
        assert not world.finalizer
        return
    record = world.record
    assert isinstance(record, Recorded)
    assert made.settled, made.sentence
    assert world.overlay, "the disk is gone"
    if wish.draining:
        assert made.origin in (State.STOPPED, State.STANDBY)
    elif record.exited and wish.mode is not Mode.STOPPED:
        assert made.origin is State.STOPPED
    else:
        assert made.origin is State(wish.mode.value)
        assert wish.permit is not Permit.EVICTING or wish.mode is Mode.STOPPED
    if world.vmm is None:
        assert world.run_dirs == frozenset()
        asked = wish.reservation is None or wish.reservation in world.given_back
        assert asked or wish.draining
    else:
        assert world.run_dirs == {(record.epoch, record.run)}
        assert not record.stop_ordered, "it rests with a stop that was ordered and not finished"
        started = world.guest.started or record.woken
        assert started or world.vmm.state is State.PAUSED
        assert not record.woken or record.repaired or world.vmm.state is State.PAUSED
        assert not record.saving


def running(policy: RestartPolicy = RestartPolicy.ON_FAILURE) -> tuple[World, Desired]:
    world, wish, _ = settle(World(), a_wish(restart=policy))
    return world, wish


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_reached_from_nothing(mode: Mode) -> None:
    world, wish, made = settle(World(), a_wish(mode))
    check_rest(world, wish, made)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("origin", LIVING)
def test_every_mode_is_reached_from_every_other(origin: Mode, mode: Mode) -> None:
    world, wish, _ = settle(World(), a_wish(origin))
    world, wish, made = settle(world, replace(wish, mode=mode))
    check_rest(world, wish, made)


def changes(wish: Desired) -> Iterator[Desired]:
    """Every wish one change away."""
    for mode in MODES:
        if mode is not wish.mode:
            yield replace(wish, mode=mode)
    yield replace(wish, permit=Permit.EVICTING)
    yield replace(wish, permit=Permit.WITHHELD)
    yield replace(wish, workload=Workload(args=("new",)))
    yield replace(wish, epoch=wish.epoch + 1)
    yield replace(wish, draining=not wish.draining)
    yield replace(wish, stop_timeout=0)
    always = wish.restart is RestartPolicy.ALWAYS
    yield replace(wish, restart=RestartPolicy.NEVER if always else RestartPolicy.ALWAYS)


def key(world: World) -> World:
    """The world without its clock: what is over is over, what is to come is to come."""
    record = world.record
    if record is not None:
        late = record.stop_ordered_at is not None and world.now > record.stop_ordered_at + 10
        record = replace(
            record,
            run=min(record.run, 2),
            run_began_at=None if record.run_began_at is None else 0.0,
            stop_ordered_at=None if record.stop_ordered_at is None else float(late),
            retry_at=None if record.retry_at is None else float(record.retry_at > world.now),
        )
    return ageless(replace(world, record=record, now=0.0))


@pytest.mark.parametrize("policy", RestartPolicy)
def test_every_fault_at_every_place_of_every_way_ends_well(policy: RestartPolicy) -> None:
    """From each settled mode: each change, each crash point or world on its way, each fault."""
    done = set()
    for origin in LIVING:
        start, wish, _ = settle(World(), a_wish(origin, restart=policy))
        ways = [(World(), a_wish(origin, restart=policy)), *((start, w) for w in changes(wish))]
        for way_world, way_wish in ways:
            for world, asked in places(way_world, way_wish):
                for fault in FAULTS:
                    struck = fault(world)
                    case = (key(struck), asked)
                    if case in done:
                        continue
                    done.add(case)
                    suffer(struck, asked)
    assert len(done) > 100


def test_change_of_mind_at_every_place_of_every_way_ends_well() -> None:
    """From each settled mode to each other one; on the way, a third is asked for."""
    done = set()
    for origin in LIVING:
        start, wish, _ = settle(World(), a_wish(origin))
        for way_wish in changes(wish):
            for world, asked in places(start, way_wish):
                for mind in changes(asked):
                    case = (key(world), mind)
                    if case in done or (asked.mode is Mode.GONE and mind.mode is not Mode.GONE):
                        continue
                    done.add(case)
                    suffer(world, mind)
    assert len(done) > 100


def places(world: World, wish: Desired) -> Iterator[tuple[World, Desired]]:
    """Every world on the way to rest, those between two effects of a step included."""
    for _, at, asked, made in trail(world, wish):
        yield at, asked
        if made.steps:
            try:
                between = effects(at, asked, made.steps[0])[:-1]
            except Refused:
                continue
            for half in between:
                yield half, asked


def suffer(world: World, wish: Desired) -> None:
    """The fault lasts for a pass; then it is over and everything comes to rest."""
    for at, _ in one_pass(world, wish):
        world = at
    world, wish, made = settle(heal(breathe(world)), wish)
    check_rest(world, wish, made)


class Life(RuleBasedStateMachine):
    """Random wishes, faults, crashes and passes cut off in the middle."""

    @initialize(policy=st.sampled_from(RestartPolicy))
    def create(self, policy: RestartPolicy) -> None:
        self.world = World()
        self.wish = a_wish(restart=policy)
        self.ever_gone = False

    @precondition(lambda self: self.wish.mode is not Mode.GONE)
    @rule(change=st.integers(0, 10))
    def user_or_operator_changes_something(self, change: int) -> None:
        wish = list(changes(self.wish))[change]
        if wish.draining and wish.mode is Mode.GONE:
            return
        self.wish = wish

    @rule(fault=st.sampled_from(FAULTS))
    def fault(self, fault: object) -> None:
        assert callable(fault)
        self.world = fault(self.world)

    @rule(steps=st.integers(1, 6), crash=st.one_of(st.none(), st.integers(0, 2)))
    def agent_works(self, steps: int, crash: int | None) -> None:
        if self.wish.mode is Mode.STOPPED:
            self.world = replace(self.world, held=False)
        for left in reversed(range(steps)):
            made = next_plan(self.world, self.wish)
            if not made.steps or not self.world.finalizer:
                return
            self.world = carry_out(self.world, self.wish, made, crash if not left else None)

    @rule()
    def operator_looks(self) -> None:
        self.wish = hand_over(self.world, self.wish)

    @rule(seconds=st.sampled_from((0.1, 1.0, 11.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.world = breathe(self.world, seconds)

    @rule()
    def faults_end(self) -> None:
        self.world = heal(self.world)

    @rule()
    def everything_comes_to_rest(self) -> None:
        self.world, self.wish, made = settle(heal(self.world), self.wish)
        check_rest(self.world, self.wish, made)

    @invariant()
    def the_disk_goes_only_with_its_instance(self) -> None:
        record = self.world.record
        if record is not None and record.provisioned and not record.tombstone:
            assert self.world.overlay

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.everything_comes_to_rest()


Life.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
TestLife = Life.TestCase  # any life of an Instance comes to rest where it was asked to


def test_image_that_is_there_is_not_pulled_again() -> None:
    world, _, _ = settle(World(store=ImageReady(DIGEST)), a_wish())
    assert world.store == ImageReady(DIGEST)
    assert settle(replace(world, store=ABSENT), a_wish())[0].vmm is not None
