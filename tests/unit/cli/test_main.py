"""The command group: what it lists, how it finds a command, what it does not import."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from controller.cli import main as group

HEAVY = ("kopf", "kubernetes", "pydantic", "rich", "aiohttp", "numpy")


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controller", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def test_help_lists_every_command_and_imports_no_heavy_library():
    code = (
        "import sys; from controller.cli.main import torpor\n"
        "torpor.main(['--help'], standalone_mode=False)\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "HEAVY []" in answer.stdout
    for name in group.COMMANDS:
        assert f"\n  {name} " in answer.stdout


@pytest.mark.parametrize("name", sorted(group.COMMANDS))
def test_every_listed_command_loads_under_its_own_name(name):
    command = group.load(name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help, "a command without help"


def test_a_command_whose_module_cannot_be_imported_fails_alone(monkeypatch, capsys):
    monkeypatch.setitem(group.COMMANDS, "broken", group.Entry("no_such_module", "x", "Broken."))
    monkeypatch.setattr(sys, "argv", ["torpor", "broken"])
    with pytest.raises(SystemExit) as ended:
        group.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("torpor: the command 'broken' cannot be loaded")


def test_an_unknown_command_is_a_usage_error_that_names_the_known_ones():
    answer = run("upp")
    assert answer.returncode == 2
    assert "up, status, down" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_unknown_option_is_a_usage_error():
    assert run("--nonsense").returncode == 2


def test_no_arguments_show_the_help_and_exit_as_wrong_usage():
    answer = run()
    assert answer.returncode == 2
    assert "Commands:" in answer.stdout + answer.stderr


def test_the_version_is_the_packages_own():
    from controller import __version__

    answer = run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"torpor {__version__}\n")


def test_a_reader_that_goes_away_is_no_error_message():
    command = f"{sys.executable} -m controller --help | true; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.stderr == ""
    assert answer.returncode in (0, 1)  # 0 when all was written before the reader went


@pytest.mark.parametrize(
    ("argv0", "name"),
    [
        ("/usr/local/bin/torpor", "torpor"),
        ("/usr/local/bin/kubectl-torpor", "kubectl torpor"),
        ("/x/controller/__main__.py", "torpor"),
    ],
)
def test_usage_lines_show_how_the_command_was_called(argv0, name):
    assert group.program_name(argv0) == name


def test_the_installed_scripts_point_at_main():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'torpor = "controller.cli.main:main"' in text
    assert 'kubectl-torpor = "controller.cli.main:main"' in text
