"""The stores in a PostgreSQL database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Self
from uuid import UUID

from dynamics_sync.core.operation import OperationType
from dynamics_sync.postgres.circuit_store import SELECT_CIRCUIT, PostgresCircuitStore, reading_from
from dynamics_sync.postgres.connections import Connection, Pool, connect, make_pool
from dynamics_sync.postgres.outbox import IS_SENDING, TAKEN_FROM, PostgresOutbox
from dynamics_sync.postgres.pace_store import PostgresPaceStore
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.sync.ports import CircuitStore, Outbox, PaceStore, RetryQueue
from simulation.stores import EPOCH
from support.database_clock import DatabaseClock
from support.outbox import LEASE_SECONDS, TARGET, mark_dirty, note
from support.stores import Entry, Failed, Picture, Transaction, Waiting, seconds_since

WAITING = """
select record_key, id, version, operation_type, changed_columns, enqueued_at, attempts, lease_owner, lease_until, false
from dynamics_sync.outbox where target = %(target)s
"""
TAKEN = """
select key, record_id, version, operation_type, changed_columns, test_clock.age(noted_at, record_id), 0, lease_owner,
  lease_until, true
from dynamics_sync.changes, unnest(record_ids, record_keys) as record (record_id, key)
where is_taken and target = %(target)s
"""
CHANGES = """
select record_keys, operation_type, changed_columns, noted_at, records
from dynamics_sync.changes where not is_taken and target = %(target)s order by id
"""
ENTRIES = """
select id::text, record_key, operation_type, status, failure_reason, error_code, attempt_count
from public.dynamics_sync_retry_queue where target = %(target)s order by created_at, id
"""
UNANSWERED = "select record_key, until from dynamics_sync.unanswered where target = %(target)s"
APPLIED = """
select record_key, applied_version, etag, payload_hash from dynamics_sync.record_state where target = %(target)s
"""
ATTEMPTS = """
select record_key, attempt_number, at, error_code, delay_ms from dynamics_sync.attempts
where target = %(target)s order by id
"""
# Two records are never equally old, even if the clock stands still: what was noted first is older, and of what was
# noted together, what has the lower id.
AGES = """
alter table dynamics_sync.changes alter column noted_at
  set default test_clock.clock_timestamp() + currval('dynamics_sync.changes_id_seq') * interval '1 millisecond';
alter table dynamics_sync.outbox alter column enqueued_at
  set default test_clock.clock_timestamp() + nextval('dynamics_sync.changes_id_seq') * interval '1 millisecond';
create function test_clock.age(noted_at timestamptz, record_id bigint) returns timestamptz language sql
  return noted_at + record_id * interval '1 microsecond';
create function test_clock.make_older() returns trigger language plpgsql as $$
begin
  new.enqueued_at := test_clock.age(new.enqueued_at, new.id);
  return new;
end
$$;
create trigger make_older before insert on dynamics_sync.outbox
for each row execute function test_clock.make_older();
"""
FORGET = """
delete from dynamics_sync.changes; delete from dynamics_sync.outbox;
delete from dynamics_sync.unanswered; delete from dynamics_sync.record_state;
delete from dynamics_sync.pace; delete from dynamics_sync.senders;
delete from dynamics_sync.attempts; delete from dynamics_sync.circuit; delete from dynamics_sync.audit;
delete from public.dynamics_sync_retry_queue; delete from dynamics_sync.incidents;
alter sequence dynamics_sync.changes_id_seq restart; alter sequence dynamics_sync.outbox_ids restart
"""


class PostgresStores:
    """In a database of its own."""

    def __init__(self, pool: Pool, user: Connection) -> None:
        self.pool = pool
        self.user = user
        """Somebody who looks past all code."""
        self._clock = DatabaseClock(user)
        self._queue = PostgresRetryQueue(pool)
        self.queue: RetryQueue = self._queue
        self.circuits: CircuitStore = PostgresCircuitStore(pool, TARGET)
        self.paces: PaceStore = PostgresPaceStore(pool, TARGET)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        """In a database that is not used for anything else; what it held is forgotten."""
        async with await connect(url) as user:
            if not await (await user.execute("select from pg_namespace where nspname = 'test_clock'")).fetchall():
                await DatabaseClock(user).install()
                await user.execute(AGES)
        async with await connect(url) as user, make_pool(url, 10) as pool:
            stores = cls(pool, user)
            await stores.forget()
            yield stores

    async def forget(self) -> None:
        """As if the database were fresh."""
        await self.user.execute(FORGET)
        await self._clock.stand_still(EPOCH)

    def outbox(self, taken_from: int = TAKEN_FROM) -> Outbox:
        return PostgresOutbox(self.pool, TARGET, LEASE_SECONDS, taken_from)

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        async with self.pool.connection() as connection:
            await mark_dirty(connection, key, operation_type, columns)

    async def note(
        self, *keys: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        async with self.pool.connection() as connection:
            await note(connection, *keys, operation_type=operation_type, columns=columns)

    async def begin(self) -> Transaction:
        connection = await self.pool.getconn()
        await connection.execute("begin")
        return PostgresTransaction(self.pool, connection)

    async def replay(self, ids: Sequence[str]) -> list[str]:
        return [str(done) for done in await self._queue.replay([UUID(id) for id in ids], "tester")]

    async def discard(self, ids: Sequence[str]) -> list[str]:
        return [str(done) for done in await self._queue.discard([UUID(id) for id in ids], "tester", None)]

    async def advance(self, seconds: float) -> None:
        await self._clock.advance(seconds)

    async def look(self) -> Picture:
        async with self.user.pipeline():
            statements = (CHANGES, WAITING, TAKEN, ENTRIES, UNANSWERED, APPLIED, ATTEMPTS, SELECT_CIRCUIT, IS_SENDING)
            cursors = [await self.user.execute(statement, {"target": TARGET}) for statement in statements]
            found = [await each.fetchall() for each in cursors]
        changes, waiting, taken, entries, unanswered, applied, attempts, circuit, is_sending = found
        assert all(len(keys) == records for keys, *_, records in changes)
        places = {key: _waiting(*row) for key, *row in (*waiting, *taken)}
        assert len(places) == len(waiting) + len(taken), "a record is in two places"
        return Picture(
            [(tuple(keys), kind, tuple(columns), seconds_since(at)) for keys, kind, columns, at, _ in changes],
            places,
            [Entry(*row) for row in entries],
            {key: seconds_since(until) for key, until in unanswered},
            {key: (version, etag, payload_hash) for key, version, etag, payload_hash in applied},
            [Failed(key, number, seconds_since(at), code, delay_ms) for key, number, at, code, delay_ms in attempts],
            reading_from(circuit[0]).circuit,
            is_sending[0][0],
        )

    async def somebody_waits(self) -> bool:
        waits = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return bool(await (await self.user.execute(waits)).fetchall())


class PostgresTransaction:
    """On a connection of its own."""

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection = connection

    async def change(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        await mark_dirty(self._connection, key, operation_type, columns)

    async def end(self, *, commits: bool) -> None:
        await self._connection.execute("commit" if commits else "rollback")
        await self._pool.putconn(self._connection)

    async def break_off(self) -> None:
        process = self._connection.info.backend_pid
        await self._connection.close()
        await self._pool.putconn(self._connection)
        async with self._pool.connection() as other, asyncio.timeout(10):
            lives = "select from pg_stat_activity where pid = %s"
            while await (await other.execute(lives, [process])).fetchall():
                await asyncio.sleep(0.001)


def _waiting(
    id: int,
    version: int,
    operation_type: str,
    changed_columns: Sequence[str],
    enqueued_at: datetime,
    attempts: int,
    lease_owner: str | None,
    lease_until: datetime | None,
    is_taken: bool,
) -> Waiting:
    until = None if lease_until is None else seconds_since(lease_until)
    columns = tuple(changed_columns)
    since = seconds_since(enqueued_at)
    return Waiting(id, version, operation_type, columns, since, attempts, lease_owner, until, is_taken)
