"""Behind a pooler in transaction mode, as Supabase's at port 6543, nothing outlasts a transaction."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect
from dynamics_sync.postgres.migrate import migrate
from support.engine import stage
from support.pooler import engines_through, pooled
from support.postgres import EVERYTHING, MIGRATIONS, Cluster

pytestmark = pytest.mark.direct

LISTENS = "select pg_listening_channels()"
PROGRAMS = 10
"""As many as there are sessions that the pooler could give them, and more."""


@pytest.fixture
def port(server: Cluster, poolers: dict[str, int]) -> Iterator[int]:
    """The pooler's. Engines go through it."""
    with engines_through(poolers["pg18"], server.url):
        yield poolers["pg18"]


async def heard_by_other_programs(address: str) -> list[tuple[object, ...]]:
    """What is listened to in the sessions that the pooler gives to programs that begin a transaction now."""
    heard = []
    async with AsyncExitStack() as stack:
        for _ in range(PROGRAMS):
            program = await stack.enter_async_context(await connect(address))
            await stack.enter_async_context(program.transaction())
            heard += await (await program.execute(LISTENS)).fetchall()
    return heard


async def test_a_worker_does_not_listen_says_so_and_finds_everything_by_polling(database: str, port: int) -> None:
    """What listens there is a session that the pooler gives to other programs, notifications and all."""
    with capture_logs() as logs:
        async with stage(database) as on:
            for _ in range(3):
                key = await on.issue()
                await on.settled()
                assert await on.record(key) is not None
            assert await heard_by_other_programs(pooled(database, port)) == []
    assert [log["log_level"] for log in logs if log["event"].startswith("listen.")] == ["info"]


async def test_a_database_is_migrated_and_checked(empty_database: str, port: int) -> None:
    address = pooled(empty_database, port)
    assert len(await migrate(address, EVERYTHING)) == len(MIGRATIONS)
    assert await migrate(address, EVERYTHING) == []


async def test_a_wrong_password_is_told_as_such(database: str, port: int) -> None:
    with pytest.raises(DatabaseError, match="the user or password is wrong"):
        await connect(pooled(make_conninfo(database, password="wrong"), port))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Tenant or user not found", "knows no such project"),
        ("(ENOTFOUND) tenant/user postgres.abc not found", "knows no such project"),
        ("(EMAXCONNSESSION) max clients reached in session mode", "no connection left"),
        ("no more connections allowed (max_client_conn)", "no connection left"),
    ],
)
async def test_a_poolers_own_refusal_is_told_in_our_words(words: str, told: str) -> None:
    """What Supabase's pooler and PgBouncer say, said by a stand-in."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        error = f"SFATAL\0CXX000\0M{words}\0\0".encode()
        writer.write(b"E" + (len(error) + 4).to_bytes(4, "big") + error)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DatabaseError, match=told):
            await connect(f"postgresql://postgres.abc:x@127.0.0.1:{port}/postgres?sslmode=disable")
