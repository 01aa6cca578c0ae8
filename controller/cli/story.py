"""The story that ``torpor demo`` tells: a counter runs, pauses, sleeps, wakes, is forked, ends.

Each part checks what it shows: no number is missing and none comes twice, in any of the lives.
What does not live here: the cluster it happens on (``stage``), and the times (``watcher``).
"""

import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.cli.narrator import Narrator, Stopwatch
from controller.cli.watcher import Watcher, following, watching
from controller.core.capacity import rounded
from controller.errors import Timeout, TorporError

NAME, FORK = "counter", "counter-fork"
START_SECONDS = 300  # the first start on a machine may have to make the guest's parts
CHANGE_SECONDS = 60
PAUSE_SECONDS = 3.0  # long enough to see that nothing counts
LOOK_SECONDS = 0.3
FORK_MANIFEST = f"""\
apiVersion: torpor.dev/v1alpha1
kind: Instance
metadata: {{name: {FORK}}}
spec:
  forkFrom: {{name: {NAME}}}
"""

Line = tuple[int, str, str]  # number, hostname, beginning of the machine-id


@dataclass(frozen=True)
class Story:
    """``manifest`` is the counter's; ``desk`` a directory to write others into."""

    narrator: Narrator
    watcher: Watcher
    manifest: Path
    desk: Path
    stack: ExitStack  # ends what was started to look on
    times: list[tuple[str, str]] = field(default_factory=list)
    heard: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> None:
        """From Pending to Ready, until it counts."""
        self.narrator.say("An Instance is asked for, and comes: Pending, then Running.")
        self.narrator.run("kubectl", "apply", "-f", str(self.manifest))
        self.narrator.run("kubectl", "get", "inst", NAME)
        self._wait(NAME, "Ready", "pulling the image, booting the guest", START_SECONDS)
        self._note("Running", NAME, "Running: image pulled, guest booted")
        self.narrator.run("kubectl", "get", "inst", NAME)
        self._listen(NAME)
        self._until(NAME, "the guest counts", lambda told: len(told) >= 3)
        self._show(3)

    def pause(self) -> None:
        """Paused for a while, then Running: nothing was lost."""
        self.narrator.say("Paused: its virtual CPUs stand still, its memory stays.")
        stands = self._rest("Paused")
        self.narrator.note(f"it stood at {stands} for {PAUSE_SECONDS:g} s")
        self.narrator.say("Running again: it goes on from where it was.")
        self._go_on(stands, "Running again")

    def sleep(self) -> None:
        """Standby, twice: what is written the second time is what changed."""
        self.narrator.say(
            "Standby: its memory goes to disk, its VMM ends, its reservation is given back."
        )
        stands = self._rest("Standby")
        self.narrator.run("kubectl", "get", "inst", NAME, "-o", "wide")
        self._size("baseBytes", "the memory in use")
        self.narrator.say("Running: its memory is mapped from there, and it goes on.")
        self._go_on(stands, "Running, from Standby")
        self.narrator.say("Standby again: only what changed since is written.")
        self._ask_for("Standby")
        self._size("deltaBytes", "what changed")

    def fork(self) -> None:
        """A second life from where the first one sleeps."""
        self.narrator.say(
            "A fork: another Instance begins with this memory and disk, under a name of its own."
        )
        stood = self._written(NAME)[-1]
        path = self.desk / "fork.yaml"
        path.write_text(FORK_MANIFEST)
        self.narrator.run("cat", str(path))
        self.narrator.run("kubectl", "apply", "-f", str(path))
        self._wait(FORK, "Ready", "forking", CHANGE_SECONDS)
        self._note("Running", FORK, "Running, a fork from Standby")
        self._listen(FORK)
        self._check_fork(stood)
        self.narrator.run("torpor", "tree", NAME)
        self.narrator.say("The source was not touched: it wakes, and goes on from there as well.")
        self._go_on(stood[0], "Running, the source too")

    def stop(self) -> None:
        """An orderly end for the source, while the fork lives."""
        self.narrator.say(
            "Stopped: the guest is shut down in order, its disk stays, its memory is given up."
        )
        self._ask_for("Stopped")
        said = self.narrator.run("torpor", "logs", NAME, "--tail", "1")
        if not said.startswith("stopped at "):
            raise TorporError(f"the workload was not asked to end: its last line is {said!r}")
        before = len(self._counted(FORK))
        self._until(FORK, "the fork counts on", lambda told: len(told) > before)
        self.narrator.note("the fork did not notice")

    def delete(self) -> None:
        """Nothing of both is left."""
        self.narrator.say("Deleted: nothing of them is left.")
        watch = Stopwatch()
        self.narrator.run(
            "kubectl", "delete", "inst", NAME, FORK, "--timeout", f"{CHANGE_SECONDS}s"
        )
        self.narrator.note(f"gone after {watch}")
        if names := self.narrator.ask("kubectl", "get", "inst,pods", "-o", "name").split():
            raise TorporError(f"still there: {' '.join(names)}")
        self.narrator.run("kubectl", "get", "inst")

    def sum_up(self) -> None:
        """The figures in one table."""
        self.narrator.say("What it took, from the new spec to Ready, as a watcher saw it:")
        width = max(len(what) for what, _ in self.times)
        for what, took in self.times:
            self.narrator.note(f"{what:<{width}}  {took}")

    def _rest(self, mode: str) -> int:
        """Ask for a mode in which nothing counts; the number it stands at."""
        self._ask_for(mode)
        stands = self._show(1)
        time.sleep(PAUSE_SECONDS)
        if (now := self._show(1)) != stands:
            raise TorporError(f"the {mode} guest went on counting, from {stands} to {now}")
        return stands

    def _go_on(self, stands: int, what: str) -> None:
        self._ask_for("Running", what)
        told = self._until(NAME, "the guest counts on", lambda told: told[-1][0] > stands + 1)
        self._show(4)
        if [number for number, *_ in told] != list(range(1, len(told) + 1)):
            raise TorporError(f"the guest did not count on from {stands}: {told[-8:]}")
        self.narrator.note(f"after {stands} came {stands + 1}: the same guest, the same memory")

    def _check_fork(self, stood: Line) -> None:
        lines = len(self._written(FORK))  # what comes after these, it wrote when it was Ready
        told = self._until(FORK, "the fork counts", lambda told: len(told) > lines + 1)
        self.narrator.run("sh", "-c", f"torpor logs {FORK} | head -n 3")
        first = stood[0] + 1
        if [number for number, *_ in told] != list(range(first, first + len(told))):
            raise TorporError(f"the fork did not go on from {stood[0]}: {told[:8]}")
        if strange := [line for line in told[lines:] if line[1] != FORK or line[2] == stood[2]]:
            raise TorporError(f"the fork was Ready and took itself for somebody else: {strange[0]}")
        if told[0][1:] != told[-1][1:]:
            self.narrator.note("what it wrote before it was Ready may bear its source's names")
        self.narrator.note(
            f"it went on from {stood[0]} with {first}, with a hostname and machine-id of its own"
        )

    def _ask_for(self, mode: str, what: str = "") -> None:
        """Change the operating mode, wait until it is so, show it, say how long it took."""
        patch = f'{{"spec":{{"operatingMode":"{mode}"}}}}'
        self.narrator.run("kubectl", "patch", "inst", NAME, "--type=merge", "-p", patch)
        self._wait(NAME, "Ready", mode, CHANGE_SECONDS)
        if (state := self._status().get("state")) != mode:
            raise TorporError(f"{NAME} is Ready, and {state} instead of {mode}")
        self._note(mode, NAME, what or mode)

    def _wait(self, name: str, condition: str, meanwhile: str, seconds: int) -> None:
        self.narrator.run(
            "kubectl", "wait", f"--for=condition={condition}", f"inst/{name}",
            f"--timeout={seconds}s", meanwhile=meanwhile,
        )  # fmt: skip

    def _note(self, mode: str, name: str, what: str) -> None:
        """Say how long the last change took, and keep it for the end."""
        took = f"{self.watcher.seconds(name, CHANGE_SECONDS):.2f} s"
        self.narrator.note(f"{mode} {took} after it was asked for")
        self.times.append((what, took))

    def _size(self, key: str, which: str) -> None:
        """Say what the Standby just reached has written, and keep it beside its time."""
        size = rounded(self._status()["snapshot"][key])
        self.narrator.note(f"{size} written: {which}")
        what, took = self.times.pop()
        self.times.append((f"{what}, {size} written", took))

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.narrator.ask("kubectl", "get", "inst", NAME, "-o", "jsonpath={.status}")
        )
        return found

    def _show(self, lines: int) -> int:
        """The end of the counter's log; gives the number it ends with."""
        said = self.narrator.run("torpor", "logs", NAME, "--tail", str(lines))
        return max((number for number, *_ in counted(said)), default=0)

    def _listen(self, name: str) -> None:
        """Hear what the workload has written and will write."""
        self.heard[name] = self.stack.enter_context(following(self.narrator, name))

    def _written(self, name: str) -> list[Line]:
        """All that it has counted by now."""
        return counted(self.narrator.ask("torpor", "logs", name))

    def _counted(self, name: str) -> list[Line]:
        """What was heard of that until now."""
        return counted("".join(self.heard[name]))

    def _until(self, name: str, what: str, condition: Callable[[list[Line]], bool]) -> list[Line]:
        """Everything it counted, once that is as it should be. Raises Timeout."""
        deadline = time.monotonic() + CHANGE_SECONDS
        while not ((told := self._counted(name)) and condition(told)):
            if time.monotonic() > deadline:
                raise Timeout(f"after {CHANGE_SECONDS} s still not so: {what}; {name}: {told[-3:]}")
            time.sleep(LOOK_SECONDS)
        return told


def tell(narrator: Narrator, manifest: Path, desk: Path) -> None:
    """All of it. Raises TorporError when anything is not as it should be."""
    with ExitStack() as stack:
        watcher = stack.enter_context(watching(narrator))
        story = Story(narrator, watcher, manifest, desk, stack)
        for part in (story.run, story.pause, story.sleep, story.fork, story.stop, story.delete):
            part()
        story.sum_up()


def counted(text: str) -> list[Line]:
    """Number, hostname and beginning of the machine-id of every line that counts, in order."""
    found = re.findall(r"(?m)^(\d{1,9}) (\S{1,63}) (\S{1,8})\r?$", text)
    return [(int(number), hostname, machine) for number, hostname, machine in found]
