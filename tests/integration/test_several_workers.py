"""Several workers on one database, each with connections of its own, against one Dynamics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from dynamics_sync import app
from dynamics_sync.simulator.limits import Limits
from dynamics_sync.sync.worker import Worker
from support.commands import worker_processes
from support.database_clock import DatabaseClock
from support.engine import ENTITY_SET, Stage, engine_settings, stage

CONCURRENCY = "4"
COOL_DOWN = 60.0
LEASE = 3600.0
ALL_ARE_HELD = """
select count(*) = 0 and not exists (select from dynamics_sync.changes)
from dynamics_sync.outbox where lease_owner is null
"""
"""Longer than any."""
ACTIVE, REVOKED = 100000001, 100000004


@asynccontextmanager
async def workers(on: Stage, count: int, **overrides: object) -> AsyncIterator[list[Worker]]:
    """Workers in this process, each with connections of its own."""
    settings = engine_settings(on.engine.database_url, on.simulator.url, **overrides)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        engines = [
            await stack.enter_async_context(app.open_engine(settings, on.engine.database_url)) for _ in range(count)
        ]
        for engine in engines:
            group.create_task(app.run_worker(engine))
        yield [engine.worker for engine in engines]
        for engine in engines:
            engine.worker.stop()


async def looked(of: list[Worker]) -> None:
    """Until each worker has looked for something to do, to the end."""
    for worker in of * 2:
        worker.wake.set()
        await until(lambda worker=worker: not worker.wake.is_set())  # type: ignore[misc]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def change_all(on: Stage, keys: list[str]) -> None:
    """Each record takes each status, and ends as `revoked`."""
    for status in ("expiring", "expired", "revoked"):
        for key in keys:
            await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])


async def assert_all_arrived(on: Stage, keys: list[str], status: int) -> None:
    records = await on.records(ENTITY_SET)
    assert [records.get(key, {}).get("hlf_status") for key in keys] == [status] * len(keys)


async def assert_never_two_requests_for_one_record(on: Stage) -> None:
    spans: dict[str, list[tuple[float, float]]] = {}
    for noted in await on.writes():
        for key in noted["keys"]:
            spans.setdefault(key, []).append((noted["at"], noted["done_at"]))
    overlapping = [
        (key, first, second)
        for key, of_record in spans.items()
        for first, second in pairwise(sorted(of_record))
        if first[1] > second[0]
    ]
    assert overlapping == []


async def most_at_once(on: Stage) -> int:
    """The most requests that were under way together."""
    requests = await on.requests()
    steps = sorted([(noted["at"], 1) for noted in requests] + [(noted["done_at"], -1) for noted in requests])
    return max(accumulate(step for _, step in steps))


@pytest.mark.every_postgres
async def test_every_record_arrives_and_none_has_two_requests_at_once(database: str) -> None:
    async with stage(database, working=False) as on, workers(on, 3):
        await on.fault(kind="delay", seconds=0.03, share=0.5)
        keys = [await on.issue() for _ in range(40)]
        await change_all(on, keys)
        await on.settled()
        await assert_all_arrived(on, keys, REVOKED)
        await assert_never_two_requests_for_one_record(on)


@pytest.mark.pooled_too
async def test_so_it_is_while_dynamics_fails_again_and_again(database: str) -> None:
    """With what people do at the end: they replay what was given up."""
    async with stage(database, working=False) as on, workers(on, 3, cool_down_seconds=0.05):
        await on.fault(kind="status", status=503, share=0.3)
        await on.fault(kind="reset_after_write", share=0.2)
        keys = [await on.issue() for _ in range(40)]
        await change_all(on, keys)
        await on.settled()
        await on.lift_faults()
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        await assert_all_arrived(on, keys, REVOKED)
        await assert_never_two_requests_for_one_record(on)
        assert {entry[0] for entry in await on.queue()} <= {"replayed", "superseded"}


@pytest.mark.pooled_too
async def test_no_request_leaves_while_the_circuit_is_open_and_one_is_the_probe(
    database: str, database_clock: DatabaseClock
) -> None:
    async with stage(database, working=False) as on, workers(on, 3, cool_down_seconds=COOL_DOWN) as running:
        await on.fault(kind="status", status=503)
        keys = [await on.issue() for _ in range(20)]
        await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
        await until(lambda: not any(worker.in_flight for worker in running))
        before = len(await on.requests())
        await looked(running)
        assert len(await on.requests()) == before

        await on.lift_faults()
        await on.fault(kind="timeout")
        await database_clock.advance(COOL_DOWN)
        await on.until("select count(*) = 1 from dynamics_sync.circuit where probe_owner is not null")
        await until(lambda: sum(worker.in_flight for worker in running) == 1)
        await looked([worker for worker in running if not worker.in_flight])
        assert len(await on.requests()) == before + 1

        await on.lift_faults()
        await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
        await looked(running)
        assert len(await on.requests()) == before + 1

        await database_clock.advance(COOL_DOWN)
        await on.settled()
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        await assert_all_arrived(on, keys, ACTIVE)


async def test_a_database_clock_set_back_keeps_them_for_one_cool_down_at_most(
    database: str, database_clock: DatabaseClock
) -> None:
    """R12."""
    async with stage(database, working=False) as on, workers(on, 2, cool_down_seconds=COOL_DOWN):
        await on.fault(kind="status", status=503)
        keys = [await on.issue() for _ in range(5)]
        await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
        await on.lift_faults()
        await database_clock.advance(-86400)
        await on.until("select opened_at <= clock_timestamp() from dynamics_sync.circuit")
        await database_clock.advance(COOL_DOWN)
        await on.settled()
        queued = [entry.record_key for entry in await on.engine.stores.queue.entries()]
        await assert_all_arrived(on, [key for key in keys if key not in queued], ACTIVE)


async def test_so_it_is_for_records_that_leave_together(database: str) -> None:
    """Some of them are refused, some answers are slow or get lost, and the records change meanwhile."""
    async with stage(database, working=False) as on:
        async with on.user.transaction():
            keys = [await on.issue() for _ in range(150)]
        await on.fault(kind="status", status=400, key=keys[70], entity_set=ENTITY_SET, share=0.5)
        await on.fault(kind="reset_after_write", method="POST", share=0.2)
        await on.fault(kind="delay", seconds=0.05, share=0.5)
        async with workers(on, 3, cool_down_seconds=0.05, bulk_size=1000):
            for status in ("expiring", "expired", "revoked"):
                await on.user.execute("update public.certifications set status = %s", [status])
            await on.settled()
            await on.lift_faults()
            queue = on.engine.stores.queue
            await queue.replay([entry.id for entry in await queue.entries()], "tester")
            await on.settled()
        await assert_all_arrived(on, keys, REVOKED)
        await assert_never_two_requests_for_one_record(on)
        assert max(len(noted["keys"]) for noted in await on.writes()) > 1


async def test_several_processes_share_the_work(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False, simulated={"limits": Limits(dop_hint=50)}) as on,
        worker_processes(on, database, tmp_path, 3, concurrency=CONCURRENCY),
    ):
        await on.fault(kind="delay", seconds=0.1)
        keys = [await on.issue() for _ in range(60)]
        await change_all(on, keys)
        await on.settled()
        await assert_all_arrived(on, keys, REVOKED)
        await assert_never_two_requests_for_one_record(on)
        assert await most_at_once(on) > int(CONCURRENCY)


async def test_what_a_killed_process_held_is_sent_by_the_others(
    database: str, database_clock: DatabaseClock, tmp_path: Path
) -> None:
    async with stage(database, working=False) as on:
        await on.fault(kind="timeout", entity_set=ENTITY_SET)
        async with worker_processes(on, database, tmp_path, 1, concurrency=CONCURRENCY) as (victim,):
            keys = [await on.issue() for _ in range(10)]
            await on.until("select count(*) > 0 from dynamics_sync.outbox where lease_owner is not null")
            victim.kill()
            await victim.wait()
        await on.lift_faults()
        async with worker_processes(on, database, tmp_path, 2, concurrency=CONCURRENCY):
            await on.until(ALL_ARE_HELD)
            assert await on.rows("select count(*) > 0 from dynamics_sync.outbox") == [(True,)]
            await database_clock.advance(LEASE)
            await on.settled()
        await assert_all_arrived(on, keys, ACTIVE)
        await assert_never_two_requests_for_one_record(on)
