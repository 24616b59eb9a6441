"""The database as the engine sees it, in memory: changes, outbox, retry queue, circuit, unanswered requests.

`Database` is the state, and one method for each transaction; all of them are atomic, and none waits. It does what
`postgres/` does with SQL: `tests/contracts` holds the two against one another. The adapters below it make ports of it,
with whatever lies between a worker and its database as a `Wire`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.core.operation import (
    WAITING_STATUSES,
    Applied,
    FailedAttempt,
    OperationType,
    QueueStatus,
    SyncOperation,
)
from dynamics_sync.core.pace import Pace
from dynamics_sync.sync.ports import CircuitReading, Claim, Failure, PaceReading

T = TypeVar("T")

TARGET = "dynamics"
TABLE = "public.things"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

PRESENT_SECONDS = 3.0

TAKEN_FROM = 10
"""So many records that have just changed are taken past the outbox."""
JUST_SECONDS = 10.0
"""What changed longer ago is gathered."""

LOCKED_WAITS_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(slots=True)
class Row:
    """A record in the outbox."""

    id: int
    version: int
    enqueued_at: float
    operation_type: OperationType = OperationType.UPSERT
    changed_columns: tuple[str, ...] = ()
    attempts: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    is_taken: bool = False
    """It is not there itself: it was taken as it was noted, in one row together with those of the same version."""

    def is_free(self, now: float) -> bool:
        """Whether it can be claimed, being there."""
        return not self.is_taken and (self.lease_owner is None or self.lease_until < now)


@dataclass(frozen=True, slots=True)
class Change:
    """What a statement of a user's changed, as it was noted."""

    keys: tuple[str, ...]
    operation_type: OperationType
    columns: tuple[str, ...]
    at: float


@dataclass(slots=True)
class Entry:
    """An entry of the retry queue."""

    id: str
    key: str
    status: QueueStatus
    failure: Failure

    @property
    def is_open(self) -> bool:
        return self.status.is_open


@dataclass(slots=True)
class Database:
    """All of it, of one target and one table.

    Args:
        clock: the database's clock, in seconds.
        late_seconds: how long an unanswered request may still take effect.
    """

    clock: Callable[[], float]
    late_seconds: float
    changes: list[Change] = field(default_factory=list)
    """What is not gathered yet."""
    outbox: dict[str, Row] = field(default_factory=dict)
    queue: dict[str, Entry] = field(default_factory=dict)
    open_entries: dict[str, Entry] = field(default_factory=dict)
    unanswered: dict[str, float] = field(default_factory=dict)
    record_state: dict[str, tuple[int, str | None, bytes | None]] = field(default_factory=dict)
    """Version, etag and payload hash of what arrived last."""
    attempts: list[tuple[str, FailedAttempt]] = field(default_factory=list)
    circuit: Circuit = field(default_factory=Circuit)
    pace: Pace = field(default_factory=Pace)
    senders: dict[str, float] = field(default_factory=dict)
    """Until when each worker counts as sending."""
    locked: set[str] = field(default_factory=set)
    """Records that an open transaction put into the outbox, or locked there, and those taken together with them."""
    _last_moment: int = 0
    _last_version: int = 0
    _last_id: int = 0

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.clock())

    @property
    def waiting(self) -> set[str]:
        """Records that Dynamics does not have in their newest state."""
        return self.changed.union(self.outbox)

    @property
    def changed(self) -> frozenset[str]:
        """Records of which a change is not gathered yet."""
        return frozenset(key for change in self.changes for key in change.keys)

    def note(
        self, *keys: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """What the trigger does when a user changes records."""
        self.changes.append(Change(keys, operation_type, tuple(columns), self._moment()))

    def gather(self) -> None:
        """Bring what was changed into the outbox, all or nothing."""
        changed = self.changed
        if not changed.isdisjoint(self.locked):
            return
        for key in sorted(changed):
            of_record = [change for change in self.changes if key in change.keys]
            columns = sorted({name for change in of_record for name in change.columns})
            self.mark_dirty(key, of_record[-1].operation_type, columns, of_record[0].at)
        self.changes = []

    def mark_dirty(
        self,
        key: str,
        operation_type: OperationType = OperationType.UPSERT,
        columns: Sequence[str] = (),
        changed_at: float | None = None,
    ) -> None:
        """Whoever calls it holds the row's lock, or has waited for it; it is called when the transaction commits, which
        may be later than the change."""
        self._last_version += 1
        row = self.outbox.get(key)
        if row is None:
            self._last_id += 1
            enqueued_at = self._moment() if changed_at is None else changed_at
            self.outbox[key] = Row(self._last_id, self._last_version, enqueued_at, operation_type, tuple(columns))
            return
        self.unfold(key)
        row.version, row.operation_type = self._last_version, operation_type
        row.changed_columns = tuple(sorted({*row.changed_columns, *columns}))

    def _moment(self) -> float:
        """Now. No two are equal, even if the clock stands still."""
        self._last_moment += 1
        return self.clock() + self._last_moment * 1e-10

    def send_again(self, key: str, operation_type: OperationType = OperationType.UPSERT) -> None:
        """Mark it dirty so that it is sent, whatever Dynamics is believed to hold."""
        self.mark_dirty(key, operation_type)
        self.forget_payload(key)

    def known_payload(self, key: str) -> bytes | None:
        """A digest of what Dynamics is known to hold of a record."""
        return self.record_state[key][2] if key in self.record_state else None

    def claim(
        self, limit: int, claim_id: str, lease_seconds: float, taken_from: int = TAKEN_FROM
    ) -> list[SyncOperation]:
        """Where many have just changed they are taken, or else gathered; not before those that were never tried are on
        their way."""
        self.unfold_left()
        is_flood = self.is_flood(taken_from)
        if not is_flood or self.is_turn():
            taken = self.take(limit, taken_from, claim_id, lease_seconds) if is_flood else []
            if taken:
                return taken
            self.gather()
        return self.lease(limit, claim_id, lease_seconds)

    def is_flood(self, taken_from: int) -> bool:
        """Whether so many records have just changed."""
        first = self.changes[: max(taken_from, 1)]
        oldest = min((change.at for change in first), default=float("-inf"))
        return oldest > self.clock() - JUST_SECONDS and sum(len(change.keys) for change in first) >= taken_from

    def is_turn(self) -> bool:
        """Whether all that were never tried are on their way."""
        now = self.clock()
        return not any(row.attempts == 0 and row.is_free(now) for row in self.outbox.values())

    def take(self, limit: int, at_least: int, claim_id: str, lease_seconds: float) -> list[SyncOperation]:
        """Lease what was changed past the outbox. Nothing if a record changed twice or is there already, or if somebody
        may be about to put one there."""
        count = 0
        each: list[tuple[str, Change]] = []
        while count < len(self.changes) and len(each) < limit:
            each += [(key, self.changes[count]) for key in self.changes[count].keys]
            count += 1
        keys = {key for key, _ in each}
        if self.locked or len(each) < at_least or len(keys) < len(each) or not keys.isdisjoint(self.outbox):
            return []
        left = tuple(key for key, _ in each[limit:])
        self.changes[:count] = [replace(self.changes[count - 1], keys=left)] if left else []
        alike: dict[tuple[OperationType, tuple[str, ...]], list[tuple[str, float]]] = {}
        for key, change in each[:limit]:
            alike.setdefault((change.operation_type, change.columns), []).append((key, change.at))
        return [
            operation
            for (operation_type, columns), records in alike.items()
            for operation in self._take_together(operation_type, columns, records, claim_id, lease_seconds)
        ]

    def _take_together(
        self,
        operation_type: OperationType,
        columns: tuple[str, ...],
        records: Sequence[tuple[str, float]],
        claim_id: str,
        lease_seconds: float,
    ) -> list[SyncOperation]:
        self._last_version += 1
        oldest = min(at for _, at in records)
        for key, _ in records:
            self._last_id += 1
            self.outbox[key] = Row(
                self._last_id,
                self._last_version,
                oldest,
                operation_type,
                columns,
                lease_owner=claim_id,
                lease_until=self.clock() + lease_seconds,
                is_taken=True,
            )
        return [self._claimed(key) for key, _ in records]

    def together(self, key: str) -> frozenset[str]:
        """A record, and those that are taken together with it."""
        one = self.outbox.get(key)
        if one is None or not one.is_taken:
            return frozenset({key})
        return frozenset(other for other, row in self.outbox.items() if row.is_taken and row.version == one.version)

    def unfold(self, key: str) -> None:
        """Give those that are taken together with it rows of the outbox after all."""
        for each in self.together(key):
            self.outbox[each].is_taken = False

    def unfold_left(self) -> None:
        """Those whose lease ran out."""
        now = self.clock()
        for key, row in self.outbox.items():
            if row.is_taken and row.lease_until < now and self.together(key).isdisjoint(self.locked):
                self.unfold(key)

    def lease(self, limit: int, claim_id: str, lease_seconds: float) -> list[SyncOperation]:
        """Lease what is in the outbox: the least tried first, then the oldest."""
        now = self.clock()
        due = [
            (row.attempts, row.enqueued_at, row.id, key, row)
            for key, row in self.outbox.items()
            if row.is_free(now) and key not in self.locked
        ]
        due.sort()
        claimed = []
        for *_, key, row in due[:limit]:
            if row.lease_owner is not None:
                self.note_unanswered(key)
            row.lease_owner, row.lease_until = claim_id, now + lease_seconds
            claimed.append(self._claimed(key))
        return claimed

    def _claimed(self, key: str) -> SyncOperation:
        row = self.outbox[key]
        return SyncOperation(
            TABLE,
            key,
            row.operation_type,
            row.version,
            row.attempts,
            TARGET,
            row.changed_columns,
            claim_id=row.lease_owner,
            outbox_id=row.id,
        )

    def renew(self, operation: SyncOperation, lease_seconds: float) -> bool:
        row = self._ours(operation)
        if row is None or operation.record_key in self.locked:
            return False
        self.unfold(operation.record_key)
        row.lease_until = self.clock() + lease_seconds
        return True

    def settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> dict[int, str]:
        """The outcome for each row: gone, changed, locked or lost."""
        outcomes = {}
        if any(applied.unanswered for _, applied in arrived):
            for operation, _ in arrived:
                if self._ours(operation) is not None:
                    self.unfold(operation.record_key)
        for operation, applied in arrived:
            key = operation.record_key
            if applied.unanswered and self._row(operation) is not None:
                self.note_unanswered(key)
            outcomes[operation.outbox_id] = outcome = self._give_back(operation)
            if outcome in ("gone", "changed") and applied.is_sent:
                is_certain = outcome == "gone" and key not in self.unanswered
                self.record_state[key] = (operation.version, applied.etag, applied.payload_hash if is_certain else None)
            entry = self.open_entries.get(key)
            if outcome == "gone" and entry is not None:
                replaying = entry.status is QueueStatus.REPLAYING
                self._close(entry, QueueStatus.REPLAYED if replaying else QueueStatus.SUPERSEDED)
        return outcomes

    def release(
        self, operation: SyncOperation, attempts: int, failures: Sequence[FailedAttempt], unanswered: bool
    ) -> bool:
        """Whether it is still ours, as somebody has locked it."""
        self.attempts += [(operation.record_key, failure) for failure in failures]
        if self._ours(operation) is not None:
            self.unfold(operation.record_key)
        if unanswered and self._row(operation) is not None:
            self.note_unanswered(operation.record_key)
        row = self._ours(operation)
        if row is None or operation.record_key in self.locked:
            return row is not None
        row.lease_owner, row.attempts = None, attempts
        self.forget_payload(operation.record_key)
        return False

    def add(self, failure: Failure, entry_id: str) -> str:
        """A new entry of that id, or the record's open one; the outbox is settled with it."""
        operation = failure.operation
        key = operation.record_key
        if operation.claim_id is not None:
            self._give_back(operation)
            self.attempts += [(key, each) for each in failure.failures]
            self.forget_payload(key)
            if failure.unanswered:
                self.note_unanswered(key)
        entry = self.open_entries.get(key)
        if entry is None:
            entry = self.queue[entry_id] = self.open_entries[key] = Entry(
                entry_id, key, failure.reason.queue_status, failure
            )
        entry.status, entry.failure = failure.reason.queue_status, failure
        return entry.id

    def replay(self, entry_id: str) -> bool:
        entry = self.queue.get(entry_id)
        if entry is None or entry.status not in WAITING_STATUSES:
            return False
        self.send_again(entry.key, entry.failure.operation.operation_type)
        self.outbox[entry.key].attempts = 0
        entry.status = QueueStatus.REPLAYING
        return True

    def replaying(self) -> int:
        return sum(entry.status is QueueStatus.REPLAYING for entry in self.open_entries.values())

    def is_sending(self) -> bool:
        """Whether any worker holds a record."""
        now = self.clock()
        return any(row.lease_owner is not None and row.lease_until > now for row in self.outbox.values())

    def discard(self, entry_id: str) -> bool:
        entry = self.queue.get(entry_id)
        if entry is None or entry.status not in WAITING_STATUSES:
            return False
        self._close(entry, QueueStatus.DISCARDED)
        return True

    def resend_unanswered(self) -> None:
        now = self.clock()
        for key in [key for key, until in self.unanswered.items() if until <= now]:
            entry = self.open_entries.get(key)
            is_queued = entry is not None and entry.status in WAITING_STATUSES
            is_there = key in self.outbox and not self.outbox[key].is_taken
            if key in self.locked and (is_there or not is_queued):
                continue  # a row that is inserted but not yet committed is not seen: it locks nobody out
            del self.unanswered[key]
            if not is_queued:
                self.mark_dirty(key)

    def load_circuit(self) -> CircuitReading:
        return CircuitReading(self.circuit, self.now())

    def compare_and_set_circuit(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        if self.circuit.revision != expected.revision or (not_after is not None and self.now() > not_after):
            return False
        self.circuit = new
        return True

    def share_pace(self, worker: str) -> PaceReading:
        now = self.clock()
        was_there = self.senders.get(worker, -1.0) >= now
        self.senders = {each: until for each, until in self.senders.items() if until >= now}
        if self.senders.get(worker, now) < now + PRESENT_SECONDS / 2:
            self.senders[worker] = now + PRESENT_SECONDS
        count = len(self.senders)
        rank = sum(each < worker for each in self.senders)
        return PaceReading(self.pace, self.now(), count, rank, count == 1 and not was_there)

    def compare_and_set_pace(self, expected: Pace, new: Pace) -> bool:
        if self.pace.revision != expected.revision:
            return False
        self.pace = new
        return True

    def _row(self, operation: SyncOperation) -> Row | None:
        row = self.outbox.get(operation.record_key)
        return row if row is not None and row.id == operation.outbox_id else None

    def _ours(self, operation: SyncOperation) -> Row | None:
        row = self._row(operation)
        return row if row is not None and row.lease_owner == operation.claim_id else None

    def _give_back(self, operation: SyncOperation) -> str:
        row = self._ours(operation)
        if row is None:
            return "lost"
        if operation.record_key in self.locked:
            return "locked"
        if row.version == operation.version:
            del self.outbox[operation.record_key]
            return "gone"
        row.lease_owner = None
        return "changed"

    def _close(self, entry: Entry, status: QueueStatus) -> None:
        entry.status = status
        del self.open_entries[entry.key]

    def note_unanswered(self, key: str) -> None:
        self.unanswered[key] = self.clock() + self.late_seconds
        self.forget_payload(key)

    def forget_payload(self, key: str) -> None:
        if key in self.record_state:
            self.record_state[key] = (*self.record_state[key][:2], None)


class Wire(Protocol):
    """The way to the database: a transaction goes there, its result comes back, unless something happens."""

    async def __call__(self, name: str, key: str | None, transaction: Callable[[], T]) -> T:
        """
        Args:
            name: what it is, for a time line.
            key: the record whose lock the transaction waits for, if it waits for one.

        Raises:
            DatabaseError: it is not known whether the transaction took place.
        """
        ...


class Names(Protocol):
    """Ids that are new each time."""

    def __call__(self) -> str: ...


class ModelOutbox:
    """`postgres.outbox.PostgresOutbox`."""

    def __init__(
        self, database: Database, wire: Wire, names: Names, lease_seconds: float, taken_from: int = TAKEN_FROM
    ) -> None:
        self._database = database
        self._wire = wire
        self._names = names
        self._lease_seconds = lease_seconds
        self._taken_from = taken_from

    async def gather(self) -> None:
        await self._wire("gather", None, self._database.gather)

    async def claim(self, limit: int) -> Claim:
        claim_id = self._names()

        def transaction() -> Claim:
            operations = self._database.claim(limit, claim_id, self._lease_seconds, self._taken_from)
            return Claim(operations, self._database.load_circuit())

        return await self._wire("claim", None, transaction)

    async def renew(self, operations: Sequence[SyncOperation]) -> Set[tuple[int, str | None]]:
        def transaction() -> Set[tuple[int, str | None]]:
            kept = [each for each in operations if self._database.renew(each, self._lease_seconds)]
            return {(each.outbox_id, each.claim_id) for each in kept}

        return await self._wire("renew", None, transaction)

    async def settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> None:
        left: dict[int, tuple[SyncOperation, Applied]] = {}
        again = [pair for pair in arrived if left.setdefault(pair[0].outbox_id, pair) is not pair]

        async def settle() -> bool:
            nonlocal left
            outcomes = await self._wire("settle", None, lambda: self._database.settle(list(left.values())))
            for row, outcome in outcomes.items():
                if outcome == "lost":
                    operation = left[row][0]
                    await self._send_again(operation.record_key, operation.operation_type)
            left = {row: left[row] for row, outcome in outcomes.items() if outcome == "locked"}
            return bool(left)

        await _while_locked(settle)
        if again:
            await self.settle(again)

    async def release(
        self,
        operation: SyncOperation,
        attempts: int,
        failures: Sequence[FailedAttempt] = (),
        unanswered: bool = False,
    ) -> None:
        to_note = (failures, unanswered)

        async def release() -> bool:
            nonlocal to_note
            noting, to_note = to_note, ((), False)
            return await self._wire("release", None, lambda: self._database.release(operation, attempts, *noting))

        await _while_locked(release)

    async def resend_unanswered(self) -> None:
        await self._wire("resend", None, self._database.resend_unanswered)

    async def _send_again(self, key: str, operation_type: OperationType) -> None:
        await self._wire("send again", key, lambda: self._database.send_again(key, operation_type))


async def _while_locked(attempt: Callable[[], Awaitable[bool]]) -> None:
    for wait_seconds in LOCKED_WAITS_SECONDS:
        if wait_seconds:
            await asyncio.sleep(wait_seconds)
        if not await attempt():
            return


class ModelRetryQueue:
    """`postgres.retry_queue.PostgresRetryQueue`."""

    def __init__(self, database: Database, wire: Wire, names: Names) -> None:
        self._database = database
        self._wire = wire
        self._names = names

    async def add(self, failure: Failure) -> str:
        entry_id = self._names()
        return await self._wire("queue insert", None, lambda: self._database.add(failure, entry_id))

    async def replay(self, ids: Sequence[UUID], actor: str) -> list[UUID]:
        replayed = []
        for entry_id in ids:
            key = self._database.queue[str(entry_id)].key
            if await self._wire("replay", key, lambda entry_id=entry_id: self._database.replay(str(entry_id))):  # type: ignore[misc]
                replayed.append(entry_id)
        return replayed

    async def standing(self, ids: Collection[UUID]) -> Mapping[UUID, QueueStatus]:
        queue = self._database.queue
        return await self._wire("look at entries", None, lambda: {each: queue[str(each)].status for each in ids})

    async def replaying(self) -> int:
        return await self._wire("count replays", None, self._database.replaying)

    async def discard(self, entry_id: str) -> bool:
        return await self._wire("discard", None, lambda: self._database.discard(entry_id))


class ModelCircuitStore:
    """`postgres.circuit_store.PostgresCircuitStore`."""

    def __init__(self, database: Database, wire: Wire) -> None:
        self._database = database
        self._wire = wire

    async def load(self) -> CircuitReading:
        return await self._wire("read circuit", None, self._database.load_circuit)

    async def compare_and_set(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        return await self._wire(
            "set circuit", None, lambda: self._database.compare_and_set_circuit(expected, new, not_after)
        )


class ModelPaceStore:
    """`postgres.pace_store.PostgresPaceStore`."""

    def __init__(self, database: Database, wire: Wire) -> None:
        self._database = database
        self._wire = wire

    async def share(self, worker: str) -> PaceReading:
        return await self._wire("share pace", None, lambda: self._database.share_pace(worker))

    async def compare_and_set(self, expected: Pace, new: Pace) -> bool:
        return await self._wire("set pace", None, lambda: self._database.compare_and_set_pace(expected, new))


async def direct(name: str, key: str | None, transaction: Callable[[], Any]) -> Any:
    """A wire on which nothing happens."""
    return transaction()
