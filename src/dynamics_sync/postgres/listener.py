"""LISTEN: a wake-up, never a necessity. What it misses, polling finds."""

import asyncio
from collections.abc import Mapping

import psycopg

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect
from dynamics_sync.sync.events import emit

RECONNECT_SECONDS = 5.0


async def listen(database_url: str, wakes: Mapping[str, asyncio.Event]) -> None:
    """Set the event of each target that a notification names, until cancelled; connect again when the connection is
    lost."""
    while True:
        try:
            async with await connect(database_url) as connection:
                await connection.execute("listen dynamics_sync")
                for wake in wakes.values():
                    wake.set()
                async for notification in connection.notifies():
                    if notification.payload in wakes:
                        wakes[notification.payload].set()
        except (DatabaseError, psycopg.Error) as error:
            emit("listen.lost", "warning", exception_type=type(error).__name__)
        await asyncio.sleep(RECONNECT_SECONDS)
