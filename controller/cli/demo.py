"""``torpor demo``: an Instance lives, from Pending to deleted, on a cluster of its own.

What does not live here: what happens (``story``), the cluster (``stage``), how commands are shown
(``narrator``).
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

import click

from controller.cli.narrator import Narrator, Stopwatch
from controller.cli.stage import Stage, abandoned, registry_port, stage, strike
from controller.cli.story import tell
from controller.errors import Rejected, TorporError
from controller.local.install import REGISTRY_PORT

TREE = Path(__file__).resolve().parents[2]
EXAMPLE = Path("examples") / "02-counter"


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
    """A cluster, and the story on it. Raises TorporError when anything is not as it should be."""
    tell(narrator, _prepare(narrator, made), made.base)


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


def _explain(narrator: Narrator) -> None:
    """What the cluster says of its Instances."""
    narrator.say("This is not as it should be. What the cluster says:")
    with contextlib.suppress(TorporError):  # the failure before this one matters more
        narrator.run("kubectl", "describe", "inst")


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
