"""The stores of the simulation."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

from dynamics_sync.core.operation import OperationType
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.sync.ports import CircuitStore, Outbox, PaceStore, RetryQueue
from simulation.stores import Database, ModelCircuitStore, ModelOutbox, ModelPaceStore, ModelRetryQueue
from support.outbox import LEASE_SECONDS
from support.stores import MOMENT, Entry, Failed, Picture, Transaction, Waiting, seconds_since

T = TypeVar("T")


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
        self.paces: PaceStore = ModelPaceStore(self.database, self._wire)

    def seconds(self) -> float:
        return self._moments * MOMENT

    def outbox(self) -> Outbox:
        return ModelOutbox(self.database, self._wire, self._name, LEASE_SECONDS)

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        await self._wire("change", key, lambda: self.database.mark_dirty(key, operation_type, columns))

    async def note(
        self, *keys: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        self.database.note(*keys, operation_type=operation_type, columns=columns)

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
        [(change.keys, change.operation_type, change.columns, change.at) for change in database.changes],
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
                row.is_taken,
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
            Failed(key, each.attempt_number, seconds_since(each.at), each.error_code, each.delay_ms)
            for key, each in database.attempts
        ],
        database.circuit,
        database.is_sending(),
    )
