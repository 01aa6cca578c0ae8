"""Every word that the decisions say in a condition is explained, and fits Kubernetes' form."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.api.reasons import IMAGE, REASONS, TYPES

CONTROLLER = Path(__file__).resolve().parents[3] / "controller"
# the position of the reason in each call that makes one; they flow into Ready and its companions
_WAITS = {"Waiting": 0, "_wait": 2, "NoSource": 0}


def calls(*folders: str) -> Iterator[tuple[Path, ast.Call, str]]:
    for folder in folders:
        for file in sorted((CONTROLLER / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    yield file, node, name


def literal(node: ast.Call, position: int) -> str | None:
    """The constant text at that position, None when it is computed."""
    if len(node.args) <= position:
        return None
    given = node.args[position]
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None


def said_in_core() -> set[tuple[str, str]]:
    found = set()
    for _, node, name in calls("core"):
        if name == "Condition" and (kind := literal(node, 0)) and (reason := literal(node, 2)):
            found.add((kind, reason))
        elif name in _WAITS and (reason := literal(node, _WAITS[name])):
            found.add(("Ready", reason))
    return found


def said_about_images() -> set[str]:
    words = set()
    for _, node, _ in calls("images"):
        for keyword in node.keywords:
            if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant):
                words.add(str(keyword.value.value))
    return words


def test_every_reason_that_core_says_is_explained() -> None:
    said = said_in_core()
    assert len(said) > 15, "the reading of core finds nothing any more"
    unexplained = {(kind, reason) for kind, reason in said if reason not in REASONS[kind]}
    assert not unexplained, "add them to controller/api/reasons.py with their meaning"


def test_every_reason_that_images_say_is_explained() -> None:
    said = said_about_images()
    assert said & set(IMAGE)
    tools = {"ToolMissing"}  # a broken node, not a word about an image
    assert not said - set(IMAGE) - tools, "add them to controller/api/reasons.py"


@pytest.mark.parametrize("kind", REASONS)
def test_words_are_single_camel_case_words(kind: str) -> None:
    for word, meaning in REASONS[kind].items():
        assert re.fullmatch("([A-Z][a-z]+|TLS)+", word), word
        assert meaning
        assert not meaning.endswith(".")


def test_every_type_has_reasons() -> None:
    assert set(TYPES) == set(REASONS)
