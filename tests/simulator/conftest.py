"""Simulators on real sockets."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from dynamics_sync.simulator import Simulator, SimulatorConfig

from .receiver import Receiver
from .wire import TABLES, Client, Clock, StartClient


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def start() -> AsyncIterator[StartClient]:
    """Starts a simulator with some settings changed, and signs a client in."""
    started: list[tuple[Simulator, aiohttp.ClientSession]] = []

    async def _start(**changes: Any) -> Client:
        simulator = Simulator(replace(SimulatorConfig(TABLES), **changes))
        await simulator.start()
        session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        started.append((simulator, session))
        client = Client(session, simulator.url)
        await client.sign_in()
        return client

    yield _start
    for simulator, session in started:
        await session.close()
        await simulator.stop()
        assert simulator.unforeseen == []


@pytest.fixture
async def client(start: StartClient) -> Client:
    return await start()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
