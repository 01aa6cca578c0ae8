"""How a fork begins: what of its source it takes, and when it may.

======= ============== ===================================== ==================================
fork    step           effect                                a crash before it leaves
======= ============== ===================================== ==================================
1       CreateRecord   record: whose child, not provisioned  nothing
2       TakeFork       a Running source is paused; device    a source that goes on (its own
                       state, pages, disk; it goes on;       record says that it ran), files
                       files synced, manifest;               that nobody names, a half disk:
                       **record: provisioned**               2 is repeated from the start
======= ============== ===================================== ==================================

From there a fork is an Instance like any other: Stopped, or Standby with a snapshot of its own
that shares every file with its source. Nothing of the source's is touched by what follows. What
does not live here: which node and which source (``placement``), and how it is done (``node``).
"""

from dataclasses import replace

from controller.core.desired import Desired, Fork, Mode, Workload
from controller.core.observed import Absent, Observed, Source, Unknown
from controller.core.state import State
from controller.core.steps import CreateRecord, Plan, Step, TakeFork
from controller.core.waiting import LOOK_AGAIN_SECONDS, wait

_ALIVE = (State.RUNNING, State.PAUSED)


def take(draft: Plan, desired: Desired, wish: Fork, seen: Observed, now: float) -> Plan:
    """The steps from Absent to a disk, and memory, of its own; or what is in the way."""
    source = seen.source
    if isinstance(source, Unknown):
        return wait(draft, now, source.reason, source.why, stalled=source.stalled)
    if isinstance(source, Absent):
        return wait(
            draft, now, "SourceGone",
            f"the Instance that it is to be forked from (UID {wish.parent}) is gone from this "
            "node; delete this one, or recreate it with a source that exists",
            stalled=True,
        )  # fmt: skip
    if in_the_way := refusal(source, wish, desired.workload):
        reason, message, stalled = in_the_way
        # nobody tells us what happens to another Instance, so it is looked at again in any case
        refused = wait(draft, now, reason, message, stalled=stalled)
        return replace(refused, wake_at=now + LOOK_AGAIN_SECONDS)
    landing = State.STANDBY if _inherits_memory(source) else State.STOPPED
    create: tuple[Step, ...] = (CreateRecord(),) if isinstance(seen.record, Absent) else ()
    return replace(draft, way=(State.ABSENT, landing), steps=(*create, TakeFork()))


def refusal(source: Source, wish: Fork, workload: Workload) -> tuple[str, str, bool] | None:
    """(reason, message, stalled) of what keeps it from being forked now; None: nothing.

    Asked again by who has the source's turn: it may have moved on since the plan was made.
    """
    name = source.name
    if source.ending:
        return "SourceNotReady", f"its source {name} is going down; waiting for it", False
    if on_its_way := _on_its_way(source, wish):
        return "SourceNotReady", on_its_way, False
    if source.state in _ALIVE and not wish.from_running:
        return (
            "SourceRunning",
            f"its source {name} is {source.state.value}: put it to Standby or Stopped, or recreate "
            "this Instance with forkFrom.fromRunning: true to let it be paused for a moment",
            True,
        )
    settled = source.state in (State.STOPPED, State.STANDBY)
    if not settled and not (source.state in _ALIVE and source.started):
        where = source.state.value
        return "SourceNotReady", f"its source {name} is {where}; waiting for it to be up", False
    if _inherits_memory(source) and workload != Workload():
        return (
            "WorkloadInherited",
            f"it goes on with the memory of {name}, so env, command and args cannot be given: "
            "recreate it without them, or fork the source while it is Stopped",
            True,
        )
    return None


def _on_its_way(source: Source, wish: Fork) -> str:
    """Why the source is not yet what its own wish says that it will be; "": it is, or stays.

    A fork that is applied together with its source is to have what that becomes, not an empty disk.
    """
    name, asked = source.name, source.asked
    if asked is None or source.exited:
        return ""
    rests = asked in (Mode.STANDBY, Mode.STOPPED)
    if source.state in _ALIVE and rests and not wish.from_running:
        return f"its source {name} is on its way to {asked.value}; waiting for it"
    if source.state is State.STOPPED and asked in (Mode.RUNNING, Mode.PAUSED, Mode.STANDBY):
        return f"its source {name} is Stopped and on its way to {asked.value}; waiting for it"
    return ""


def _inherits_memory(source: Source) -> bool:
    return source.state is State.STANDBY or source.state in _ALIVE
