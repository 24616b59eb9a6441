"""Whoever opens the circuit may be cut off from the database at any moment: then it is open, or it is not, at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import make_pool
from support.outbox import TARGET

OPENS = b"update dynamics_sync.circuit"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def road_that_ends(database: str, port_there: int) -> AsyncIterator[str]:
    """An address of the database. Nothing gets through to it after what opens the circuit; answers come back."""

    async def to_the_server(reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        is_cut = False
        while data := await reader.read(65536):
            if not is_cut:
                there.write(data)
            is_cut |= OPENS in data

    async def back(answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(65536):
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, there = await asyncio.open_connection("127.0.0.1", port_there)
        roads.append(asyncio.current_task())
        try:
            await asyncio.gather(to_the_server(reader, there), back(answers, writer))
        finally:
            for side in (there, writer):
                side.transport.abort()

    roads: list[asyncio.Task[None] | None] = []
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield database.replace(f":{port_there}/", f":{server.sockets[0].getsockname()[1]}/")
    finally:
        server.close()
        for road in roads:
            if road is not None:
                road.cancel()
        await asyncio.gather(*filter(None, roads), return_exceptions=True)


@pytest.mark.parametrize("operator", [None, Operator("Kim", "as agreed")])
@pytest.mark.parametrize("generation_before", [0, 7])
async def test_it_is_open_for_all_or_for_nobody(
    database: str, generation_before: int, operator: Operator | None
) -> None:
    before = Circuit()
    async with make_pool(database, 2) as pool:
        store = PostgresCircuitStore(pool, TARGET)
        if generation_before:
            before = Circuit(generation=generation_before, revision=1)
            assert await store.compare_and_set(Circuit(), before)
        opened = Circuit(
            CircuitState.OPEN, 3, opened_at=NOW, generation=generation_before + 1, revision=before.revision + 1
        )
        port = urlsplit(database).port
        assert port is not None
        async with road_that_ends(database, port) as cut, make_pool(cut, 1) as cut_off:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await PostgresCircuitStore(cut_off, TARGET, operator).compare_and_set(before, opened)
            assert (await store.load()).circuit.state is CircuitState.OPEN
