"""A fake API server, an impatient client, and the operator on them."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.kube.client import Client, Patience
from tests.fake_apiserver import FakeApiServer, fake_apiserver
from tests.unit.operator.rig import Rig, running

IMPATIENT = Patience(attempt=2.0, connect=1.0, total=5.0, wait_initial=0.001, wait_max=0.01)


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with fake_apiserver() as started:
        yield started


@pytest.fixture
async def client(server: FakeApiServer, tmp_path: Path) -> AsyncIterator[Client]:
    connected = await Client.connect(
        server.kubeconfig(tmp_path / "kubeconfig"), user_agent="torpor-test", patience=IMPATIENT
    )
    yield connected
    await connected.close()


@pytest.fixture
async def rig(server: FakeApiServer, client: Client) -> AsyncIterator[Rig]:
    async with running(server, client) as started:
        yield started


@pytest.fixture(autouse=True)
def no_system_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP needs none, and loading them takes longer than most tests here."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
