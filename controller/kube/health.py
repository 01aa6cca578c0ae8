"""``/metrics``, ``/healthz`` and ``/readyz``: what a probe and Prometheus ask of either process.

What does not live here: what healthy and ready mean; each process says that for itself. For both
holds that an API server which is away is no reason to be restarted: that would not bring it back.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from controller import metrics  # noqa: F401  (registers what is exported)


class Health:
    """One listener. ``ready`` and ``healthy`` are asked at every probe."""

    def __init__(
        self,
        port: int,
        *,
        ready: Callable[[], bool],
        healthy: Callable[[], bool] = lambda: True,
        address: str = "127.0.0.1",
    ) -> None:
        self._port, self._address = port, address
        self._ready, self._healthy = ready, healthy
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
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
        await web.TCPSite(self._runner, self._address, self._port).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain")

    async def _alive(self, request: web.Request) -> web.Response:
        return _answer(self._healthy(), "the watch is dead")

    async def _is_ready(self, request: web.Request) -> web.Response:
        return _answer(self._ready(), "not synced")


def _answer(good: bool, else_: str) -> web.Response:
    return web.Response(text="ok\n" if good else f"{else_}\n", status=200 if good else 503)
