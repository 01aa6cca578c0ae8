"""Servers for commands, which run loops of their own: served from a thread beside them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_apiserver import FakeApiServer, Object


@pytest.fixture
def beside() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine on a loop that goes on after it, in its own thread; gives its result."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def cluster_of(
    beside: Callable[[Coroutine[Any, Any, Any]], Any], tmp_path: Path
) -> Iterator[Callable[..., Path]]:
    """The kubeconfig of a fake API server that holds the given Instances."""
    server = FakeApiServer()

    def start(*instances: Object) -> Path:
        beside(server.start())
        for each in instances:
            meta = {"resourceVersion": "1", "uid": "u"} | each["metadata"]
            key = (meta["namespace"], meta["name"])
            server.objects.setdefault("instances", {})[key] = each | {"metadata": meta}
        return server.kubeconfig(tmp_path / "kubeconfig")

    yield start
    beside(server.stop())
