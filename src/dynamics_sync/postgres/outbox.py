"""The dirty set in PostgreSQL: claim, renew, settle, release.

Every statement skips rows that a user's open transaction has locked: a long transaction may delay its own records,
never the others'.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from dynamics_sync.core.operation import Applied, FailedAttempt, OperationType, SyncOperation
from dynamics_sync.postgres.circuit_store import SELECT_CIRCUIT, reading_from
from dynamics_sync.postgres.coalesce import Coalescer
from dynamics_sync.postgres.connections import (
    AS_OURSELVES,
    AS_SERVICE_ROLE,
    Connection,
    Pool,
    one_trip,
    transaction,
)
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Claim

# A queue's statistics always lie: it was empty when it was analysed. Left to itself the planner sorts all that waits
# for each claim, so it is kept to the indexes. And nobody waits for the disk: a server that crashes may forget the
# last claims and settlements, and their records are sent once more.
AS_A_QUEUE = """
select set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true),
  set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
  set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)
"""

CLAIM = """
with due as (
  select target, source_table, record_key
  from dynamics_sync.outbox
  where target = %(target)s and (lease_until is null or lease_until < clock_timestamp())
  order by attempts, enqueued_at
  limit %(limit)s
  for update skip locked
)
update dynamics_sync.outbox as o
set lease_owner = %(claim_id)s, lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
from due
where (o.target, o.source_table, o.record_key) = (due.target, due.source_table, due.record_key)
returning o.source_table, o.record_key, o.version, o.operation_type, o.changed_columns, o.attempts
"""

GIVEN = """
unnest(%(tables)s::text[], %(keys)s::text[], %(versions)s::bigint[], %(claims)s::text[])
  as given (source_table, record_key, version, claim_id)
"""

HELD = f"""
select o.source_table, o.record_key
from {GIVEN}
join dynamics_sync.outbox o
  on (o.target, o.source_table, o.record_key) = (%(target)s, given.source_table, given.record_key)
where o.lease_owner = given.claim_id
"""

DELETE_UNCHANGED = f"""
with done as ({HELD} and o.version = given.version for update of o skip locked)
delete from dynamics_sync.outbox o using done
where (o.target, o.source_table, o.record_key) = (%(target)s, done.source_table, done.record_key)
returning o.source_table, o.record_key
"""

# A statement of its own: together with the deletion it would race with the trigger's upsert.
FREE_CHANGED = f"""
with held as ({HELD} for update of o skip locked)
update dynamics_sync.outbox o set lease_owner = null, lease_until = null from held
where (o.target, o.source_table, o.record_key) = (%(target)s, held.source_table, held.record_key)
returning o.source_table, o.record_key
"""

NOTE_STATE = """
insert into dynamics_sync.record_state as known (target, source_table, record_key, applied_version, etag)
select %(target)s, given.source_table, given.record_key, given.version, given.etag
from unnest(%(tables)s::text[], %(keys)s::text[], %(versions)s::bigint[], %(etags)s::text[])
  as given (source_table, record_key, version, etag)
on conflict (target, source_table, record_key) do update
set applied_version = excluded.applied_version, etag = excluded.etag, applied_at = excluded.applied_at
"""

OPEN_ENTRIES = """
select q.source_table, q.record_key
from unnest(%(tables)s::text[], %(keys)s::text[]) as given (source_table, record_key)
join public.dynamics_sync_retry_queue q
  on (q.target, q.source_table, q.record_key) = (%(target)s, given.source_table, given.record_key)
where q.status in ('pending_manual_replay', 'requires_investigation', 'replaying')
"""

CLOSE_ENTRIES = """
update public.dynamics_sync_retry_queue q
set status = case status when 'replaying' then 'replayed' else 'superseded' end, updated_at = clock_timestamp()
from unnest(%(tables)s::text[], %(keys)s::text[]) as given (source_table, record_key)
where (q.target, q.source_table, q.record_key) = (%(target)s, given.source_table, given.record_key)
  and q.status in ('pending_manual_replay', 'requires_investigation', 'replaying')
"""

RENEW = f"""
with held as ({HELD} for update of o skip locked)
update dynamics_sync.outbox o
set lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s) from held
where (o.target, o.source_table, o.record_key) = (%(target)s, held.source_table, held.record_key)
returning o.source_table
"""

RELEASE = f"""
with held as ({HELD} for update of o skip locked)
update dynamics_sync.outbox o set lease_owner = null, lease_until = null, attempts = %(attempts)s from held
where (o.target, o.source_table, o.record_key) = (%(target)s, held.source_table, held.record_key)
"""

NOTE_ATTEMPT = """
insert into dynamics_sync.attempts
  (target, source_table, record_key, version, attempt_number, at, error_code, delay_ms)
values (%s, %s, %s, %s, %s, %s, %s, %s)
"""

LOCKED_WAITS_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""How long a settlement waits for a user's transaction on the same record, before it leaves the row to its lease."""

Record = tuple[str, str]
"""Source table and record key."""


class PostgresOutbox:
    """The outbox of one target."""

    def __init__(self, pool: Pool, target: str, lease_seconds: float) -> None:
        self._pool = pool
        self._target = target
        self._lease_seconds = lease_seconds
        self._settle_many = Coalescer(self._settle_batch)

    async def claim(self, limit: int) -> Claim:
        """Take up to `limit` records, and read the circuit in the same round trip."""
        claim_id = uuid4().hex
        parameters = {
            "target": self._target,
            "limit": limit,
            "claim_id": claim_id,
            "lease_seconds": self._lease_seconds,
        }
        async with one_trip(self._pool) as connection:
            await connection.execute(AS_A_QUEUE)
            claimed = await connection.execute(CLAIM, parameters)
            circuit = await connection.execute(SELECT_CIRCUIT, parameters)
        rows = await claimed.fetchall()
        reading = reading_from(await circuit.fetchone())
        return Claim([self._operation(row, claim_id) for row in rows], reading)

    async def renew(self, operation: SyncOperation) -> bool:
        """Begin the lease anew; False if the record is no longer ours."""
        async with transaction(self._pool) as connection:
            parameters = self._given([operation]) | {"lease_seconds": self._lease_seconds}
            cursor = await connection.execute(RENEW, parameters)
            return bool(await cursor.fetchall())

    async def settle(self, operation: SyncOperation, applied: Applied) -> None:
        """The record arrived: delete its row, unless it changed again or the lease was lost meanwhile."""
        for wait_seconds in LOCKED_WAITS_SECONDS:
            if await self._settle_many((operation, applied)):
                return
            await asyncio.sleep(wait_seconds)
        emit("settle.locked", "warning", certification_id=operation.record_key, source_table=operation.source_table)

    async def release(self, operation: SyncOperation, attempts: int, failures: Sequence[FailedAttempt] = ()) -> None:
        """Let go of a record that was not sent; keep its count and what happened."""
        async with transaction(self._pool) as connection:
            await note_attempts(connection, operation, failures)
            await connection.execute(RELEASE, self._given([operation]) | {"attempts": attempts})

    async def _settle_batch(self, batch: Sequence[tuple[SyncOperation, Applied]]) -> Sequence[bool]:
        """For each: True if it is settled, False if a user's transaction has it locked."""
        operations = [operation for operation, _ in batch]
        given = self._given(operations)
        async with transaction(self._pool) as connection:
            async with connection.pipeline():
                await connection.execute(AS_A_QUEUE)
                deleted = await connection.execute(DELETE_UNCHANGED, given)
                freed = await connection.execute(FREE_CHANGED, given)
                await connection.execute(NOTE_STATE, given | {"etags": [applied.etag for _, applied in batch]})
                await connection.execute(AS_SERVICE_ROLE)
                entries = await connection.execute(OPEN_ENTRIES, given)
            clean = set(await deleted.fetchall())
            if finished := [record for record in await entries.fetchall() if record in clean]:
                await connection.execute(CLOSE_ENTRIES, self._records(finished))
            await connection.execute(AS_OURSELVES)
            settled = clean.union(await freed.fetchall())
            missing = [operation for operation in operations if _record(operation) not in settled]
            locked = await self._mark_lost(connection, missing) if missing else set()
        return [_record(operation) not in locked for operation in operations]

    async def _mark_lost(self, connection: Connection, operations: Sequence[SyncOperation]) -> set[Record]:
        """A lease that ended before the write did: what was written may be older than what another worker wrote, so
        the record is sent once more. Gives the records that are still ours, but locked."""
        cursor = await connection.execute(HELD, self._given(operations))
        locked = set(await cursor.fetchall())
        for operation in operations:
            if _record(operation) not in locked:
                emit("lease.lost", "warning", certification_id=operation.record_key)
                await connection.execute(
                    "select dynamics_sync.mark_dirty(%s, %s, %s, %s)",
                    [self._target, operation.source_table, operation.record_key, operation.operation_type],
                )
        return locked

    def _operation(self, row: tuple[Any, ...], claim_id: str) -> SyncOperation:
        source_table, record_key, version, operation_type, changed_columns, attempts = row
        return SyncOperation(
            source_table=source_table,
            record_key=record_key,
            operation_type=OperationType(operation_type),
            version=version,
            attempts=attempts,
            target=self._target,
            changed_columns=tuple(changed_columns),
            correlation_id=str(uuid4()),
            claim_id=claim_id,
        )

    def _given(self, operations: Sequence[SyncOperation]) -> dict[str, Any]:
        return given(self._target, operations)

    def _records(self, records: Sequence[Record]) -> dict[str, Any]:
        return {
            "target": self._target,
            "tables": [table for table, _ in records],
            "keys": [key for _, key in records],
        }


def given(target: str, operations: Sequence[SyncOperation]) -> dict[str, Any]:
    """The parameters of the statements above that speak of claimed operations."""
    return {
        "target": target,
        "tables": [operation.source_table for operation in operations],
        "keys": [operation.record_key for operation in operations],
        "versions": [operation.version for operation in operations],
        "claims": [operation.claim_id for operation in operations],
    }


async def note_attempts(connection: Connection, operation: SyncOperation, failures: Sequence[FailedAttempt]) -> None:
    """Add failed requests to the record's time line."""
    for failure in failures:
        await connection.execute(
            NOTE_ATTEMPT,
            [
                operation.target,
                operation.source_table,
                operation.record_key,
                operation.version,
                failure.attempt_number,
                failure.at,
                failure.error_code,
                failure.delay_ms,
            ],
        )


def _record(operation: SyncOperation) -> Record:
    return (operation.source_table, operation.record_key)
