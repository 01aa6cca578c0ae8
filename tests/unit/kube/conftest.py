"""A fake API server and a client that is impatient, so that no test waits for a real back-off."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.kube.client import Client, Patience
from tests.fake_apiserver import FakeApiServer, fake_apiserver

IMPATIENT = Patience(attempt=2.0, connect=1.0, total=5.0, wait_initial=0.001, wait_max=0.01)


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with fake_apiserver() as running:
        yield running


@pytest.fixture
async def client(server: FakeApiServer, tmp_path: Path) -> AsyncIterator[Client]:
    connected = await Client.connect(
        server.kubeconfig(tmp_path / "kubeconfig"), user_agent="torpor-test", patience=IMPATIENT
    )
    yield connected
    await connected.close()


@pytest.fixture(autouse=True)
def no_system_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP needs none, and loading them takes longer than most tests here."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
