"""Where the API server is and who we are: a kubeconfig, or the Pod we run in.

Tokens in files are read again every ten seconds (they rotate under us) and after a 401. Inline
certificates become files only while TLS loads them. What does not live here: requests, retries.
"""

import asyncio
import base64
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import incluster_config
from kubernetes.aio.config.kube_config import KubeConfigLoader

from controller.errors import Unreachable

TOKEN_REREAD = 10.0  # seconds

log = logging.getLogger(__name__)


class TokenFile:
    """A ``refresh_api_key_hook``: keeps the bearer token of a file current.

    A file that is missing or empty for a moment (rotation) leaves the last good token in force.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next = float("-inf")

    def __call__(self, configuration: Any) -> None:
        if self._clock() < self._next:
            return
        self._next = self._clock() + TOKEN_REREAD
        try:
            token = self._path.read_text().strip()
        except OSError as error:
            log.warning("token file %s: %s; the last token stays in use", self._path, error)
            return
        if token:
            configuration.api_key["BearerToken"] = f"Bearer {token}"


async def load(kubeconfig: Path | None) -> tuple[Any, str]:
    """An ``ApiClient`` and the fingerprint of all in it but the token.

    ``kubeconfig`` None means in-cluster. Raises Unreachable naming the file and the remedy.
    """
    configuration = Configuration()
    with tempfile.TemporaryDirectory(prefix="torpor-kubeconfig-") as scratch:
        if kubeconfig is None:
            _load_in_cluster(configuration)
        else:
            await _load_kubeconfig(configuration, kubeconfig, Path(scratch))
        _keep_loopback_direct(configuration)
        try:
            # TLS reads its files here, so inline keys need not stay on disk.
            return ApiClient(configuration), _fingerprint(configuration)
        except OSError as error:  # ssl.SSLError is one
            raise Unreachable(
                f"the certificates of {kubeconfig or 'the service account'} do not load: {error}",
                reason="BadKubeconfig",
            ) from error


def _load_in_cluster(configuration: Any) -> None:
    try:
        kube_config.load_incluster_config(configuration, try_refresh_token=False)
    except kube_config.ConfigException as error:
        raise Unreachable(
            f"no kubeconfig given and not inside a cluster ({error}); pass --kubeconfig FILE",
            reason="NoKubeconfig",
        ) from error
    hook = TokenFile(Path(incluster_config.SERVICE_TOKEN_FILENAME))
    hook(configuration)
    configuration.refresh_api_key_hook = hook


async def _load_kubeconfig(configuration: Any, path: Path, scratch: Path) -> None:
    document = _read(path)
    try:
        _inline_to_files(document, scratch)
        loader = KubeConfigLoader(config_dict=document, config_base_path=str(path.parent))
        token_file = _take_token_file(document, loader, path.parent)
        await loader.load_and_set(configuration)
    except (kube_config.ConfigException, KeyError, TypeError, ValueError) as error:
        raise Unreachable(
            f"kubeconfig {path} is not usable: {error}; check current-context, cluster and user",
            reason="BadKubeconfig",
        ) from error
    if token_file is not None:
        hook = TokenFile(token_file)
        hook(configuration)
        configuration.refresh_api_key_hook = hook
    elif loader._user is not None and "exec" in loader._user:
        configuration.refresh_api_key_hook = _exec_hook(loader)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Unreachable(
            f"cannot read kubeconfig {path}: {error}; pass --kubeconfig FILE",
            reason="BadKubeconfig",
        ) from error
    if not isinstance(document, dict):
        raise Unreachable(f"kubeconfig {path} is empty or no mapping", reason="BadKubeconfig")
    return document


def _inline_to_files(document: dict[str, Any], scratch: Path) -> None:
    """The library would leave inline keys in /tmp until exit, for ever after a SIGKILL."""
    for section, inner in (("clusters", "cluster"), ("users", "user")):
        for number, entry in enumerate(document.get(section) or ()):
            values = entry.get(inner) or {}
            for key in [key for key in values if key.endswith("-data")]:
                target = scratch / f"{inner}-{number}-{key}"
                target.write_bytes(base64.b64decode(values.pop(key)))
                values[key.removesuffix("-data")] = str(target)


def _take_token_file(document: dict[str, Any], loader: Any, base: Path) -> Path | None:
    """``tokenFile`` of the current user, taken out: the library would read it only once."""
    name = loader.current_context["context"].get("user")
    for entry in document.get("users") or ():
        user = entry.get("user") or {}
        if entry.get("name") == name and "tokenFile" in user:
            return base / str(user.pop("tokenFile"))
    return None


def _exec_hook(loader: Any) -> Callable[[Any], Any]:
    async def refresh(configuration: Any) -> None:
        await loader.load_from_exec_plugin()  # a no-op until the plugin's token expires
        if token := getattr(loader, "token", None):
            configuration.api_key["BearerToken"] = token

    return refresh


def _keep_loopback_direct(configuration: Any) -> None:
    """As Go's clients: an HTTP proxy from the environment is never asked for a loopback server."""
    host = urlsplit(configuration.host).hostname or ""
    if host == "localhost" or host == "::1" or host.startswith("127."):
        configuration.client_session_kwargs = {"trust_env": False}


def _fingerprint(configuration: Any) -> str:
    digest = hashlib.sha256()
    for key in ("host", "verify_ssl", "tls_server_name", "proxy"):
        digest.update(repr(getattr(configuration, key, None)).encode() + b"\0")
    for key in ("ssl_ca_cert", "cert_file", "key_file"):
        path = getattr(configuration, key, None)
        digest.update((Path(path).read_bytes() if path else b"") + b"\0")
    return digest.hexdigest()


class Credentials:
    """The live ``ApiClient`` of one kubeconfig, replaced when server or certificates changed."""

    def __init__(self, kubeconfig: Path | None) -> None:
        self._kubeconfig = kubeconfig
        self._fingerprint = ""
        self._lock = asyncio.Lock()
        self._loaded_at = float("-inf")
        self._source = kubeconfig or Path(incluster_config.SERVICE_CERT_FILENAME)
        self._source_state: tuple[int, ...] = ()
        self.api: Any = None

    async def load(self) -> None:
        """Read everything again; the same sessions stay if only the token changed."""
        self._source_state = _file_state(self._source)
        api, fingerprint = await load(self._kubeconfig)
        self._loaded_at = time.monotonic()
        if self.api is not None and fingerprint == self._fingerprint:
            fresh = api.configuration
            self.api.configuration.api_key = fresh.api_key
            self.api.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook
            await api.close()
            return
        old, self.api, self._fingerprint = self.api, api, fingerprint
        if old is not None:
            await old.close()

    async def renew(self, since: float) -> None:
        """Read again unless somebody did after ``since`` (time.monotonic), many callers at once."""
        async with self._lock:
            if self._loaded_at <= since:
                await self.load()

    async def renew_if_rewritten(self) -> bool:
        """Read again if the file changed since: the server may have moved, its CA be replaced."""
        async with self._lock:
            if _file_state(self._source) == self._source_state:
                return False
            await self.load()
            return True

    async def authorization(self) -> str | None:
        """The Authorization header's value; None with client certificates."""
        key = await self.api.configuration.get_api_key_with_prefix(
            "BearerToken", alias="authorization"
        )
        return str(key) if key else None

    async def close(self) -> None:
        if self.api is not None:
            await self.api.close()


def _file_state(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)
