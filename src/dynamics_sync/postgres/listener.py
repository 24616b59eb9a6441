"""LISTEN: a wake-up, never a necessity. What it misses, polling finds."""

import asyncio

import psycopg

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect
from dynamics_sync.sync.events import emit

RECONNECT_SECONDS = 5.0


async def listen(database_url: str, wake: asyncio.Event) -> None:
    """Set `wake` at each notification, until cancelled; connect again when the connection is lost."""
    while True:
        try:
            async with await connect(database_url) as connection:
                await connection.execute("listen dynamics_sync")
                wake.set()
                async for _ in connection.notifies():
                    wake.set()
        except (DatabaseError, psycopg.Error) as error:
            emit("listen.lost", "warning", exception_type=type(error).__name__)
        await asyncio.sleep(RECONNECT_SECONDS)
