"""LISTEN: a wake-up, never a necessity. What it misses, polling finds."""

import asyncio
from collections.abc import Mapping

import psycopg

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import Connection, connect
from dynamics_sync.sync.events import emit

RECONNECT_SECONDS = 5.0
REFRESH_SECONDS = 5.0
LOOKS_FOR_A_POOLER = 5

# For so long whoever changes something may rely on us.
LISTENING = """
insert into dynamics_sync.attention as known (target, listening_until)
select target, clock_timestamp() + interval '15 seconds' from unnest(%s::text[]) as target order by target
on conflict (target) do update set listening_until = excluded.listening_until
"""

OWN_SESSION = "select pg_backend_pid()"


async def listen(database_url: str, wakes: Mapping[str, asyncio.Event]) -> None:
    """Set the event of each target that a notification names, until cancelled; connect again when the connection is
    lost. Meanwhile the database knows that somebody listens: nobody is notified in vain.

    Returns at once where a pooler in transaction mode is in between: it would pass no notification on to us, and leave
    its server connection listening for whoever uses that next.
    """
    while True:
        try:
            async with await connect(database_url) as connection:
                if await _shares_its_session(connection, database_url):
                    emit("listen.impossible")
                    return
                await connection.execute("listen dynamics_sync")
                await connection.execute(LISTENING, [list(wakes)])
                for wake in wakes.values():
                    wake.set()
                while True:
                    async for notification in connection.notifies(timeout=REFRESH_SECONDS):
                        if notification.payload in wakes:
                            wakes[notification.payload].set()
                    await connection.execute(LISTENING, [list(wakes)])
        except (DatabaseError, psycopg.Error) as error:
            emit("listen.lost", "warning", exception_type=type(error).__name__)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _shares_its_session(connection: Connection, database_url: str) -> bool:
    """Whether two connections of ours were seen in one session of the server.

    A pooler in transaction mode may serve them from different ones; so the answer can be False there, never True
    elsewhere.
    """
    async with await connect(database_url) as other:
        ours, others = set(), set()
        for _ in range(LOOKS_FOR_A_POOLER):
            ours.add(await _session_of(connection))
            others.add(await _session_of(other))
    return not ours.isdisjoint(others)


async def _session_of(connection: Connection) -> object:
    return await (await connection.execute(OWN_SESSION)).fetchone()
