"""``torpor doctor``: one line for each look, and an exit code that scripts can use."""

import json

import pytest
from click.testing import CliRunner

from controller.cli import doctor as command
from controller.local.setup.findings import Check, error, ok, warning

FINE = Check("fine", lambda: ok("as it should be"))
LESS = Check("less", lambda: warning("slow", "buy a faster one"))
BAD = Check("bad", lambda: error("missing", "install it"))


def run(monkeypatch, checks, *args):
    monkeypatch.setattr(command, "checks", lambda state_dir: checks)
    return CliRunner().invoke(command.doctor, args, standalone_mode=False)


@pytest.mark.parametrize(
    ("checks", "code"), [([FINE], 0), ([FINE, LESS], 0), ([BAD], 1), ([BAD, FINE], 1)]
)
def test_only_an_error_fails(monkeypatch, checks, code):
    assert run(monkeypatch, checks).return_value == code


def test_a_line_has_level_name_finding_and_remedy(monkeypatch):
    lines = run(monkeypatch, [FINE, LESS]).output.splitlines()
    assert lines[0].split(maxsplit=2) == ["ok", "fine", "as it should be"]
    assert lines[1].split(maxsplit=2) == ["warning", "less", "slow → buy a faster one"]


def test_json_says_the_same(monkeypatch):
    answer = run(monkeypatch, [FINE, BAD], "-o", "json")
    assert answer.return_value == 1
    assert json.loads(answer.output) == [
        {"name": "fine", "level": "ok", "said": "as it should be", "remedy": ""},
        {"name": "bad", "level": "error", "said": "missing", "remedy": "install it"},
    ]


def test_check_names_are_unique(tmp_path):
    names = [check.name for check in command.checks(tmp_path)]
    assert len(names) == len(set(names))
