"""Outbox, retry queue and circuit of one target, in PostgreSQL or in the simulation's model: acted on and looked at
alike. The clock stands still unless the test moves it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self, TypeVar
from uuid import UUID

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.core.operation import OperationType, SyncOperation
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.postgres.circuit_store import SELECT_CIRCUIT, PostgresCircuitStore, reading_from
from dynamics_sync.postgres.connections import Connection, Pool, connect, make_pool
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.sync.ports import CircuitStore, Outbox, RetryQueue
from simulation.stores import EPOCH, Database, ModelCircuitStore, ModelOutbox, ModelRetryQueue
from support.database_clock import DatabaseClock
from support.outbox import LEASE_SECONDS, TABLE, TARGET

T = TypeVar("T")

MOMENT = 1e-6
"""The least by which a clock can go on."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record in the outbox. Times are seconds since `EPOCH`."""

    id: int
    version: int
    operation_type: str
    changed_columns: tuple[str, ...]
    enqueued_at: float
    attempts: int
    lease_owner: str | None
    lease_until: float | None

    @property
    def is_leased(self) -> bool:
        return self.lease_owner is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the retry queue."""

    id: str
    key: str
    operation_type: str
    status: str
    reason: str
    error_code: str
    attempt_count: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed request in the time line of a record."""

    key: str
    attempt_number: int
    at: float
    error_code: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Picture:
    """All that can be seen."""

    waiting: dict[str, Waiting]
    entries: list[Entry]
    """Oldest first."""
    unanswered: dict[str, float]
    """Until when requests may take effect late."""
    applied: dict[str, tuple[int, str | None]]
    """Version and ETag of what Dynamics was last known to hold."""
    attempts: list[Failed]
    circuit: Circuit


class Transaction(Protocol):
    """A user's open transaction."""

    async def change(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """Waits for other transactions that have changed the same record."""
        ...

    async def end(self, *, commits: bool) -> None: ...

    async def break_off(self) -> None:
        """Its session dies."""
        ...


class Stores(Protocol):
    """All stores of one target."""

    queue: RetryQueue
    circuits: CircuitStore

    def outbox(self) -> Outbox:
        """Another worker's."""
        ...

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """A user's change, committed at once."""
        ...

    async def begin(self) -> Transaction: ...

    async def replay(self, ids: Sequence[str]) -> list[str]: ...

    async def discard(self, ids: Sequence[str]) -> list[str]: ...

    async def advance(self, seconds: float) -> None:
        """Move the clock, forward or back."""
        ...

    async def look(self) -> Picture: ...

    async def somebody_waits(self) -> bool:
        """Whether somebody waits for a user's transaction to end."""
        ...


async def change(stores: Stores, *keys: str, columns: Sequence[str] = ()) -> None:
    """A user changes records, one after the other."""
    for key in keys:
        await stores.mark_dirty(key, columns=columns)


@asynccontextmanager
async def transaction(stores: Stores, *keys: str, commits: bool = True) -> AsyncIterator[None]:
    """A user's transaction that has changed these records and is still open."""
    user = await stores.begin()
    try:
        for key in keys:
            await user.change(key)
        yield
    finally:
        await user.end(commits=commits)


async def until_somebody_waits(stores: Stores) -> None:
    async with asyncio.timeout(10):
        while not await stores.somebody_waits():
            await asyncio.sleep(0.01)


async def claim(outbox: Outbox, limit: int = 100) -> dict[str, SyncOperation]:
    """What one claim brings, in its order, by key."""
    return {operation.record_key: operation for operation in (await outbox.claim(limit)).operations}


async def claim_one(outbox: Outbox) -> SyncOperation:
    (operation,) = (await outbox.claim(1)).operations
    return operation


WAITING = """
select record_key, id, version, operation_type, changed_columns, enqueued_at, attempts, lease_owner, lease_until
from dynamics_sync.outbox where target = %(target)s
"""
ENTRIES = """
select id::text, record_key, operation_type, status, failure_reason, error_code, attempt_count
from public.dynamics_sync_retry_queue where target = %(target)s order by created_at, id
"""
UNANSWERED = "select record_key, until from dynamics_sync.unanswered where target = %(target)s"
APPLIED = "select record_key, applied_version, etag from dynamics_sync.record_state where target = %(target)s"
ATTEMPTS = """
select record_key, attempt_number, at, error_code, delay_ms from dynamics_sync.attempts
where target = %(target)s order by id
"""
# Two records are never equally old, even if the clock stands still.
AGES = """
create sequence test_clock.moments;
alter table dynamics_sync.outbox alter column enqueued_at
  set default test_clock.clock_timestamp() + nextval('test_clock.moments') * interval '1 microsecond';
"""
FORGET = """
delete from dynamics_sync.outbox; delete from dynamics_sync.unanswered; delete from dynamics_sync.record_state;
delete from dynamics_sync.attempts; delete from dynamics_sync.circuit; delete from dynamics_sync.audit;
delete from public.dynamics_sync_retry_queue; delete from dynamics_sync.incidents;
alter sequence test_clock.moments restart
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

    def outbox(self) -> Outbox:
        return PostgresOutbox(self.pool, TARGET, LEASE_SECONDS)

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        async with self.pool.connection() as connection:
            await mark_dirty(connection, key, operation_type, columns)

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
            statements = (WAITING, ENTRIES, UNANSWERED, APPLIED, ATTEMPTS, SELECT_CIRCUIT)
            cursors = [await self.user.execute(statement, {"target": TARGET}) for statement in statements]
            waiting, entries, unanswered, applied, attempts, circuit = [await each.fetchall() for each in cursors]
        return Picture(
            {key: _waiting(*row) for key, *row in waiting},
            [Entry(*row) for row in entries],
            {key: _seconds(until) for key, until in unanswered},
            {key: (version, etag) for key, version, etag in applied},
            [Failed(key, number, _seconds(at), code, delay_ms) for key, number, at, code, delay_ms in attempts],
            reading_from(circuit[0]).circuit,
        )

    async def somebody_waits(self) -> bool:
        waits = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return bool(await (await self.user.execute(waits)).fetchall())


async def mark_dirty(connection: Connection, key: str, operation_type: OperationType, columns: Sequence[str]) -> None:
    """What the trigger does when a user changes a record."""
    await connection.execute(
        "select dynamics_sync.mark_dirty(%s, %s, %s, %s, %s)", [TARGET, TABLE, key, operation_type, list(columns)]
    )


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


class ModelStores:
    """In the model that the simulation runs on."""

    def __init__(self) -> None:
        self._moments = 0
        self._names = 0
        self._waiting = 0
        self._somebody_ended = asyncio.Event()
        self.database = Database(self.seconds, LATE_SECONDS)
        self._queue = ModelRetryQueue(self.database, self._wire, self._name)
        self.queue: RetryQueue = self._queue
        self.circuits: CircuitStore = ModelCircuitStore(self.database, self._wire)

    def seconds(self) -> float:
        return self._moments * MOMENT

    def outbox(self) -> Outbox:
        return ModelOutbox(self.database, self._wire, self._name, LEASE_SECONDS)

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        await self._wire("change", key, lambda: self.database.mark_dirty(key, operation_type, columns))

    async def begin(self) -> Transaction:
        return ModelTransaction(self)

    async def replay(self, ids: Sequence[str]) -> list[str]:
        return [str(done) for done in await self._queue.replay([UUID(id) for id in ids], "tester")]

    async def discard(self, ids: Sequence[str]) -> list[str]:
        return [id for id in ids if await self._queue.discard(id)]

    async def advance(self, seconds: float) -> None:
        self._moments += round(seconds / MOMENT)

    async def look(self) -> Picture:
        return picture_of(self.database)

    async def somebody_waits(self) -> bool:
        return self._waiting > 0

    async def until_unlocked(self, key: str) -> None:
        self._waiting += 1
        while key in self.database.locked:
            await self._somebody_ended.wait()
        self._waiting -= 1

    def unlock(self, keys: Sequence[str]) -> None:
        self.database.locked.difference_update(keys)
        self._somebody_ended.set()
        self._somebody_ended = asyncio.Event()

    async def _wire(self, name: str, key: str | None, transaction: Callable[[], T]) -> T:
        if key is not None:
            await self.until_unlocked(key)
        return transaction()

    def _name(self) -> str:
        self._names += 1
        return str(UUID(int=self._names))


class ModelTransaction:
    """Its changes are seen when it commits; their records are locked until it ends."""

    def __init__(self, stores: ModelStores) -> None:
        self._stores = stores
        self._changes: list[tuple[str, OperationType, Sequence[str], float]] = []

    async def change(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        if key not in (changed for changed, *_ in self._changes):
            await self._stores.until_unlocked(key)
        self._stores.database.locked.add(key)
        self._changes.append((key, operation_type, columns, self._stores.seconds()))

    async def end(self, *, commits: bool) -> None:
        self._stores.unlock([key for key, *_ in self._changes])
        if commits:
            for change in self._changes:
                self._stores.database.mark_dirty(*change)

    async def break_off(self) -> None:
        await self.end(commits=False)


def picture_of(database: Database) -> Picture:
    """What can be seen of the model."""
    return Picture(
        {
            key: Waiting(
                row.id,
                row.version,
                row.operation_type,
                row.changed_columns,
                row.enqueued_at,
                row.attempts,
                row.lease_owner,
                None if row.lease_owner is None else row.lease_until,
            )
            for key, row in database.outbox.items()
        },
        [
            Entry(
                entry.id,
                entry.key,
                entry.failure.operation.operation_type,
                entry.status,
                entry.failure.reason,
                entry.failure.error_code,
                entry.failure.attempt_count,
            )
            for entry in database.queue.values()
        ],
        dict(database.unanswered),
        dict(database.record_state),
        [
            Failed(key, each.attempt_number, _seconds(each.at), each.error_code, each.delay_ms)
            for key, each in database.attempts
        ],
        database.circuit,
    )


def _waiting(
    id: int,
    version: int,
    operation_type: str,
    changed_columns: Sequence[str],
    enqueued_at: datetime,
    attempts: int,
    lease_owner: str | None,
    lease_until: datetime | None,
) -> Waiting:
    until = None if lease_until is None else _seconds(lease_until)
    columns = tuple(changed_columns)
    return Waiting(id, version, operation_type, columns, _seconds(enqueued_at), attempts, lease_owner, until)


def _seconds(moment: datetime) -> float:
    return (moment - EPOCH) / timedelta(seconds=1)
