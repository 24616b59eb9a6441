"""Reconciliation and the circuit that all workers share, and its schedule in the workers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from dynamics_sync import app
from dynamics_sync.core.errors import CredentialsError
from dynamics_sync.sync.reading import ReadingError
from dynamics_sync.sync.reconcile import Watcher
from dynamics_sync.sync.reconciliation import TableReport, TurnLostError
from support.by_hand import hand
from support.database_clock import DatabaseClock
from support.engine import ENTITY_SET, Stage, engine_settings, stage

DAY = 86_400.0
REVOKED = 100000004


async def reconcile(on: Stage) -> TableReport:
    (report,) = await on.engine.reconciliation.reconciler.run()
    return report


async def arrivals(on: Stage, method: str = "GET") -> Sequence[tuple[float, float]]:
    """When each request that reads came, and when it was answered."""
    return [(noted["at"], noted["done_at"]) for noted in await on.requests() if noted["method"] == method]


async def test_it_waits_while_the_circuit_is_open_and_then_goes_on(database: str) -> None:
    async with stage(database, cool_down_seconds=1.5) as on:
        await on.issue()
        await on.settled()
        await on.fault(kind="status", status=503, count=3, method="GET", entity_set=ENTITY_SET)
        assert (await reconcile(on)).compared == 1
        *failed, succeeded = await arrivals(on)
        assert len(failed) == 3
        assert succeeded[0] - failed[-1][1] >= 1.4


async def test_it_sends_nothing_while_others_have_opened_the_circuit(
    database: str, database_clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamics_sync.sync.reading.LOOK_SECONDS", 0.05)
    async with stage(database, cool_down_seconds=60) as on:
        await on.fault(kind="status", status=503, method="PATCH")
        await on.issue()
        await on.settled()
        waits, waited = [], asyncio.Event()

        def note(until: datetime | None) -> None:
            waits.append(until)
            if len(waits) == 3:
                waited.set()

        before = await all_requests(on)
        reconciler = on.engine.reconciliation.reconciler
        reconciling = asyncio.create_task(reconciler.run(watcher=Watcher(silence=note)))
        await asyncio.wait_for(waited.wait(), 15)
        assert None not in waits
        assert await all_requests(on) == before
        await on.lift_faults()
        await database_clock.advance(60)
        assert [report.waiting for report in await reconciling] == [1]


async def all_requests(on: Stage) -> list[dict[str, Any]]:
    async with on.http.get(f"{on.simulator.url}/_simulator/requests") as response:
        return list(await response.json())


async def test_it_waits_as_long_as_dynamics_asks_for(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="status", status=429, retry_after=1, count=1, method="GET", entity_set=ENTITY_SET)
        await reconcile(on)
        first, second = await arrivals(on)
        assert second[0] - first[1] >= 0.95


async def test_it_gives_up_what_dynamics_cannot_answer_and_keeps_what_it_has(database: str) -> None:
    async with stage(database, cool_down_seconds=0.1) as on:
        await on.issue()
        await on.settled()
        await on.fault(kind="status", status=500, method="GET", entity_set=ENTITY_SET)
        with pytest.raises(ReadingError, match=r"4 tries \(0x80040216\)"):
            await reconcile(on)
        assert len(await arrivals(on)) == 4
        await on.lift_faults()
        assert (await reconcile(on)).compared == 1


async def test_a_login_page_is_no_answer(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="garbled", count=1, method="GET", entity_set=ENTITY_SET)
        assert (await reconcile(on)).differences == 0
        assert len(await arrivals(on)) == 2


async def test_a_revoked_token_is_renewed(database: str) -> None:
    async with stage(database) as on:
        await on.issue()
        await on.settled()
        await on.credentials(revoke=True)
        assert (await reconcile(on)).compared == 1
        await on.credentials(revoke=True, client_secret="other")
        with pytest.raises(CredentialsError):
            await reconcile(on)


async def test_one_question_at_a_time(database: str) -> None:
    async with stage(database) as on:
        by = await hand(on)
        for _ in range(5):
            await by.delete(await settled_record(on))
        await reconcile(on)
        spans = sorted(await arrivals(on))
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


async def settled_record(on: Stage) -> str:
    key = await on.issue()
    await on.settled()
    return key


async def test_a_turn_that_passed_to_somebody_else_is_over(database: str, database_clock: DatabaseClock) -> None:
    async with stage(database) as on:
        await settled_record(on)
        await on.fault(kind="timeout", method="GET", entity_set=ENTITY_SET)
        slow = asyncio.create_task(reconcile(on))
        await on.until_requests(2)
        await database_clock.advance(DAY)
        await on.user.execute("update dynamics_sync.reconciliation set owner = 'somebody else'")
        await on.lift_faults()
        with pytest.raises(TurnLostError):
            await slow
        assert await on.rows("select owner from dynamics_sync.reconciliation") == [("somebody else",)]


@asynccontextmanager
async def workers(on: Stage, count: int, **overrides: object) -> AsyncIterator[None]:
    settings = engine_settings(on.engine.database_url, on.simulator.url, **overrides)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        engines = [
            await stack.enter_async_context(app.open_engine(settings, on.engine.database_url)) for _ in range(count)
        ]
        for engine in engines:
            group.create_task(app.run_worker(engine))
        yield
        for engine in engines:
            engine.worker.stop()


FINISHED = "select count(*) = 1 from dynamics_sync.reconciliation where finished_at > begun_at and owner is null"


@pytest.mark.every_postgres
async def test_two_workers_have_one_schedule(database: str, database_clock: DatabaseClock) -> None:
    async with stage(database) as on:
        edited = await settled_record(on)
        await on.until("select count(*) = 1 from dynamics_sync.reconciliation")
        await (await hand(on)).edit(edited, hlf_status=REVOKED)
        await database_clock.advance(DAY - 60)
        async with workers(on, 2):
            await settled_record(on)
        assert await arrivals(on) == []
        await database_clock.advance(120)
        with capture_logs() as logs:
            async with workers(on, 2):
                await on.until(FINISHED)
                await settled_record(on)
        assert len(await arrivals(on)) == 2
        (found,) = [log for log in logs if log["event"].startswith("reconcile.")]
        assert (found["event"], found["different"], found["compared"]) == ("reconcile.found", 1, 2)
        assert (await on.record(edited) or {})["hlf_status"] == REVOKED


async def test_the_schedule_repairs_if_it_is_told_to(database: str, database_clock: DatabaseClock) -> None:
    async with stage(database, working=False) as on:
        async with workers(on, 1, reconcile_repair=True, reconcile_hours=1):
            key = await settled_record(on)
            await on.until("select count(*) = 1 from dynamics_sync.reconciliation")
            await (await hand(on)).delete(key)
        await database_clock.advance(3600)
        async with workers(on, 1, reconcile_repair=True, reconcile_hours=1):
            await on.until(FINISHED)
            await on.settled()
            assert await on.record(key) is not None


async def test_without_a_schedule_nothing_is_read(database: str) -> None:
    async with stage(database, working=False) as on, workers(on, 1, reconcile_hours=0):
        await settled_record(on)
        assert await on.rows("select count(*) from dynamics_sync.reconciliation") == [(0,)]


async def test_what_the_schedule_could_not_finish_is_tried_again_in_an_hour_and_goes_on(
    database: str, database_clock: DatabaseClock
) -> None:
    async with stage(database, working=False) as on:
        async with workers(on, 1):
            await settled_record(on)
            await on.until("select count(*) = 1 from dynamics_sync.reconciliation")
        await database_clock.advance(DAY)
        await on.fault(kind="status", status=403, method="GET", entity_set=ENTITY_SET)
        with capture_logs() as logs:
            async with workers(on, 1):
                await on.until("select count(*) = 1 from dynamics_sync.reconciliation where not_before is not null")
        assert [log["event"] for log in logs if log["event"].startswith("reconcile.")] == ["reconcile.refused"]
        await on.lift_faults()
        await database_clock.advance(3600)
        async with workers(on, 1):
            await on.until(FINISHED)
        assert await on.rows("select compared from dynamics_sync.reconciliation_progress") == [(1,)]


TWO_TABLES = """
[[tables]]
source = "public.{name}"
key = "id"
entity_set = "new_{name}"
logical_name = "new_{name}row"
alternate_key = "new_key"
[tables.columns]
v = "new_v"
"""


async def test_a_table_that_may_not_be_read_keeps_no_other_from_being_compared(database: str, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text("".join(TWO_TABLES.format(name=name) for name in ("closed", "locked", "open")))
    with psycopg.connect(database, autocommit=True) as owner:
        for name in ("closed", "locked", "open"):
            owner.execute(f"create table public.{name} (id int primary key, v text)".encode())
            owner.execute("select dynamics_sync.watch(%s::regclass)", [f"public.{name}"])
            owner.execute(f"insert into public.{name} values (1, 'x')".encode())
    async with stage(database, mapping=mapping) as on:
        await on.settled()
        await on.fault(kind="status", status=403, method="GET", entity_set="new_closed")
        await on.user.execute("revoke select on public.locked from service_role")
        closed, locked, opened = await on.engine.reconciliation.reconciler.run()
        assert "Dynamics did not let new_closed be read" in str(closed.error)
        assert "public.locked cannot be read" in str(locked.error)
        assert (opened.compared, opened.error) == (1, None)
