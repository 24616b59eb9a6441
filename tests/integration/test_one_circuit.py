"""Several worker processes, one circuit: what leaves them is noted by the processes themselves, what the circuit is by
the database, both by one clock."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from rich.console import Console
from rich.table import Table

from chaos.checker import check
from chaos.history import History, Request
from chaos.load import NOTE_CIRCUIT, circuit_history
from chaos.parts import TESTS
from chaos.workers import requests_in
from dynamics_sync.postgres.binaries import wheel_binaries
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import migrate
from dynamics_sync.simulator.limits import Limits
from support.commands import worker_processes
from support.engine import Stage, stage
from support.postgres import EVERYTHING, in_memory

OPENINGS = 3
REQUEST_SECONDS = 30.0
RECORDS = 1000
REVOKED = 100000004

TRACED = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    "from chaos.preamble import trace_requests; trace_requests('worker-{number}.trace')"
)

CHANGE_SOME = """
update public.certifications set status = %s
where id in (select id from public.certifications order by random() limit 10)
"""

OPEN = "select count(*) = 1 from dynamics_sync.circuit where state = 'open'"
# A record that somebody has locked while its worker lets go of it is left to its lease of 90 s.
ALL_ARE_HELD_FOR_LONG = """
select count(*) = 0 and not exists (select from dynamics_sync.changes) from dynamics_sync.outbox
where coalesce(lease_until, 'infinity') > clock_timestamp() + interval '80 s'
"""
END_LEASES = "update dynamics_sync.outbox set lease_until = clock_timestamp()"
CLOSED = "select count(*) = 0 from dynamics_sync.circuit where state <> 'closed'"


def left(directory: Path) -> list[Request]:
    """What left the processes."""
    return [
        request
        for trace in sorted(directory.glob("*.trace"))
        for request in requests_in(trace, trace.stem, REQUEST_SECONDS, float("inf"))
    ]


@asynccontextmanager
async def changing(on: Stage) -> AsyncIterator[None]:
    """Meanwhile records change again and again."""

    async def change() -> None:
        while True:
            for status in ("expiring", "expired", "revoked", "active"):
                await on.user.execute(CHANGE_SOME, [status])
                await asyncio.sleep(0.02)

    changes = asyncio.create_task(change())
    try:
        yield
    finally:
        changes.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await changes


async def all_send(directory: Path, count: int) -> None:
    """Until each process has sent something more."""
    before = Counter(request.sender for request in left(directory))
    async with asyncio.timeout(30):
        while len(Counter(request.sender for request in left(directory)) - before) < count:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("count", [2, 8])
async def test_while_it_is_open_nothing_leaves_and_one_probe_decides(database: str, tmp_path: Path, count: int) -> None:
    """All together make fewer requests at once than Dynamics takes (52), or they would have to wait for that."""
    async with stage(database, working=False, simulated={"limits": Limits(dop_hint=50)}) as on:
        await on.user.execute(NOTE_CIRCUIT)
        for _ in range(20 * count):
            await on.issue()
        async with worker_processes(
            on, database, tmp_path, count, first=TRACED, cool_down_seconds="0.4", concurrency="4"
        ):
            async with changing(on):
                for _ in range(OPENINGS):
                    await on.lift_faults()
                    await on.fault(kind="delay", seconds=0.02)
                    await on.until(CLOSED)
                    await all_send(tmp_path, count)
                    await on.lift_faults()
                    await on.fault(kind="status", status=503)
                    await on.until(OPEN)
            await on.lift_faults()
            await on.until(ALL_ARE_HELD_FOR_LONG)
            await on.user.execute(END_LEASES)
            await on.settled()
        history = History(requests=left(tmp_path), circuit=await circuit_history(on.user))
    assert check(history) == []
    assert [change.state for change in history.circuit].count("open") >= OPENINGS


async def test_one_failure_each_of_three_processes_opens_it(database: str, tmp_path: Path) -> None:
    """Each sends one record, and would wait for a minute before it tries again."""
    async with stage(database, working=False) as on:
        await on.fault(kind="status", status=503)
        slow = {"concurrency": "1", "base_delay_ms": "60000", "cool_down_seconds": "3600"}
        async with worker_processes(on, database, tmp_path, 3, first=TRACED, **slow):
            for _ in range(3):
                await on.issue()
            await on.until(OPEN)
            assert await on.rows("select failure_count from dynamics_sync.circuit") == [(3,)]
            requests = left(tmp_path)
    assert [request.how for request in requests] == ["503"] * 3
    assert len({request.sender for request in requests}) == 3


@pytest.mark.pooled_too
async def test_after_an_outage_and_a_replay_everything_has_arrived(database: str, tmp_path: Path) -> None:
    """A pooler passes no notification on: there, polling finds everything."""
    async with stage(database, working=False) as on:
        await on.user.execute(NOTE_CIRCUIT)
        async with worker_processes(on, database, tmp_path, 3, first=TRACED, cool_down_seconds="0.4"):
            keys = [await on.issue() for _ in range(60)]
            await on.settled()
            await on.fault(kind="status", status=503)
            await on.user.execute("update public.certifications set status = 'revoked'")
            await on.until(OPEN)
            await on.lift_faults()
            await on.settled()
            queue = on.engine.stores.queue
            await queue.replay([entry.id for entry in await queue.entries()], "tester")
            await on.settled()
        history = History(requests=left(tmp_path), circuit=await circuit_history(on.user))
        assert {(await on.record(key) or {})["hlf_status"] for key in keys} == {REVOKED}
    assert check(history) == []


@pytest.fixture
def counting_server() -> Iterator[str]:
    """A server that counts the statements it is given."""
    with tempfile.TemporaryDirectory(prefix="dynamics-sync-test-", dir=in_memory()) as directory:
        Path(directory).chmod(0o755)
        server = EmbeddedPostgres(Path(directory) / "postgres", wheel_binaries(), durable=False)
        with server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("alter system set shared_preload_libraries = 'pg_stat_statements'")
        with server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("create extension pg_stat_statements")
            yield server.url


STATEMENTS = """
select case
    when query ilike '%%dynamics_sync.circuit%%' then 'circuit'
    when query ilike '%%dynamics_sync.claim(%%' then 'claim'
    when query ilike '%%dynamics_sync.settle(%%' then 'settle'
    when query ilike '%%set_config(%%' then 'become service_role'
    when query ilike '%%from "public"."certifications"%%' then 'read rows'
    when query ilike 'begin%%' or query ilike 'commit%%' then 'begin and commit'
    else query
  end as what, sum(calls)::int
from pg_stat_statements
where toplevel and dbid = (select oid from pg_database where datname = current_database()) and not query ilike any (%s)
group by what order by 2 desc
"""

OURS = [
    "%pg_stat_statements%",
    "%select not exists (select from dynamics_sync.changes)%",
    "insert into public.certifications%",
]
"""What the test itself asks."""


async def test_a_healthy_circuit_costs_no_round_trip_per_request(counting_server: str, tmp_path: Path) -> None:
    await migrate(counting_server, EVERYTHING)
    async with stage(counting_server, working=False) as on:
        async with worker_processes(on, counting_server, tmp_path, 2, poll_seconds="1"):
            await on.user.execute("select pg_stat_statements_reset()")
            await on.user.execute(
                "insert into public.certifications (peer_mentor_id, chapter_id, status) "
                "select %s, %s, 'active' from generate_series(1, %s)",
                [on.mentor, on.chapter, RECORDS],
            )
            await on.settled()
            counts = dict(await on.rows(STATEMENTS, OURS))
        assert len(await on.requests()) == RECORDS
    table = Table("statements", f"per {RECORDS:,} records")
    for what, count in counts.items():
        table.add_row(what, str(count))
    Console().print(table)
    # A slow machine makes smaller batches and looks more often; a look for each request would be a thousand, in a
    # transaction of its own.
    assert counts["circuit"] <= RECORDS / 2
    assert sum(counts.values()) <= RECORDS
