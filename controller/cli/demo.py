"""``torpor demo``: an Instance lives, from Pending to deleted, on a cluster of its own.

What does not live here: the cluster (``stage``), how commands are shown (``narrator``).
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from controller.cli.narrator import Narrator, Stopwatch
from controller.cli.stage import Stage, abandoned, registry_port, stage, strike
from controller.errors import Rejected, Timeout, TorporError
from controller.local.install import REGISTRY_PORT

TREE = Path(__file__).resolve().parents[2]
EXAMPLE = Path("examples") / "02-counter"
NAME = "counter"
START_SECONDS = 300  # the first start on a machine may have to make the guest's parts
CHANGE_SECONDS = 60
PAUSE_SECONDS = 3.0  # long enough to see that nothing counts
LOOK_SECONDS = 0.3


@click.command()
def demo() -> None:
    """Show an Instance living, from Pending to deleted, on a throw-away cluster.

    Every command is shown as one would type it. Needs root. Leaves nothing behind.
    """
    if os.geteuid() != 0:
        raise Rejected(
            "torpor demo needs root: agents start VMMs under uids of their own; use sudo"
        )
    if not (TREE / EXAMPLE).is_dir():
        raise Rejected(f"there is no {TREE / EXAMPLE}: run it in the source tree, make demo")
    watch, narrator = Stopwatch(), Narrator(TREE)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for left in abandoned():
            narrator.say(f"Removing what a demo that was killed left in {left.base}")
            strike(left, narrator)
        with stage(narrator) as (made, equipped):
            try:
                show(equipped, made)
            except TorporError:
                _explain(equipped)
                raise
            narrator.say("That was it. Everything goes away again.")
    finally:
        signal.signal(signal.SIGTERM, before)
    narrator.note("checked: no process, no mount, no file of it is left (built parts stay cached)")
    narrator.say(f"The whole demo took {watch}.")


def show(narrator: Narrator, made: Stage) -> None:
    """The story. Raises TorporError when anything is not as it should be."""
    manifest = _prepare(narrator, made)
    _run(narrator, manifest)
    stands = _pause(narrator)
    _go_on(narrator, stands)
    _stop(narrator)
    _delete(narrator)


def _prepare(narrator: Narrator, made: Stage) -> Path:
    """A cluster that is up and has the image; returns the manifest that fits its registry."""
    narrator.say("A cluster on this machine: control plane, image registry, operator, one node.")
    watch, port = Stopwatch(), registry_port()
    given = [] if port == REGISTRY_PORT else ["--registry-port", str(port)]
    narrator.run("torpor", "up", "--detach", *given, meanwhile="starting; the first time it builds")
    narrator.note(f"up after {watch}")
    install = made.install
    if install is None:
        raise TorporError(f"torpor up left no cluster in {made.cluster}")
    narrator.say("An image, made of Debian packages: python that counts in memory.")
    build = [str(EXAMPLE / "build-image.sh")]
    if install.registry == REGISTRY_PORT:
        narrator.run(*build, meanwhile="building the image")
        return EXAMPLE / "instance.yaml"
    narrator.run(*build, install.registry_address, meanwhile="building the image")
    manifest = made.base / "instance.yaml"
    text = (TREE / EXAMPLE / "instance.yaml").read_text()
    manifest.write_text(text.replace(f"127.0.0.1:{REGISTRY_PORT}", install.registry_address))
    narrator.note(
        f"port {REGISTRY_PORT} is taken, so the manifest names {install.registry_address}"
    )
    return manifest


def _run(narrator: Narrator, manifest: Path) -> None:
    narrator.say("An Instance is asked for, and comes: Pending, then Running.")
    watch = Stopwatch()
    narrator.run("kubectl", "apply", "-f", str(manifest))
    narrator.run("kubectl", "get", "inst", NAME, "-o", "wide")
    narrator.run(
        "kubectl", "wait", "--for=condition=Ready", f"inst/{NAME}", f"--timeout={START_SECONDS}s",
        meanwhile="pulling the image, booting the guest",
    )  # fmt: skip
    narrator.note(f"Running {watch} after it was asked for")
    narrator.run("kubectl", "get", "inst", NAME, "-o", "wide")
    _until(narrator, "the guest counts", lambda: _count(narrator) >= 3)
    narrator.run("torpor", "logs", NAME, "--tail", "3")


def _pause(narrator: Narrator) -> int:
    narrator.say("Paused: its virtual CPUs stand still, its memory stays.")
    _ask_for(narrator, "Paused")
    narrator.run("torpor", "logs", NAME, "--tail", "1")
    stands = _count(narrator)
    time.sleep(PAUSE_SECONDS)
    narrator.run("torpor", "logs", NAME, "--tail", "1")
    if (now := _count(narrator)) != stands:
        raise TorporError(f"the paused guest went on counting, from {stands} to {now}")
    narrator.note(f"it stood at {stands} for {PAUSE_SECONDS:g} s")
    return stands


def _go_on(narrator: Narrator, stands: int) -> None:
    narrator.say("Running again: it goes on from where it was.")
    _ask_for(narrator, "Running")
    _until(narrator, "the guest counts on", lambda: _count(narrator) > stands + 1)
    narrator.run("torpor", "logs", NAME, "--tail", "4")
    counted = numbers(narrator.ask("torpor", "logs", NAME))
    if counted != list(range(1, len(counted) + 1)):
        raise TorporError(f"the guest did not count on from {stands}: {counted[-8:]}")
    narrator.note(f"after {stands} came {stands + 1}: the same guest, the same memory")


def _stop(narrator: Narrator) -> None:
    narrator.say(
        "Stopped: the guest is shut down in order, its disk stays, its memory is given up."
    )
    _ask_for(narrator, "Stopped")
    said = narrator.run("torpor", "logs", NAME, "--tail", "1")
    if not said.startswith("stopped at "):
        raise TorporError(f"the workload was not asked to end: its last line is {said.strip()!r}")


def _delete(narrator: Narrator) -> None:
    narrator.say("Deleted: nothing of it is left.")
    watch = Stopwatch()
    narrator.run("kubectl", "delete", "inst", NAME, "--timeout", f"{CHANGE_SECONDS}s")
    narrator.note(f"gone after {watch}")
    if names := narrator.ask("kubectl", "get", "inst,pods", "-o", "name").split():
        raise TorporError(f"still there: {' '.join(names)}")
    narrator.run("kubectl", "get", "inst")


def _explain(narrator: Narrator) -> None:
    """What the cluster says of an Instance that is not as it should be."""
    narrator.say("This is not as it should be. What the cluster says of it:")
    with contextlib.suppress(TorporError):  # the failure before this one matters more
        narrator.run("kubectl", "describe", "inst", NAME)


def _ask_for(narrator: Narrator, mode: str) -> None:
    """Change the operating mode, wait until it is so, show it, say how long it took."""
    watch = Stopwatch()
    patch = f'{{"spec":{{"operatingMode":"{mode}"}}}}'
    narrator.run("kubectl", "patch", "inst", NAME, "--type=merge", "-p", patch)
    narrator.run(
        "kubectl", "wait", f"--for=jsonpath={{.status.state}}={mode}", f"inst/{NAME}",
        f"--timeout={CHANGE_SECONDS}s",
    )  # fmt: skip
    narrator.note(f"{mode} {watch} after it was asked for")
    narrator.run("kubectl", "get", "inst", NAME)


def _count(narrator: Narrator) -> int:
    return max(numbers(narrator.ask("torpor", "logs", NAME, "--tail", "3")), default=0)


def numbers(text: str) -> list[int]:
    """The lines that are a number, in order."""
    return [int(line) for line in text.split("\n") if re.fullmatch(r"\d{1,9}\r?", line)]


def _until(narrator: Narrator, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CHANGE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            said = narrator.ask("torpor", "logs", NAME, "--tail", "1").strip()
            raise Timeout(
                f"after {CHANGE_SECONDS} s still not so: {what}; it wrote: {said[:200]!r}"
            )
        time.sleep(LOOK_SECONDS)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
