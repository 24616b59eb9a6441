"""Records that cannot be read: a person is told, Dynamics keeps what it has, and all other records go on."""

import asyncio

import psycopg
import pytest

from support.engine import Stage, stage

REVOKE = "revoke select on public.certifications from service_role"
HIDE = "alter role service_role nobypassrls"
SHOW = "alter role service_role bypassrls"


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("breaking", "mending"),
    [
        (REVOKE, "grant select on public.certifications to service_role"),
        (
            "alter table public.certifications rename column expires_on to ends_on",
            "alter table public.certifications rename column ends_on to expires_on",
        ),
        ("alter table public.certifications rename to old", "alter table public.old rename to certifications"),
        (HIDE, SHOW),
    ],
    ids=["no right", "no column", "no table", "hidden rows"],
)
async def test_an_unreadable_table_is_queued_and_replayed_once_mended(
    database: str, breaking: str, mending: str
) -> None:
    async with stage(database, working=False) as on:
        key = await on.issue()
        await on.user.execute(breaking.encode())
        try:
            worker = asyncio.create_task(on.engine.worker.run())
            await on.settled()
        finally:
            await on.user.execute(mending.encode())
        assert await on.queue() == [("requires_investigation", 0, "unsendable", "database.unreadable")]
        assert await on.requests() == []
        await replay_all(on)
        await on.settled()
        assert await on.record(key) is not None
        on.engine.worker.stop()
        await worker


async def test_an_unreadable_value_is_no_deletion_and_keeps_nobody_back(database: str) -> None:
    """psycopg has no form for the date `infinity`."""
    async with stage(database) as on:
        keys = [await on.issue() for _ in range(5)]
        await on.settled()
        await on.user.execute("update public.certifications set expires_on = 'infinity' where id = %s", [keys[0]])
        await on.user.execute("update public.certifications set status = 'expired' where id <> %s", [keys[0]])
        await on.settled()
        assert await on.queue() == [("requires_investigation", 0, "unsendable", "database.unreadable_value")]
        assert (await on.record(keys[0]) or {})["statecode"] == 0
        assert [(await on.record(key) or {})["hlf_status"] for key in keys[1:]] == [100000003] * 4


async def test_a_locked_table_is_waited_for_and_the_worker_still_stops(database: str) -> None:
    async with stage(database, working=False) as on:
        key = await on.issue()
        with psycopg.connect(database) as migration:
            migration.execute("lock table public.certifications in access exclusive mode")
            worker = asyncio.create_task(on.engine.worker.run())
            await on.until("select count(*) > 0 from pg_locks where not granted")
            on.engine.worker.stop()
            await asyncio.wait_for(worker, 20)
            assert await on.rows("select record_key, attempts from dynamics_sync.outbox") == [(key, 0)]
        assert await on.requests() == []
        assert await on.queue() == []


async def replay_all(on: Stage) -> None:
    queue = on.engine.stores.queue
    await queue.replay([entry.id for entry in await queue.entries()], "tester")
