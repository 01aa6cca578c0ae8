"""``/metrics``, ``/healthz`` and ``/readyz`` on loopback, for probes and Prometheus.

Healthy: the loop turns and answers. An API server that is away is no reason to restart the agent:
that would not bring it back, and guests do not need it. Ready: what lives was adopted and the first
list of this node's Instances was seen.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from controller import metrics  # noqa: F401  (registers what is exported)


class Health:
    """The loopback listener. ``ready``: asked at every probe."""

    def __init__(self, port: int, ready: Callable[[], bool]) -> None:
        self._port = port
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on 127.0.0.1."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._alive),
                web.get("/readyz", self._is_ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain")

    async def _alive(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _is_ready(self, request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(text="ok\n" if ready else "not synced\n", status=200 if ready else 503)
