"""The retry queue in PostgreSQL (R6, R13, R14), and what a person does with its entries.

Written and read with service_role's rights. An entry holds metadata only.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Rollback
from psycopg.rows import class_row

from dynamics_sync.core.operation import FailedAttempt, QueueStatus
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.postgres.audit import Operator, note
from dynamics_sync.postgres.connections import AS_OURSELVES, AS_SERVICE_ROLE, Connection, Pool, transaction
from dynamics_sync.postgres.incidents import NUMBER_OF_OPEN
from dynamics_sync.postgres.outbox import FORGET_PAYLOAD, GIVE_BACK, NOTE_UNANSWERED, SEND_AGAIN, claimed, note_attempts
from dynamics_sync.sync.ports import Failure

INSERT = """
insert into public.dynamics_sync_retry_queue as entry
  (target, source_table, record_key, operation_type, payload_json, failure_reason, error_code, attempt_count, status,
  incident_id)
values (%(target)s, %(source_table)s, %(record_key)s, %(operation_type)s, %(payload_json)s, %(failure_reason)s,
  %(error_code)s, %(attempt_count)s, %(status)s, %(incident_id)s)
on conflict (target, source_table, record_key)
  where status in ('pending_manual_replay', 'requires_investigation', 'replaying')
do update set
  operation_type = excluded.operation_type, payload_json = excluded.payload_json,
  failure_reason = excluded.failure_reason, error_code = excluded.error_code,
  attempt_count = excluded.attempt_count, status = excluded.status, updated_at = clock_timestamp(),
  incident_id = coalesce(excluded.incident_id, entry.incident_id)
returning id::text
"""

STATEMENT_TIMEOUT = "set local statement_timeout = '450ms'"
"""The server gives up shortly before the caller does, so that a late insert does not surprise anybody."""

COLUMNS = """
id, target, source_table, record_key, operation_type, payload_json, failure_reason, error_code, attempt_count, status,
incident_id, created_at, updated_at
"""

OF_TARGET = "(%(target)s::text is null or target = %(target)s)"

CHOSEN = f"""
from public.dynamics_sync_retry_queue
where {OF_TARGET} and (%(id)s::uuid is null or id = %(id)s)
  and (%(statuses)s::text[] is null or status = any(%(statuses)s))
  and (%(incident_id)s::bigint is null or incident_id = %(incident_id)s)
"""

SELECT = f"select {COLUMNS} {CHOSEN} order by created_at, id limit %(limit)s"

SELECT_IDS = f"select target, id {CHOSEN} order by target, created_at, id"

SELECT_GROUPS = f"""
select target, status, error_code, source_table, count(*) {CHOSEN}
group by target, status, error_code, source_table
order by count(*) desc, target, status, error_code, source_table
"""

STANDING = "select id, status from public.dynamics_sync_retry_queue where id = any(%(ids)s)"

COUNT = f"select status, count(*) from public.dynamics_sync_retry_queue where {OF_TARGET} group by status"

COUNT_REPLAYING = f"select count(*) from public.dynamics_sync_retry_queue where status = 'replaying' and {OF_TARGET}"

WAITING_ENTRY = """
select target, source_table, record_key, operation_type from public.dynamics_sync_retry_queue
where id = %(id)s and status in ('pending_manual_replay', 'requires_investigation')
"""

REPLAY = """
update public.dynamics_sync_retry_queue set status = 'replaying', updated_at = clock_timestamp()
where id = %(id)s and status in ('pending_manual_replay', 'requires_investigation')
returning target
"""

# Marked dirty again, with a fresh count: the record goes the one road that every change goes.
FRESH_COUNT = """
update dynamics_sync.outbox set attempts = 0 where (target, source_table, record_key) = (%s, %s, %s)
"""

DISCARD = """
update public.dynamics_sync_retry_queue set status = 'discarded', updated_at = clock_timestamp()
where id = %(id)s and status in ('pending_manual_replay', 'requires_investigation')
returning target
"""

TIME_LINE = """
select attempt_number, at, error_code, delay_ms from dynamics_sync.attempts
where (target, source_table, record_key) = (%s, %s, %s) order by at, id
"""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One entry as an operator sees it."""

    id: UUID
    target: str
    source_table: str
    record_key: str
    operation_type: str
    payload_json: dict[str, Any]
    failure_reason: str
    error_code: str
    attempt_count: int
    status: str
    incident_id: int | None
    """The latest outage in which its record failed."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Choice:
    """Which entries a person means; what is None does not matter."""

    statuses: Sequence[QueueStatus] | None = None
    entry_id: UUID | None = None
    incident_id: int | None = None

    def parameters(self) -> dict[str, object]:
        return {
            "id": self.entry_id,
            "statuses": None if self.statuses is None else [str(status) for status in self.statuses],
            "incident_id": self.incident_id,
        }


@dataclass(frozen=True, slots=True)
class EntryGroup:
    """Entries that are alike."""

    target: str
    status: str
    error_code: str
    source_table: str
    count: int


EVERY = Choice()


class PostgresRetryQueue:
    """`public.dynamics_sync_retry_queue`.

    Args:
        target: whose entries are seen; None for all. Those that are named by their ids are acted on whosever they are.
    """

    def __init__(self, pool: Pool, target: str | None = None) -> None:
        self._pool = pool
        self._target = target

    async def add(self, failure: Failure) -> str:
        """Insert, or bring the record's open entry up to date, and settle the outbox, in one transaction."""
        operation = failure.operation
        async with transaction(self._pool) as connection:
            await connection.execute(STATEMENT_TIMEOUT)
            if operation.claim_id is not None:
                await connection.execute(GIVE_BACK, claimed([operation]))
                await note_attempts(connection, operation, failure.failures)
                await connection.execute(FORGET_PAYLOAD, operation.record)
                if failure.unanswered:
                    await connection.execute(NOTE_UNANSWERED, [*operation.record, LATE_SECONDS])
            incident = await (await connection.execute(NUMBER_OF_OPEN, {"target": operation.target})).fetchone()
            await connection.execute(AS_SERVICE_ROLE)
            cursor = await connection.execute(INSERT, _row(failure) | {"incident_id": incident and incident[0]})
            row = await cursor.fetchone()
            await connection.execute(AS_OURSELVES)
        if row is None:
            raise AssertionError("the insert always gives one id")
        return str(row[0])

    async def entries(self, choice: Choice = EVERY, limit: int = 1000) -> list[QueueEntry]:
        """Entries, oldest first."""
        async with transaction(self._pool) as connection:
            await connection.execute(AS_SERVICE_ROLE)
            async with connection.cursor(row_factory=class_row(QueueEntry)) as cursor:
                await cursor.execute(SELECT, choice.parameters() | {"target": self._target, "limit": limit})
                return await cursor.fetchall()

    async def ids(self, choice: Choice) -> dict[str, list[UUID]]:
        """All of them by target, oldest first."""
        found: dict[str, list[UUID]] = {}
        for target, entry_id in await self._read(SELECT_IDS, choice.parameters()):
            found.setdefault(target, []).append(entry_id)
        return found

    async def groups(self, choice: Choice) -> list[EntryGroup]:
        """How many of each kind, the largest first."""
        return [EntryGroup(*row) for row in await self._read(SELECT_GROUPS, choice.parameters())]

    async def standing(self, ids: Collection[UUID]) -> dict[UUID, QueueStatus]:
        """Where entries stand now."""
        return {row[0]: QueueStatus(row[1]) for row in await self._read(STANDING, {"ids": list(ids)})}

    async def replaying(self) -> int:
        """Entries that are on their way, whoever sent them again."""
        return int((await self._read(COUNT_REPLAYING, {}))[0][0])

    async def counts(self) -> dict[str, int]:
        """Entries by status."""
        return dict(await self._read(COUNT, {}))

    async def time_line(self, entry: QueueEntry) -> list[FailedAttempt]:
        """The record's failed requests, oldest first."""
        async with transaction(self._pool) as connection:
            async with connection.cursor(row_factory=class_row(FailedAttempt)) as cursor:
                await cursor.execute(TIME_LINE, [entry.target, entry.source_table, entry.record_key])
                return await cursor.fetchall()

    async def replay(self, ids: Sequence[UUID], actor: str) -> list[UUID]:
        """Put records back into the outbox; give the entries that were open and are being replayed now.

        A transaction for each, which locks the record's outbox row before the entry, as settling does: so replaying
        and settling never wait for one another in a circle.
        """
        replayed = []
        for entry_id in ids:
            async with transaction(self._pool) as connection:
                if not await self._replay(connection, entry_id, actor):
                    raise Rollback
                replayed.append(entry_id)
        return replayed

    async def discard(self, ids: Sequence[UUID], actor: str, reason: str | None) -> list[UUID]:
        """Close entries without sending them; give those that were open."""
        discarded = []
        for entry_id in ids:
            async with transaction(self._pool) as connection:
                if await self._change(connection, DISCARD, entry_id, Operator(actor, reason), "discard"):
                    discarded.append(entry_id)
        return discarded

    async def _read(self, statement: LiteralString, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
        async with transaction(self._pool) as connection:
            await connection.execute(AS_SERVICE_ROLE)
            return await (await connection.execute(statement, {"target": self._target} | parameters)).fetchall()

    async def _replay(self, connection: Connection, entry_id: UUID, actor: str) -> bool:
        """False if the entry is not open, or was closed while its outbox row was waited for."""
        await connection.execute(AS_SERVICE_ROLE)
        entry = await (await connection.execute(WAITING_ENTRY, {"id": entry_id})).fetchone()
        await connection.execute(AS_OURSELVES)
        if entry is None:
            return False
        target, source_table, record_key, operation_type = entry
        await connection.execute(SEND_AGAIN, [target, source_table, record_key, operation_type])
        await connection.execute(FRESH_COUNT, [target, source_table, record_key])
        await connection.execute("select pg_notify('dynamics_sync', %s)", [target])
        return await self._change(connection, REPLAY, entry_id, Operator(actor), "replay")

    async def _change(
        self, connection: Connection, statement: LiteralString, entry_id: UUID, operator: Operator, action: str
    ) -> bool:
        await connection.execute(AS_SERVICE_ROLE)
        changed = await (await connection.execute(statement, {"id": entry_id})).fetchone()
        await connection.execute(AS_OURSELVES)
        if changed is None:
            return False
        await note(connection, operator, action, changed[0], entry_id=entry_id)
        return True


def _payload(failure: Failure) -> dict[str, object]:
    """What an entry says of its operation: names, never values (R14)."""
    operation = failure.operation
    return {
        "target": operation.target,
        "table": operation.source_table,
        "key": operation.record_key,
        "operation": operation.operation_type,
        "version": operation.version,
        "changed_columns": list(operation.changed_columns),
        "correlation_id": operation.correlation_id,
        "place": failure.place,
    }


def _row(failure: Failure) -> dict[str, object]:
    operation = failure.operation
    return {
        "target": operation.target,
        "source_table": operation.source_table,
        "record_key": operation.record_key,
        "operation_type": operation.operation_type,
        "payload_json": json.dumps(_payload(failure)),
        "failure_reason": failure.reason,
        "error_code": failure.error_code,
        "attempt_count": failure.attempt_count,
        "status": failure.reason.queue_status,
    }
