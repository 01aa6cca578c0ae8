"""``torpor plan``: what a node would do about an Instance, offline.

The same pure function that node agents use, on a manifest and on a look at a host that somebody
wrote down (``seen``). What does not live here: any decision.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import click
import yaml

from controller.cli import seen as forms
from controller.core import invariants, placement, wish
from controller.core.backoff import Backoff
from controller.core.desired import Desired
from controller.core.plan import plan as make_plan
from controller.core.rules import Rules
from controller.core.steps import Plan, Step
from controller.errors import Rejected
from controller.kube.resources import INSTANCES, Object
from controller.operator import defaults
from controller.settings import Defaults, NodeSettings
from controller.vmm import registry

_OFFLINE = "offline"


def _print_example(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(json.dumps(forms.example(), indent=2))
        ctx.exit()


@click.command(epilog="A fact in SEEN is its value, \"absent\", or {\"unknown\": WHY}; one that is "
               "left out is absent. --example-seen prints one with every key.")  # fmt: skip
@click.option("-f", "--filename", "manifest", type=click.File(), required=True,
              help="A manifest, or a live object (kubectl get -o yaml); - is stdin.")  # fmt: skip
@click.option("--seen", type=click.File(), help="JSON: what is on the host; default: nothing.")
@click.option("--example-seen", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_example, help="Print an example of SEEN and exit.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def plan(manifest: TextIO, seen: TextIO | None, output: str) -> None:
    """Print the plan for an Instance, offline: from what is seen to what is asked, and why.

    A manifest counts as placed and reserved, with the operator's defaults where its spec is
    silent; without SEEN the source of a fork counts as asleep. A live object counts as it is.
    """
    instance = _settled(_instance(manifest))
    desired = wish.desired(instance)
    observed, now = forms.parse(_assumed(instance) if seen is None else _json(seen), desired)
    made = make_plan(desired, observed, now, _rules(desired, observed.record))
    invariants.check(made, observed)
    if output == "json":
        click.echo(json.dumps(as_json(made), indent=2))
    else:
        click.echo("\n".join(lines(made, f"{desired.namespace}/{desired.name}", now)))


def lines(made: Plan, name: str, now: float) -> list[str]:
    """The plan for a person."""
    shown = [
        name,
        f"  from     {made.origin.value}",
        f"  to       {made.target.value}",
        f"  way      {' → '.join(state.value for state in made.way)}",
        f"  because  {made.because}",
    ]
    width = max((len(_call(step)) for step in made.steps), default=0)
    for number, step in enumerate(made.steps, 1):
        head = "steps" if number == 1 else ""
        shown.append(f"  {head:<7}  {number}. {_call(step):<{width}}  {_what(step)}")
    if made.waiting is not None:
        stalled = " (nothing changes until somebody acts)" if made.waiting.stalled else ""
        shown.append(f"  waiting  {made.waiting.reason}: {made.waiting.message}{stalled}")
    if made.wake_at is not None:
        shown.append(f"  looks    again in {max(0.0, made.wake_at - now):g} s at the latest")
    if made.settled:
        shown.append("  settled  nothing to do")
    return shown


def as_json(made: Plan) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "from": made.origin.value,
        "to": made.target.value,
        "way": [state.value for state in made.way],
        "steps": [{"name": step.name, **_arguments(step)} for step in made.steps],
        "because": made.because,
        "waiting": None if made.waiting is None else dataclasses.asdict(made.waiting),
        "wakeAt": made.wake_at,
        "settled": made.settled,
        "sentence": made.sentence,
    }


def _call(step: Step) -> str:
    given = ", ".join(f"{key}={value}" for key, value in _arguments(step).items())
    return f"{step.name}({given})" if given else step.name


def _arguments(step: Step) -> dict[str, Any]:
    return dataclasses.asdict(step)


def _what(step: Step) -> str:
    return (type(step).__doc__ or "").splitlines()[0]


def _rules(desired: Desired, record: object) -> Rules:
    """As a node with default settings has them."""
    settings = NodeSettings(
        node_name=_OFFLINE, install_id="00000000", state_dir=Path("/"), run_dir=Path("/"),
        hypervisors=("qemu", "hollow"),
    )  # fmt: skip
    hardware = getattr(record, "hardware", desired.hardware)
    driver = registry.drivers(settings).get(hardware.hypervisor if hardware else "")
    backoff = Backoff(
        settings.restart_backoff_seconds,
        settings.restart_backoff_cap_seconds,
        settings.restart_reset_seconds,
    )
    edges = driver.capabilities.edges if driver else frozenset()
    return Rules(edges, backoff, settings.boot_deadline_seconds)


def _settled(instance: Object) -> Object:
    """A live object as it is; a manifest as the operator leaves it once it is placed."""
    meta = instance["metadata"]
    if meta.get("uid"):
        return instance
    spec = instance.get("spec") or {}
    hardware = defaults.hardware(spec, Defaults())
    meta = {"namespace": "default", "generation": 1, **meta, "uid": _OFFLINE}
    status = {
        "epoch": 1,
        "nodeName": _OFFLINE,
        "reservation": _OFFLINE,
        "resources": placement.resources(hardware),
        "conditions": [{"type": "Scheduled", "status": "True"}],
    }
    if spec.get("forkFrom"):
        status["lineage"] = {"parent": _OFFLINE, "root": _OFFLINE, "depth": 1}
    return {**instance, "metadata": meta, "spec": spec, "status": status}


def _assumed(instance: Object) -> dict[str, Any]:
    """A host that never saw it: every fact is absent, but for the source of a fork."""
    source = (instance.get("spec") or {}).get("forkFrom")
    if not source:
        return {}
    state = {"state": "Standby", "started": True, "memory": True}
    return {"source": {"name": source["name"], **state}}


def _instance(file: TextIO) -> Object:
    try:
        documents = [each for each in yaml.safe_load_all(file) if each is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise Rejected(f"{file.name} is no YAML: {' '.join(str(err).split())[:200]}") from err
    found = [each for each in documents if _is_instance(each)]
    if len(found) != 1:
        raise Rejected(f"{file.name} has {len(found)} Instances; one is expected "
                       f"(apiVersion {INSTANCES.api_version}, kind Instance)")  # fmt: skip
    if not isinstance(found[0].get("metadata"), Mapping) or "name" not in found[0]["metadata"]:
        raise Rejected(f"{file.name}: metadata.name is missing")
    return dict(found[0])


def _is_instance(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    return (document.get("apiVersion"), document.get("kind")) == (INSTANCES.api_version, "Instance")


def _json(file: TextIO) -> Any:
    try:
        return json.load(file)
    except ValueError as err:
        raise Rejected(f"{file.name} is no JSON: {err}; --example-seen prints one") from err
