"""Asking a registry, through skopeo: the manifest of a reference, the blobs of an image.

Its error texts become reasons here and nowhere else. What does not live here: judging what came
(``manifest``, ``layers``), and credentials, which skopeo finds by itself in ``auth_file``.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller.errors import Blocked, Retry, Timeout
from controller.images.manifest import MANIFEST_BYTES, Manifest
from controller.images.reference import Reference
from controller.images.tool import Finished, Limits, run

ASK_DEADLINE = 60.0
COPY_DEADLINE = 3600.0
SILENCE = 60.0  # seconds without one byte before a copy is given up
_SLACK = 1024 * 1024

# first match wins: a refused login also says "not found" in some registries
_REASONS = (
    ("NoSpace", r"no space left on device|disk quota exceeded"),
    (
        "RegistryTLS",
        r"x509:|tls:|certificate|server gave HTTP response to HTTPS|TLS handshake",
    ),
    ("ImageDenied", r"unauthorized|denied|authentication required|status 40[13]|40[13] \("),
    ("ImageNotFound", r"manifest unknown|name unknown|not found|status 404|404 \("),
    ("ImageUnpackFailed", r"digest did not match|does not match|file too large"),
)
_REMEDIES = {
    "NoSpace": "free some on the node's state directory",
    "RegistryTLS": "fix its certificate, or name it in insecure_registries of the node's settings",
    "ImageDenied": "check the name and the node's credentials",
    "ImageNotFound": "check the name and tag, or push it",
    "ImageUnpackFailed": "what it serves is not what the manifest names; push the image again",
    "RegistryUnreachable": "check the registry and the node's network",
}


@dataclass(frozen=True)
class Registry:
    """How to reach registries, each named as host[:port].

    Those in ``insecure`` need no TLS; those and the ones in ``local`` may be on the node itself.
    """

    skopeo: str
    insecure: frozenset[str]
    local: frozenset[str] = frozenset()
    auth_file: Path | None = None

    async def manifest(self, reference: Reference, home: Path) -> bytes:
        """The raw manifest or index. Raises Retry or Blocked with one of the reasons above."""
        self._check_allowed(reference)
        argv = [*self._skopeo("inspect", "--raw", "--tls-verify", reference), _url(reference)]
        limits = Limits(ASK_DEADLINE, output=MANIFEST_BYTES + 1)
        return (await self._ask(argv, limits, reference, home)).stdout

    async def copy(
        self, reference: Reference, manifest: Manifest, into: Path, arrived: Callable[[], int]
    ) -> None:
        """Write the blobs of ``manifest`` (found at ``reference``) to ``into``, named by hex.

        ``arrived``: bytes so far, to see silence by. Nothing is verified here. Raises as above.
        """
        self._check_allowed(reference)
        largest = max(blob.size for blob in (manifest.config, *manifest.layers))
        limits = Limits(
            COPY_DEADLINE,
            file_bytes=max(largest, MANIFEST_BYTES) + _SLACK,
            stall=SILENCE,
            progress=arrived,
        )
        argv = self._skopeo("copy", "--quiet", "--src-tls-verify", reference)
        await self._ask([*argv, _url(reference), f"dir:{into}"], limits, reference, into.parent)

    def _skopeo(self, verb: str, flag: str, verify: str, reference: Reference) -> list[str]:
        auth = [] if self.auth_file is None else [f"--authfile={self.auth_file}"]
        secure = str(reference.registry not in self.insecure).lower()
        return [self.skopeo, *_policy(), verb, flag, f"{verify}={secure}", *auth]

    async def _ask(
        self, argv: list[str], limits: Limits, reference: Reference, home: Path
    ) -> Finished:
        try:
            done = await run(argv, limits, home=home)
        except Timeout as err:
            raise _failure("RegistryUnreachable", reference, str(err)) from err
        if re.search(r"invalid reference format|64-byte hexadecimal", done.stderr):
            raise Blocked(
                f"{reference}: {_cause(done.last_words)}; name the image otherwise",
                reason="InvalidImageReference",
            )
        if done.status != 0:
            raise _failure(_reason(done.stderr), reference, _cause(done.last_words))
        return done

    def _check_allowed(self, reference: Reference) -> None:
        """A user's reference must not make the node ask itself or its cloud's metadata service."""
        if reference.registry in self.insecure | self.local:
            return
        host = re.sub(r":[0-9]+$", "", reference.registry).strip("[]")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            inside = host == "localhost" or host.endswith(".localhost")
        else:
            inside = address.is_loopback or address.is_link_local or address.is_unspecified
        if inside:
            raise Blocked(
                f"{reference}: the registry {reference.registry} is an address of the node itself;"
                " an admin can allow it in insecure_registries of the node's settings",
                reason="RegistryNotAllowed",
            )


def _policy() -> list[str]:
    # the admin's signature policy where there is one; skopeo refuses to start without any
    return [] if Path("/etc/containers/policy.json").exists() else ["--insecure-policy"]


def _url(reference: Reference) -> str:
    if reference.digest is not None:  # skopeo takes a tag or a digest, never both
        return f"docker://{reference.at(reference.digest)}"
    return f"docker://{reference}"


def _reason(stderr: str) -> str:
    for reason, pattern in _REASONS:
        if re.search(pattern, stderr, re.IGNORECASE):
            return reason
    return "RegistryUnreachable"


def _cause(words: str) -> str:
    message = re.search(r'msg="((?:[^"\\]|\\.)*)"', words)
    text = message[1].replace('\\"', '"') if message else words
    return re.sub(r'^Error parsing image name "[^"]*": ', "", text)


def _failure(reason: str, reference: Reference, cause: str) -> Retry:
    return Retry(f"{reference}: {cause}; {_REMEDIES[reason]}", reason=reason)
