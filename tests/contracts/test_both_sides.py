"""The model of a record that changes on both sides does what PostgreSQL does, step by step."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from dynamics_sync.core.conflicts import RecordNeededError
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import Applied, FailureReason, QueueStatus, SyncOperation
from dynamics_sync.postgres.inbox import PostgresInbox
from dynamics_sync.postgres.inbox_apply import PostgresInboxRows
from dynamics_sync.sync.inbox_ports import BusyError, ClaimedDelivery, Delivery
from dynamics_sync.sync.ports import Failure
from dynamics_sync.sync.reading import Held
from support.both_sides import KEY, LONG_AGO, RECORD_ID, History, Record, Step, Told, at, people
from support.outbox import TARGET, claim_one
from support.postgres import SERVERS, Cluster
from support.postgres_stores import PostgresStores
from support.search import LONGER

HISTORIES = 40 * LONGER

PREPARE = """
create table public.people (id text primary key, name text, city text);
grant select, update on public.people to service_role;
select dynamics_sync.watch('public.people')
"""
BEGIN = """
delete from public.people; delete from dynamics_sync.inbox; delete from dynamics_sync.inbox_records;
delete from dynamics_sync.conflicts; insert into public.people values ('7', '0', '0');
delete from dynamics_sync.changes; delete from dynamics_sync.outbox
"""
AGREED = """
insert into dynamics_sync.record_state (target, source_table, record_key, applied_version, applied_at)
values (%s, 'public.people', %s, 0, %s)
"""
OPEN = "select id from public.dynamics_sync_retry_queue where status = 'requires_investigation'"
PICTURE = """
select
  (select array[name, city] from public.people),
  (select jsonb_agg(to_jsonb(changed_columns) order by id) from dynamics_sync.changes),
  (select array_to_json(changed_columns)::jsonb || to_jsonb(lease_owner is not null) from dynamics_sync.outbox),
  (select taken from dynamics_sync.inbox_records),
  (select array_agg(array[column_name, winner] order by id) from dynamics_sync.conflicts),
  exists (select from dynamics_sync.unanswered),
  (select payload_json -> 'changed_columns' || to_jsonb(status = 'replaying') from public.dynamics_sync_retry_queue
   where status in ('requires_investigation', 'replaying'))
"""


class InPostgres:
    """The same record in a database, with the parts of the product around it."""

    def __init__(self, stores: PostgresStores) -> None:
        self._stores = stores
        self._outbox = stores.outbox()
        self._inbox = PostgresInbox(stores.pool, TARGET)
        self._rows = PostgresInboxRows(stores.pool, TARGET)
        self._operation: SyncOperation | None = None
        self._claimed: ClaimedDelivery | None = None

    async def begin(self) -> None:
        await self._stores.forget()
        await self._stores.user.execute(BEGIN)
        await self._stores.user.execute(AGREED, [TARGET, KEY, at(LONG_AGO)])

    async def do(self, step: Step, model: Record) -> None:
        """As the model is about to do it."""
        match step.name:
            case "edit_here":
                column, value = step.words
                await self._stores.user.execute(f"update public.people set {column} = %s", [value])
            case "claim" if model.can_be_claimed:
                self._operation = await claim_one(self._outbox)
            case "settle" if model.request is not None and model.request.has_landed:
                assert self._operation is not None
                await self._outbox.settle([(self._operation, Applied(1))])
            case "lose" if model.request is not None:
                assert self._operation is not None
                await self._outbox.release(self._operation, 1, unanswered=True)
            case "refuse" if model.request is not None and not model.request.has_landed:
                assert self._operation is not None
                await self._stores.queue.add(Failure(self._operation, FailureReason.REJECTED, "http_400", 1))
            case "replay":
                entries = await (await self._stores.user.execute(OPEN)).fetchall()
                await self._stores.replay([str(entry) for (entry,) in entries])
            case "resend":
                await self._outbox.resend_unanswered()
            case "deliver" if told := model.next_told(*step.words):
                await self._deliver(told, model)

    async def _deliver(self, told: Told, model: Record) -> None:
        if self._claimed is None:
            if told.claimed_at is None:
                await self._receive()
            (self._claimed,) = await self._inbox.claim(1, 60.0)
        held = None if told.held is None else Held(RECORD_ID, KEY, 'W/"1"', told.held)
        try:
            await self._rows.apply(self._claimed, "test", told.change, people(model.owner), KEY, held)
        except RecordNeededError:
            return
        except BusyError:
            await self._inbox.release(self._claimed, 0.0)
        self._claimed = None

    async def _receive(self) -> None:
        delivery = Delivery(str(uuid4()), {}, b"{}", "contact", "Update", RECORD_ID)
        while True:
            try:
                return await self._inbox.receive(delivery)
            except DatabaseError:  # it has 50 ms
                continue

    async def picture(self) -> Any:
        return await (await self._stores.user.execute(PICTURE)).fetchone()


def picture_of(model: Record) -> Any:
    waiting, queued = model.waiting, model.queued
    return (
        [model.row["name"], model.row["city"]],
        model.changes,
        None if waiting is None else [*waiting.changed_columns, waiting.lease_owner is not None],
        sorted(model.taken),
        [[name, str(winner)] for name, winner in model.conflicts],
        model.is_unanswered,
        queued and [*queued.failure.operation.changed_columns, queued.status is QueueStatus.REPLAYING],
    )


@pytest.fixture(scope="module", params=SERVERS)
def people_at(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[str]:
    with clusters[request.param].database() as url:
        yield url


async def test_the_model_does_what_postgres_does(people_at: str) -> None:
    async with PostgresStores.at(people_at) as stores:
        await stores.user.execute(PREPARE)
        for seed in range(HISTORIES):
            real, history = InPostgres(stores), History.of(seed)
            await real.begin()
            now = 0.0
            for step in history.steps():
                await stores.advance(step.at - now)
                now = step.at
                await real.do(step, history.record)
                history.record.do(step)
                row, changes, waiting, taken, conflicts, *rest = await real.picture()
                found = (row, changes or [], waiting, taken or [], conflicts or [], *rest)
                assert found == picture_of(history.record), "\n".join((f"seed {seed}", *history.record.lines))
