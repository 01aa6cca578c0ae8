"""Apt's own list of sources: read, and one entry for backports derived from it.

The derived entry keeps address, signing key and options of the one that apt already trusts, so a
mirror, a proxy or an offline copy goes on being used. Text in, text out. What does not live here:
writing the file and running apt (``packages``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
)


@dataclass(frozen=True)
class Source:
    """One enabled source of binary packages; ``fields`` are deb822's other fields, as written."""

    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)


def parse(name: str, text: str) -> list[Source]:
    """The sources in one file; ``name`` decides the format by its ending, as apt does."""
    return _deb822(text) if name.endswith(".sources") else _one_line(text)


def backports(sources: Iterable[Source], codename: str) -> str | None:
    """A deb822 entry for ``<codename>-backports``; "" if there is one, None if none can be derived.

    The model is the first source that has the main component of the release itself.
    """
    known = list(sources)
    wanted = f"{codename}-backports"
    if any(wanted in source.suites and "main" in source.components for source in known):
        return ""
    for source in known:
        if codename in source.suites and "main" in source.components:
            lines = {"Types": "deb", "URIs": source.uris, "Suites": wanted, "Components": "main"}
            return "".join(f"{key}: {value}\n" for key, value in {**lines, **source.fields}.items())
    return None


def _one_line(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        if match := ONE_LINE.fullmatch(line.split("#", 1)[0].strip()):
            fields = dict(_option(option) for option in (match["options"] or "").split())
            components = tuple(match["rest"].split())
            found.append(Source(match["uri"], (match["suite"],), components, fields))
    return found


def _option(option: str) -> tuple[str, str]:
    """``arch=amd64,arm64`` of the one-line format is ``Architectures: amd64 arm64`` in deb822."""
    key, _, value = option.partition("=")
    names = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
    title = names.get(key, "-".join(part.capitalize() for part in key.split("-")))
    return title, value.replace(",", " ")


def _deb822(text: str) -> list[Source]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        enabled = fields.pop("Enabled", "yes").lower() not in ("no", "false", "0")
        types = fields.pop("Types", "").split()
        uris = fields.pop("URIs", "")
        suites = tuple(fields.pop("Suites", "").split())
        components = tuple(fields.pop("Components", "").split())
        if enabled and "deb" in types and uris:
            found.append(Source(uris, suites, components, fields))
    return found


def _fields(stanza: str) -> dict[str, str]:
    """Field -> value; a continuation line (a key written inline) stays as it is."""
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t" and last:
            fields[last] += f"\n{line}"
        elif ":" in line:
            key, _, value = line.partition(":")
            last = {"uris": "URIs"}.get(key.lower(), "-".join(map(str.capitalize, key.split("-"))))
            fields[last] = value.strip()
    return fields
