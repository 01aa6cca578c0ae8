"""Connections to guests that did not answer for long."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Retry
from controller.node import guests
from controller.node.guests import Guests

UID, SOCKET = "6f1b9a2e-0000-4000-8000-000000000001", Path("/nowhere/channel.sock")


class Answering:
    """A channel to a guest that does not answer before ``awake`` is set."""

    awake = asyncio.Event()
    tried = asyncio.Event()

    @classmethod
    async def connect(cls, socket: Path, **_: Any) -> "Answering":
        cls.tried.set()
        if not cls.awake.is_set():
            raise Retry("silent", reason="GuestSilent")
        return cls()

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("watched", [True, False])
async def test_woken_guest_is_asked_at_once_however_long_it_was_silent(
    monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(guests, "Channel", Answering)
    monkeypatch.setattr(guests, "FIRST_RETRY", 3600.0)
    Answering.awake, Answering.tried = asyncio.Event(), asyncio.Event()
    mine = Guests(lambda uid: None)
    if watched:
        mine.watch(UID, SOCKET)
        await Answering.tried.wait()
    Answering.awake.set()
    mine.expect(UID, SOCKET)
    channel = await mine.channel(UID, 5.0)
    mine.expect(UID, SOCKET)
    assert await mine.channel(UID, 5.0) is channel
    await mine.close()
