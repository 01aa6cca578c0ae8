"""A registry that misbehaves on purpose: serves given bytes under given names, or refuses.

For what no honest registry does. For everything else there is ``tests.registry``, a real one.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class FakeRegistry:
    """What it serves. ``status`` other than 200 answers everything; ``gate`` holds blobs back.

    ``lies``: blob digest -> other bytes. ``blob_requests`` counts what was asked for.
    """

    address: str = ""
    status: int = 200
    error: str = ""
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)
    cut: int = 0  # bytes held back at the end of each blob, until ``gate``
    gate: threading.Event = field(default_factory=threading.Event)
    blob_requests: list[str] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Serve ``data``; its descriptor."""
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def tag(self, name: str, document: dict[str, Any], media_type: str = MANIFEST) -> str:
        """Serve ``document`` under ``name`` (tag) and its digest; the digest."""
        raw = json.dumps(document).encode()
        for key in (name, digest(raw)):
            self.manifests[key] = (media_type, raw)
        return digest(raw)

    def image(self, tag: str, *layers: bytes, **config: Any) -> str:
        """An image of uncompressed tar layers; its digest. ``config``: the image's config keys."""
        document = {
            "os": config.pop("os", "linux"),
            "architecture": config.pop("architecture", "amd64"),
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "config": config,
        }
        return self.tag(
            tag,
            {
                "schemaVersion": 2,
                "config": self.blob(json.dumps(document).encode(), CONFIG),
                "layers": [self.blob(layer, LAYER) for layer in layers],
            },
        )

    def answer(self, path: str) -> tuple[int, str, bytes]:
        if self.status != 200:
            body = {"errors": [{"code": self.error, "message": self.error.lower()}]}
            return self.status, "application/json", json.dumps(body).encode()
        kind, name = path.split("/")[-2:] if path != "/v2/" else ("", "")
        if kind == "manifests" and name in self.manifests:
            return 200, *self.manifests[name]
        if kind == "blobs" and name in self.blobs:
            self.blob_requests.append(name)
            return 200, "application/octet-stream", self.lies.get(name, self.blobs[name])
        if not kind:
            return 200, "application/json", b"{}"
        return 404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """Run one on a loopback port of its own."""
    registry = FakeRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(registry))
    server.daemon_threads = True
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        registry.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(registry: FakeRegistry) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            status, media_type, body = registry.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                if "/blobs/" in self.path and registry.cut and status == 200:
                    self.wfile.write(body[: -registry.cut])
                    registry.gate.wait()
                    body = body[-registry.cut :]
                self.wfile.write(body)
            except ConnectionError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    return Handler
