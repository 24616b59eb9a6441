"""Many records in one request: few requests for a backlog, and no record pays for another one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync import app
from support.database_clock import DatabaseClock
from support.engine import Stage, stage

EXPIRED = 100000003
BULK = "Microsoft.Dynamics.CRM.UpsertMultiple"
WITHOUT_BULK = (
    app.files("dynamics_sync.certifications")
    .joinpath("mapping.toml")
    .read_text()
    .replace("bulk = true", "bulk = false")
)


@asynccontextmanager
async def backlog(database: str, count: int, **overrides: Any) -> AsyncIterator[tuple[Stage, list[str]]]:
    """Records that wait, and Dynamics was asked what it offers."""
    async with stage(database, working=False, **overrides) as on:
        async with on.user.transaction():
            keys = [await on.issue() for _ in range(count)]
        await on.engine.messages.run()
        yield on, keys


@asynccontextmanager
async def at_work(on: Stage) -> AsyncIterator[None]:
    job = asyncio.create_task(on.engine.worker.run())
    try:
        yield
    finally:
        on.engine.stop()
        await job


async def writes(on: Stage) -> list[dict[str, Any]]:
    """What was asked of Dynamics, in order; a batch names no table."""
    async with on.http.get(f"{on.simulator.url}/_simulator/requests") as response:
        return [noted for noted in await response.json() if noted["method"] != "GET"]


async def arrived(on: Stage) -> set[str]:
    return set(await on.records("hlf_certifications"))


def in_bulk(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [request for request in requests if request["path"].endswith(BULK)]


def batches(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [request for request in requests if request["path"].endswith("$batch")]


@pytest.mark.every_postgres
async def test_a_backlog_takes_few_requests(database: str) -> None:
    async with backlog(database, 300) as (on, keys), at_work(on):
        await on.settled()
        assert await arrived(on) == set(keys)
        requests = await writes(on)
        assert len(requests) <= 6
        assert sorted(key for request in requests for key in request["keys"]) == sorted(keys)


async def test_records_that_dynamics_refuses_reach_the_queue_and_the_others_arrive(database: str) -> None:
    """Each with its own code, after two more requests at most."""
    async with backlog(database, 120) as (on, keys):
        too_long, unknown = keys[50], keys[90]
        await on.fault(kind="status", status=400, code="0x80044331", key=too_long)
        await on.fault(kind="status", status=404, code="0x80060888", key=unknown)
        async with at_work(on):
            await on.settled()
        assert await arrived(on) == set(keys) - {too_long, unknown}
        assert await on.rows("select record_key, error_code from public.dynamics_sync_retry_queue order by 2") == [
            (too_long, "0x80044331"),
            (unknown, "0x80060888"),
        ]
        requests = await writes(on)
        refused = [request for request in in_bulk(requests) if request["status"] != 204]
        assert 1 <= len(refused) <= 2
        assert len(batches(requests)) <= 2 * len(refused)


@pytest.mark.parametrize("said_by", ["mapping", "Dynamics"])
async def test_a_table_without_the_bulk_message_goes_in_batches(database: str, tmp_path: Path, said_by: str) -> None:
    if said_by == "mapping":
        mapping = tmp_path / "mapping.toml"
        mapping.write_text(WITHOUT_BULK)
        async with stage(database, working=False) as on:
            keys = [await on.issue() for _ in range(5)]
            async with app.open_engine(on.engine_settings(mapping=mapping), database) as engine:
                job = asyncio.create_task(engine.worker.run())
                await on.settled()
                engine.stop()
                await job
            assert await arrived(on) == set(keys)
            assert in_bulk(await writes(on)) == batches(await writes(on)) == []
        return
    async with backlog(database, 60, bulk_message=False) as (on, keys), at_work(on):
        await on.settled()
        assert await arrived(on) == set(keys)
        assert in_bulk(await writes(on)) == []
        assert len(batches(await writes(on))) >= 1
        assert len(await writes(on)) < 20


async def test_an_answer_that_is_lost_after_all_were_written(database: str) -> None:
    """They are sent once more now, and again once the lost request can no longer take effect."""
    async with backlog(database, 80) as (on, keys):
        await on.fault(kind="reset_after_write", method="POST", count=1)
        async with at_work(on):
            await on.settled()
        assert await arrived(on) == set(keys)
        assert await on.queue() == []
        ((unanswered,),) = await on.rows("select count(*) from dynamics_sync.unanswered")
        assert unanswered >= 2
        assert await on.rows("select count(*) from dynamics_sync.record_state where payload_hash is null") == [
            (unanswered,)
        ]


async def test_a_request_that_fails_counts_once_for_the_circuit_and_once_for_each_record(database: str) -> None:
    async with backlog(database, 50, cool_down_seconds=60) as (on, _):
        async with at_work(on):
            await on.settled()
            await on.fault(kind="status", status=503)
            await on.user.execute("update public.certifications set status = 'expired'")
            await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
            await on.until("select count(*) > 0 from dynamics_sync.attempts")
        failed = [request for request in await writes(on) if request["status"] == 503]
        assert len(failed) == 3
        assert await on.rows("select failure_count from dynamics_sync.circuit") == [(3,)]
        attempts = await on.rows("select count(*) from dynamics_sync.attempts")
        queued = await on.rows("select count(*) * 3 from public.dynamics_sync_retry_queue")
        assert attempts[0][0] >= queued[0][0]


async def test_a_half_open_circuit_lets_a_single_record_through(database: str, database_clock: DatabaseClock) -> None:
    async with backlog(database, 50, cool_down_seconds=60) as (on, keys), at_work(on):
        await on.settled()
        await on.fault(kind="status", status=503)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
        await on.until("select count(*) = 0 from dynamics_sync.outbox where lease_owner is not null")
        before = len(await writes(on))
        await on.lift_faults()
        await database_clock.advance(61)
        await on.settled()
        probe = (await writes(on))[before]
        assert (len(probe["keys"]), probe["status"]) == (1, 204)
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        records = await on.records("hlf_certifications")
        assert {records[key]["hlf_status"] for key in keys} == {EXPIRED}


async def test_what_is_too_much_is_halved(database: str) -> None:
    async with backlog(database, 120) as (on, keys):
        await on.fault(kind="status", status=413, method="POST", count=2)
        async with at_work(on):
            await on.settled()
        assert await arrived(on) == set(keys)
        assert await on.queue() == []
        refused = [len(request["keys"]) for request in await writes(on) if request["status"] == 413]
        assert len(refused) == 2
        assert all(2 * smaller <= larger for larger, smaller in pairwise(refused))


async def test_rows_that_are_gone_go_together_too(database: str) -> None:
    async with backlog(database, 40) as (on, keys), at_work(on):
        await on.settled()
        await on.user.execute("delete from public.certifications")
        await on.settled()
        records = await on.records("hlf_certifications")
        assert {records[key]["statecode"] for key in keys} == {1}
        removals = [request for request in await writes(on) if request["path"].endswith("$batch")]
        assert removals
        assert len(await writes(on)) < len(keys)
