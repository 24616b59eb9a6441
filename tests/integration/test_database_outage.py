"""The database goes away while a worker runs: it waits and says so, goes on when it is back, and loses nothing."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres import embedded
from dynamics_sync.postgres.binaries import wheel_binaries
from dynamics_sync.postgres.connections import brief_connection, connect, make_pool, transaction
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import migrate
from support.commands import worker_process
from support.engine import stage
from support.postgres import EVERYTHING, in_memory

TERMINATE_ALL = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""

IMPATIENT = "from dynamics_sync.postgres import connections; connections.POOL_TIMEOUT_SECONDS = 1.5"
"""Long enough for the pool's first pause, so that it still tries twice."""

ALL_ARE_HELD = """
select count(*) = 0 and not exists (select from dynamics_sync.changes)
from dynamics_sync.outbox where lease_until is null
"""
END_LEASES = "update dynamics_sync.outbox set lease_until = clock_timestamp() where lease_until is not null"
"""As if their time were over: what a cut connection left behind."""


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, which comes back at the same port."""
    directory = Path(tempfile.mkdtemp(prefix="dynamics-sync-test-", dir=in_memory()))
    directory.chmod(0o755)
    with EmbeddedPostgres(directory / "postgres", wheel_binaries(), durable=False) as started:
        port = urlsplit(started.url).port
        monkeypatch.setattr(embedded, "_free_port", lambda: port)
        yield started
    shutil.rmtree(directory)


async def test_a_stopped_server_is_waited_for_and_nothing_is_lost(own_server: EmbeddedPostgres, tmp_path: Path) -> None:
    await migrate(own_server.url, EVERYTHING)
    async with (
        stage(own_server.url, working=False) as on,
        worker_process(on, own_server.url, tmp_path, first=IMPATIENT) as worker,
    ):
        before = await on.issue()
        await on.settled()

        own_server.stop()
        await worker.says("database.unavailable")
        ready = await worker.answers("ready", 503)
        assert {name: check["status"] for name, check in ready["checks"].items()} == {
            "database": "fail",
            "schema": "fail",
            "token": "pass",
        }
        assert (await worker.health("live"))[0] == 200
        assert (await worker.health("circuit"))[0] == 503
        assert "dynamics_sync_up 0.0" in await worker.metrics()

        own_server.start()
        async with await connect(own_server.url) as on.user:
            after = await on.issue()
            await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [before])
            await on.settled()
            assert (await on.record(before) or {})["hlf_status"] == 100000004
            assert await on.record(after) is not None
            assert await on.queue() == []
        await worker.answers("ready", 200)
        assert await worker.terminate() == 0
        assert "Traceback" not in worker.log.read_text()


async def test_what_is_in_flight_when_the_server_stops_arrives_when_it_is_back(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    await migrate(own_server.url, EVERYTHING)
    async with (
        stage(own_server.url, working=False) as on,
        worker_process(on, own_server.url, tmp_path, first=IMPATIENT, request_timeout_seconds="1") as worker,
    ):
        key = await on.issue()
        await on.settled()
        await on.fault(kind="delay", seconds=0.8, count=1)
        await on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
        await on.until_requests(2)
        own_server.stop()
        await worker.says("sync.interrupted")
        own_server.start()
        async with await connect(own_server.url) as on.user:
            await on.user.execute(END_LEASES)
            await on.settled()
        assert (await on.record(key) or {})["hlf_status"] == 100000003
        assert [noted["status"] for noted in await on.requests()] == [204, 204, 204]


async def test_the_sweep_waits_for_the_database_and_then_moves_what_ran_out(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    await migrate(own_server.url, EVERYTHING)
    first = f"{IMPATIENT}; from dynamics_sync.certifications import sweep; sweep.EVERY_SECONDS = 0.05"
    async with (
        stage(own_server.url, working=False) as on,
        worker_process(on, own_server.url, tmp_path, first=first, enabled="off") as worker,
    ):
        own_server.stop()
        await worker.says("sweep.failed")
        own_server.start()
        async with await connect(own_server.url) as on.user:
            await on.issue(expires_on="2020-01-31")
            await on.until("select status = 'expired' from public.certifications")
        assert await worker.terminate() == 0
        assert "Traceback" not in worker.log.read_text()


async def test_sigterm_ends_a_worker_whose_database_is_gone(own_server: EmbeddedPostgres, tmp_path: Path) -> None:
    await migrate(own_server.url, EVERYTHING)
    async with (
        stage(own_server.url, working=False) as on,
        worker_process(on, own_server.url, tmp_path, first=IMPATIENT) as worker,
    ):
        own_server.stop()
        await worker.says("database.unavailable")
        assert await worker.terminate() == 0


async def test_cut_connections_lose_nothing(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path) as worker,
    ):
        keys: list[str] = []
        for status in ("active", "expired", "revoked", "pending"):
            keys += [await on.issue(status) for _ in range(20)]
            await on.rows(TERMINATE_ALL)
            await on.until(ALL_ARE_HELD)
        await on.user.execute(END_LEASES)
        await on.settled()
        assert all([await on.record(key) for key in keys])
        assert await on.queue() == []
        await worker.answers("ready", 200)
        assert "Traceback" not in worker.log.read_text()


async def test_where_one_connection_was_cut_the_next_to_ask_gets_one_that_works(database: str) -> None:
    async with make_pool(database, 3) as pool, await connect(database) as other:
        async with pool.connection(), pool.connection(), pool.connection():
            pass
        await other.execute(TERMINATE_ALL)
        with pytest.raises(DatabaseError, match="57P01"):
            async with transaction(pool) as connection:
                await connection.execute("select 1")
        async with transaction(pool) as connection:
            await connection.execute("select 1")


async def test_a_connection_that_is_cut_while_a_program_starts_is_told_in_words_for_people(database: str) -> None:
    with pytest.raises(DatabaseError, match="57P01"):
        async with brief_connection(database) as connection:
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
