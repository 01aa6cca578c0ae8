"""What the README says one can type can be typed; what it names is there."""

import re
from pathlib import Path

import click
import pytest

from controller.api.reasons import REASONS
from controller.api.spec import InstanceSpec
from controller.cli.main import COMMANDS, load

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


TABLE = README.split("| command | what it does |")[1].split("\n\n")[0]


def test_every_command_is_in_the_table_and_no_other():
    assert set(re.findall(r"`torpor ([a-z]+)", TABLE)) == set(COMMANDS)


@pytest.mark.parametrize("usage", re.findall(r"^\| `torpor ([^`]+)`", TABLE, re.MULTILINE))
def test_options_in_the_table_exist(usage):
    name, _, rest = usage.partition(" ")
    options = re.findall(r"(?<![\w-])(--?[A-Za-z][-a-z]*)", rest)
    command = load(name)
    known = {word for p in command.params if isinstance(p, click.Option) for word in p.opts}
    assert set(options) <= known


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z ]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {word for line in targets for word in line.split()}
    assert set(re.findall(r"make ([a-z]+)\b(?= {4}|`)", README)) <= known


def test_every_file_it_names_is_there():
    named = re.findall(r"`((?:controller|core|node|manifests|examples|crds)/[-\w./]*)`", README)
    assert len(named) >= 6
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "controller" / path).exists(), path


def test_every_reason_and_event_it_explains_is_one_that_is_said():
    table = README.split("| reason | what it means | what to do |")[1].split("\n\n")[0]
    reasons = set(re.findall(r"`([A-Z]\w+)`", "".join(re.findall(r"(?m)^\|[^|]+\|", table))))
    assert len(reasons) >= 10
    assert reasons <= {word for words in REASONS.values() for word in words}
    events = set(re.findall(r"`([A-Z][a-z]\w+)`", README.split("Events of a sleep: ")[1][:400]))
    told = "".join(path.read_text() for path in (ROOT / "controller" / "node").glob("act*.py"))
    assert len(events) >= 8
    assert events <= set(re.findall(r'"(\w+)"', told))


def test_every_field_of_the_spec_is_in_its_table():
    table = README.split("| field of `spec` |")[1].split("\n\n")[0]
    fields = {field.alias or name for name, field in InstanceSpec.model_fields.items()}
    assert fields <= set(re.findall(r"`([a-zA-Z]+)(?:\.[a-z]+)?`", table))
    assert set(re.findall(r"`([a-zA-Z]+)\.[a-z]+`", table)) <= fields
