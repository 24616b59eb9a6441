"""Many records in one request: few requests for a backlog, and no record pays for another one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from support.database_clock import DatabaseClock
from support.engine import ENTITY_SET, Stage, engine_settings, stage, working

EXPIRED = 100000003
COOL_DOWN = 60.0
SHIPPED = files("dynamics_sync.certifications").joinpath("mapping.toml")

Requests = list[dict[str, Any]]


@asynccontextmanager
async def backlog(database: str, count: int, **settings: Any) -> AsyncIterator[tuple[Stage, list[str]]]:
    """Records that wait; nobody sends them yet."""
    async with stage(database, working=False, **({"bulk_size": 1000} | settings)) as on:
        async with on.user.transaction():
            keys = [await on.issue() for _ in range(count)]
        yield on, keys


@asynccontextmanager
async def at_work(on: Stage) -> AsyncIterator[None]:
    """Dynamics was asked what it offers, and somebody sends."""
    await on.engine.messages.run()
    job = asyncio.create_task(on.engine.worker.run())
    try:
        yield
    finally:
        on.engine.stop()
        await job


async def drain(on: Stage) -> None:
    async with at_work(on):
        await on.settled()


async def arrived(on: Stage) -> set[str]:
    return set(await on.records(ENTITY_SET))


async def bulks(on: Stage) -> Requests:
    return [request for request in await on.writes() if request["path"].endswith(".UpsertMultiple")]


async def batches(on: Stage) -> Requests:
    return [request for request in await on.writes() if request["path"].endswith("/$batch")]


def keys_of(requests: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(key for request in requests for key in request["keys"])


def assert_halved(*refused: dict[str, Any]) -> None:
    """One after the other, and the second is for a part of the same records."""
    first, second = (request["keys"] for request in refused)
    assert set(second) < set(first)
    assert len(second) == len(first) // 2


@pytest.mark.every_postgres
async def test_a_backlog_takes_few_requests(database: str) -> None:
    async with backlog(database, 300) as (on, keys):
        await drain(on)
        assert await arrived(on) == set(keys)
        assert len(await on.writes()) <= 6
        assert keys_of(await on.writes()) == sorted(keys), "each was sent once"


async def test_records_that_dynamics_refuses_reach_the_queue_and_the_others_arrive(database: str) -> None:
    """Each with its own code, after two more requests at most."""
    async with backlog(database, 120) as (on, keys):
        too_long, unknown = keys[50], keys[90]
        await on.fault(kind="status", status=400, code="0x80044331", key=too_long, entity_set=ENTITY_SET)
        await on.fault(kind="status", status=404, code="0x80060888", key=unknown, entity_set=ENTITY_SET)
        await drain(on)
        assert await arrived(on) == set(keys) - {too_long, unknown}
        queued = await on.rows("select record_key, error_code from public.dynamics_sync_retry_queue order by 2")
        assert queued == [(too_long, "0x80044331"), (unknown, "0x80060888")]
        refused = [request for request in await bulks(on) if request["status"] != 204]
        assert refused
        assert len(await batches(on)) <= 2 * len(refused)
        assert all(request["status"] == 200 for request in await batches(on))


async def test_what_something_else_answered_is_taken_apart_too(database: str) -> None:
    """From then on the table goes in small batches; what was on its way stays together."""
    async with backlog(database, 120) as (on, keys):
        await on.fault(kind="garbled", method="POST", count=1)
        await drain(on)
        (answered,) = await bulks(on)
        ((told,),) = await on.rows("select record_key from public.dynamics_sync_retry_queue")
        assert await arrived(on) == set(keys) - {told}
        others = set(answered["keys"]) - {told}
        assert [set(each["keys"]) for each in await batches(on) if others & set(each["keys"])] == [others]


async def test_where_dynamics_has_no_bulk_message_a_table_goes_in_batches(database: str) -> None:
    async with backlog(database, 60, bulk_messages=False) as (on, keys):
        await drain(on)
        assert await arrived(on) == set(keys)
        assert await bulks(on) == []
        assert await batches(on)
        assert len(await on.writes()) <= len(keys) // 4


async def test_who_may_not_ask_for_bulk_messages_sends_batches(database: str) -> None:
    async with backlog(database, 30) as (on, keys):
        await on.fault(kind="status", status=403, entity_set="sdkmessagefilters")
        await drain(on)
        assert await arrived(on) == set(keys)
        assert await bulks(on) == []
        assert await batches(on)


async def test_a_mapping_may_have_records_sent_one_at_a_time(database: str, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(SHIPPED.read_text().replace("bulk = true", "bulk = false"))
    async with backlog(database, 8) as (on, keys):
        async with working(engine_settings(database, on.simulator.url, mapping=mapping), database):
            await on.settled()
        assert keys_of(await on.writes()) == sorted(keys)
        assert {(request["method"], len(request["keys"])) for request in await on.writes()} == {("PATCH", 1)}


async def test_an_answer_that_is_lost_after_all_were_written(database: str) -> None:
    """They are sent once more. What Dynamics holds is not certain, as the lost request may take effect late."""
    async with backlog(database, 80) as (on, keys):
        await on.fault(kind="reset_after_write", method="POST", count=1)
        await drain(on)
        assert await arrived(on) == set(keys)
        assert await on.queue() == []
        lost = keys_of([request for request in await on.writes() if request["status"] is None])
        assert len(lost) > 1
        assert keys_of(await on.writes()) == sorted(keys + lost)
        assert await on.rows("select record_key from dynamics_sync.unanswered order by 1") == [(key,) for key in lost]
        unknown = "select record_key from dynamics_sync.record_state where payload_hash is null order by 1"
        assert await on.rows(unknown) == [(key,) for key in lost]


async def test_a_failed_request_counts_once_for_the_circuit_and_once_for_each_record(database: str) -> None:
    async with backlog(database, 50, cool_down_seconds=COOL_DOWN) as (on, keys), at_work(on):
        await on.settled()
        await on.fault(kind="status", status=503)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.settled()
        failed = [request for request in await on.writes() if request["status"] == 503]
        assert [len(request["keys"]) for request in failed] == [50, 50, 50]
        assert await on.rows("select state, failure_count from dynamics_sync.circuit") == [("open", 3)]
        assert await on.queue() == [("pending_manual_replay", 3, "circuit_open", "http_503")] * 50
        tried = await on.rows(
            "select record_key, array_agg(attempt_number order by id) from dynamics_sync.attempts group by 1"
        )
        assert dict(tried) == {key: [1, 2, 3] for key in keys}


async def test_a_half_open_circuit_lets_a_single_record_through(database: str, database_clock: DatabaseClock) -> None:
    async with backlog(database, 50, cool_down_seconds=COOL_DOWN) as (on, keys), at_work(on):
        await on.settled()
        await on.fault(kind="status", status=503)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.settled()
        before = len(await on.writes())
        await on.lift_faults()
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await database_clock.advance(COOL_DOWN)
        await on.settled()
        probe, *others = (await on.writes())[before:]
        assert len(probe["keys"]) == 1
        assert all(request["at"] >= probe["done_at"] for request in others)
        assert max(len(request["keys"]) for request in others) > 1
        records = await on.records(ENTITY_SET)
        assert {records[key]["hlf_status"] for key in keys} == {EXPIRED}


async def test_what_is_too_much_is_halved(database: str) -> None:
    async with backlog(database, 120, concurrency=1) as (on, keys):
        await on.fault(kind="status", status=413, method="POST", count=2)
        await drain(on)
        assert await arrived(on) == set(keys)
        assert await on.queue() == []
        assert await on.rows("select count(*) from dynamics_sync.attempts") == [(0,)], "none of them failed"
        assert_halved(*[request for request in await on.writes() if request["status"] == 413])


async def test_what_takes_too_long_is_halved(database: str) -> None:
    """Others may go next: the records of the first one wait before they are tried again."""
    async with backlog(database, 120, concurrency=1, request_timeout_seconds=1) as (on, keys):
        await on.fault(kind="timeout", method="POST", count=2)
        await drain(on)
        assert await arrived(on) == set(keys)
        assert await on.queue() == []
        first, second = (request["keys"] for request in await on.writes() if request["status"] is None)
        assert len(second) == len(first) // 2


async def test_rows_that_are_gone_go_together_too(database: str) -> None:
    async with backlog(database, 40) as (on, keys), at_work(on):
        await on.settled()
        before = len(await on.writes())
        await on.user.execute("delete from public.certifications")
        await on.settled()
        records = await on.records(ENTITY_SET)
        assert {records[key]["statecode"] for key in keys} == {1}
        removals = (await on.writes())[before:]
        assert keys_of(removals) == sorted(keys)
        assert len(removals) < len(keys) // 2
        assert removals[0] in await batches(on)
