"""OCI references: ``[registry/]path[:tag][@digest]`` (pure).

The rules are those of the Instance's schema or stricter, because objects outlive schemas. What
does not live here: asking a registry anything, and which one a name without a registry means.
"""

import ipaddress
import re
from dataclasses import dataclass

from controller.errors import Rejected

MAX_LENGTH = 512
_MAX_REPOSITORY = 255  # registries refuse longer ones
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TRANSPORTS = re.compile(
    r"(?:file|dir|oci|oci-archive|docker-archive|docker-daemon|containers-storage|sif):"
)
_EXAMPLE = "write it as registry.example.com/team/app:1"


@dataclass(frozen=True)
class Reference:
    """Where an image is: ``registry`` (host[:port]), ``path``, and a tag, a digest, or both.

    An empty registry is the one that every client takes by default. With neither tag nor digest
    given, ``tag`` is "latest". A digest wins over a tag.
    """

    registry: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def repository(self) -> str:
        """Registry and path, without tag and digest."""
        return f"{self.registry}/{self.path}" if self.registry else self.path

    def at(self, digest: str) -> "Reference":
        """The same repository at exactly this digest."""
        return Reference(self.registry, self.path, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """True for ``sha256:`` and 64 lower-case hex digits: only that may become a file name."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str, *, field: str = "spec.image") -> Reference:
    """``text`` as a Reference; ``field`` is named in the error. Raises Rejected."""
    if not text or len(text) > MAX_LENGTH:
        raise _rejected(field, text, f"1 to {MAX_LENGTH} characters are allowed", _EXAMPLE)
    if not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
        raise _rejected(field, text, "only visible ASCII is allowed", _EXAMPLE)
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _rejected(
            field, text, "what follows @ is no sha256 digest", "use @sha256:<64 lower-case hex>"
        )
    if _TRANSPORTS.match(name):
        raise _rejected(
            field, text, "files, archives and daemons are no registry", f"push it and {_EXAMPLE}"
        )
    registry, slash, rest = name.partition("/")
    if not slash or not _names_a_host(registry):
        registry, rest = "", name
    else:
        _check_host(field, text, registry)
    path, tag = _path_and_tag(field, text, rest)
    _check_path(field, text, registry, path)
    return Reference(registry, path, tag or (None if at else "latest"), digest or None)


def _path_and_tag(field: str, text: str, rest: str) -> tuple[str, str | None]:
    path, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _rejected(
            field, text, f"{_cut(tag)} is no tag", "use letters, digits, _ . - (at most 128)"
        )
    return path, tag or None


def _names_a_host(registry: str) -> bool:
    # the rule every client has: without a dot, a port or "localhost" it would be a path
    return "." in registry or ":" in registry or registry == "localhost"


def _check_host(field: str, text: str, registry: str) -> None:
    match = _HOST.fullmatch(registry)
    if match is None:
        raise _rejected(
            field, text, f"{_cut(registry)} is no registry", "use host or host:port, no scheme"
        )
    port = match["port"]
    if port is not None and not 1 <= int(port) <= 65535:
        raise _rejected(field, text, f"{port} is no port", "use 1 to 65535")
    if registry.startswith("["):
        try:
            ipaddress.IPv6Address(registry[1:].partition("]")[0])
        except ValueError as err:
            raise _rejected(field, text, f"{_cut(registry)} is no IPv6 address", _EXAMPLE) from err


def _check_path(field: str, text: str, registry: str, path: str) -> None:
    for part in path.split("/"):
        if not _COMPONENT.fullmatch(part):
            raise _rejected(
                field,
                text,
                f"{_cut(part)} is no name in a repository",
                "use lower-case letters and digits, single . or _ or - between them",
            )
    if len(registry) + 1 + len(path) > _MAX_REPOSITORY:
        raise _rejected(field, text, f"the name is over {_MAX_REPOSITORY} characters", _EXAMPLE)


def _rejected(field: str, text: str, what: str, remedy: str) -> Rejected:
    return Rejected(
        f"{field}: {_cut(text)} is not a valid image reference: {what}; {remedy}",
        reason="InvalidImageReference",
    )


def _cut(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
