"""Rules about the source itself: sizes, charters, names, floors, and no registry's address."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_MODULE = 400
LONGEST_FUNCTION = 70
MEDIAN_MODULE = 160
MEDIAN_FUNCTION = 10
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|base|misc)($|_)")

# hosts that may be named: documentation of formats, and names reserved for examples
KNOWN_HOSTS = re.compile(
    r"^(?:localhost|127\.\d+\.\d+\.\d+|\[[0-9a-f:]+\]|0\.0\.0\.0|169\.254\.\d+\.\d+|10\.\d+\.\d+\.\d+"
    r"|keepachangelog\.com|semver\.org|www\.apache\.org|kubernetes\.io|json-schema\.org"
    r"|[a-z0-9.-]+\.(?:example|invalid|test|local|svc|internal)|(?:[a-z0-9-]+\.)?example\.(?:com|org)"
    r"|torpor\.dev|github\.com|[a-z0-9-]+)$"
)
URL = re.compile(r"\b(?:https?|git|ftp)://(\[[^\]]*\]|[A-Za-z0-9.-]+)")
# where packages come from: named by the machine's own settings, never by this tree
REGISTRY = re.compile(
    r"\b(?:deb|security|snapshot|archive|ports|index|static|files|proxy|sum|registry|repo1?|pkg"
    r"|central)\.(?:debian|ubuntu|crates|rust-lang|pypi|python[h]osted|golang|npmjs|maven|sonatype)\."
    r"|\bpypi\.(?:org|io|python)\b|\bcrates\.io\b|\bgo\.dev/dl\b",
    re.IGNORECASE,
)


@cache
def tracked(*patterns: str) -> tuple[Path, ...]:
    """Files that git knows, or would add: what is ignored is nobody's source."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return tuple(ROOT / name for name in sorted(filter(None, listed.split("\0"))))


def modules() -> tuple[Path, ...]:
    return tuple(path for path in tracked("controller/*.py") if path.is_file())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines of code and comment without the docstring) of each function in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            documented = ast.get_docstring(node, clean=False) is not None
            first = body[0].end_lineno if documented else node.lineno
            found.append((node.name, (node.end_lineno or 0) - (first or 0)))
    return found


def test_there_are_modules_to_look_at():
    assert len(modules()) > 20


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_is_short_and_says_what_lives_in_it(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert len(ast.get_docstring(ast.parse(text)) or "") > 30, "a docstring that says what is here"
    too_long = [name for name, lines in functions(path) if lines > LONGEST_FUNCTION]
    assert not too_long


def test_the_usual_module_and_function_are_short():
    sizes = [len(path.read_text().splitlines()) for path in modules()]
    lengths = [lines for path in modules() for _, lines in functions(path)]
    assert statistics.median(sizes) <= MEDIAN_MODULE
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_every_package_has_a_charter():
    folders = {path.parent for path in modules()}
    without = [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without


def test_no_room_is_named_for_nothing_in_particular():
    parts = {part for path in modules() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not [part for part in parts if FORBIDDEN_NAMES.search(part)]


def test_the_top_level_is_as_the_plan_says():
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= {
        "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "build", "constraints.txt",
        "controller", "crds", "examples", "manifests", "pyproject.toml", "tests",
    }  # fmt: skip


def test_constraints_are_plain_pins():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert pins
    assert not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)]


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = (ROOT / "constraints.txt").read_text().split()
    assert not {plain(entry) for entry in wanted} - {plain(pin) for pin in pins}


def plain(requirement: str) -> str:
    """types-pyyaml of "types-PyYAML>=6"."""
    name = re.split(r"[<>=!~ \[]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_package_registry():
    """Addresses of registries are the machine's own settings; a copy here would go stale."""
    bad = []
    for path in tracked():
        for number, line in enumerate(lines_of(path), 1):
            unknown = [host for host in URL.findall(line) if not KNOWN_HOSTS.match(host)]
            if unknown or REGISTRY.search(line):
                bad.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not bad


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (UnicodeDecodeError, FileNotFoundError):  # not text; or deleted and not yet committed
        return []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("URIs: http://" + "deb." + "debian.org/debian", True),
        ("see pypi" + ".org for it", True),
        ("GOPROXY=https://" + "proxy." + "golang.org", True),
        ("index-url = https://" + "files." + "python" + "hosted.org/x", True),
        ("docker://127.0.0.1:5000/app:1", False),
        ("k8s.io/kubernetes v1.36.3", False),
    ],
)
def test_the_pattern_knows_a_registry_when_it_sees_one(line, named):
    assert bool(REGISTRY.search(line)) is named


def test_the_floors_hold():
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
