"""kubeconfig files for the local cluster. What does not live here: keys and tokens (pki, nodes)."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import yaml

from controller.host.files import write_atomic
from controller.local.pki import Credential


def write(path: Path, server: str, ca_pem: bytes, user: dict[str, Any]) -> None:
    """Write ``path`` (0600) with one cluster, one user and one context, all named torpor."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "torpor",
                "cluster": {"server": server, "certificate-authority-data": _text(ca_pem)},
            }
        ],
        "users": [{"name": "torpor", "user": user}],
        "contexts": [{"name": "torpor", "context": {"cluster": "torpor", "user": "torpor"}}],
        "current-context": "torpor",
    }
    write_atomic(path, yaml.safe_dump(document, sort_keys=False).encode())


def by_certificate(credential: Credential) -> dict[str, Any]:
    """A user who shows a client certificate."""
    return {
        "client-certificate-data": _text(credential.certificate),
        "client-key-data": _text(credential.key),
    }


def by_token_file(path: Path) -> dict[str, Any]:
    """A user whose token is in a file that somebody renews; clients read it again."""
    return {"tokenFile": str(path)}


def _text(data: bytes) -> str:
    return b64encode(data).decode()
