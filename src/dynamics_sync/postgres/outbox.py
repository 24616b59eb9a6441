"""The dirty set in PostgreSQL: gather, claim, renew, settle, release.

No user's transaction locks a row of it: what users change is noted beside it, and each claim gathers that. Every
statement skips rows that another transaction has locked; they wait only for one that is putting taken records into the
outbox.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from dynamics_sync.core.operation import Applied, FailedAttempt, OperationType, SyncOperation
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.postgres.circuit_store import SELECT_CIRCUIT, reading_from
from dynamics_sync.postgres.coalesce import Coalescer
from dynamics_sync.postgres.connections import Connection, Pool, one_trip, transaction
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Claim

CLAIM = """
select * from dynamics_sync.claim(
  %(target)s, %(limit)s, %(claim_id)s, %(lease_seconds)s, %(late_seconds)s, %(gathered_at_once)s, %(taken_from)s
)
"""
TAKEN_FROM = 10
"""Records: fewer are not worth it to be taken past the outbox."""

# What a server that crashes forgets of this is gathered once more.
GATHER = """
select set_config('synchronous_commit', 'off', true), dynamics_sync.gather(%(target)s, %(gathered_at_once)s)
"""
GATHERED_AT_ONCE = 5000
"""Records: for so many it takes a few hundredths of a second."""

# What waits, and what was changed and is not gathered yet: each record once.
WAITING = """
select (select count(*) from dynamics_sync.outbox o where %(target)s::text is null or o.target = %(target)s) + (
  select count(distinct (c.target, c.source_table, key))
  from dynamics_sync.changes c
  cross join lateral unnest(c.record_keys) as key
  where (%(target)s::text is null or c.target = %(target)s) and not exists (
    select from dynamics_sync.outbox o
    where (o.target, o.source_table, o.record_key) = (c.target, c.source_table, key)
  )
)
"""

# Whether any worker holds a record.
IS_SENDING = """
select exists (
  select from dynamics_sync.outbox o where o.target = %(target)s and o.lease_until > clock_timestamp()
) or exists (
  select from dynamics_sync.changes c where c.is_taken and c.target = %(target)s and c.lease_until > clock_timestamp()
)
"""

# Lists travel in binary form, %b: as text, the driver quotes item by item, which is a fifth of what a worker does.
SETTLE = """
select * from dynamics_sync.settle(
  %(target)s, %(ids)b::bigint[], %(versions)b::bigint[], %(claims)b::text[], %(etags)b::text[],
  %(payload_hashes)b::bytea[], %(unsent)b::bigint[], %(unanswered)b::bigint[], %(late_seconds)s
)
"""

GIVE_BACK = "select * from dynamics_sync.give_back(%(ids)b::bigint[], %(versions)b::bigint[], %(claims)b::text[])"

SEND_AGAIN = "select dynamics_sync.send_again(%s, %s, %s, %s)"

RENEW = "select * from dynamics_sync.renew(%(ids)b::bigint[], %(claims)b::text[], %(lease_seconds)s)"

RELEASE = """
select dynamics_sync.release(
  %(ids)b::bigint[], %(claims)b::text[], %(attempts)b::integer[], %(unanswered)b::bigint[], %(late_seconds)s
)
"""

NOTE_UNANSWERED = "select dynamics_sync.note_unanswered(%s, %s, %s, %s)"

FORGET_PAYLOAD = "select dynamics_sync.forget_payload(%s, %s, %s)"

RESEND_UNANSWERED = "select dynamics_sync.resend_unanswered(%s, %s)"
RESENT_AT_ONCE = 100

NOTE_ATTEMPT = """
insert into dynamics_sync.attempts
  (target, source_table, record_key, version, attempt_number, at, error_code, delay_ms)
values (%s, %s, %s, %s, %s, %s, %s, %s)
"""

_TYPES = {str(each): each for each in OperationType}

LOCKED_WAITS_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""How long a claimed record is kept for a user's transaction on it to end, before it is left to its lease."""

Operations = Sequence[SyncOperation]


@dataclass(frozen=True, slots=True)
class _Release:
    operation: SyncOperation
    attempts: int
    failures: Sequence[FailedAttempt] = ()
    unanswered: bool = False


class PostgresOutbox:
    """The outbox of one target."""

    def __init__(self, pool: Pool, target: str, lease_seconds: float, taken_from: int = TAKEN_FROM) -> None:
        self._pool = pool
        self._target = target
        self._lease_seconds = lease_seconds
        self._taken_from = taken_from
        self._release = Coalescer(self._release_batch)

    async def claim(self, limit: int) -> Claim:
        """Take up to `limit` records, and read the circuit, in one round trip."""
        claim_id = str(uuid4())
        parameters = {
            "target": self._target,
            "gathered_at_once": GATHERED_AT_ONCE,
            "taken_from": self._taken_from,
            "limit": limit,
            "claim_id": claim_id,
            "lease_seconds": self._lease_seconds,
            "late_seconds": LATE_SECONDS,
        }
        async with one_trip(self._pool) as connection:
            rows = await connection.execute(CLAIM, parameters)
            circuit = await connection.execute(SELECT_CIRCUIT, parameters)
        reading = reading_from(await circuit.fetchone())
        return Claim([each for row in await rows.fetchall() for each in self._operations(row, claim_id)], reading)

    async def gather(self) -> None:
        """Bring what was changed into the outbox, without claiming any of it."""
        async with transaction(self._pool) as connection:
            await connection.execute(GATHER, {"target": self._target, "gathered_at_once": GATHERED_AT_ONCE})

    async def renew(self, operations: Operations) -> AbstractSet[tuple[int, str | None]]:
        """Begin their leases anew; give outbox id and claim of those that are still ours."""
        async with transaction(self._pool) as connection:
            cursor = await connection.execute(RENEW, claimed(operations) | {"lease_seconds": self._lease_seconds})
            return {(outbox_id, claim_id) for outbox_id, claim_id in await cursor.fetchall()}

    async def settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> None:
        """Delete the rows of what arrived, unless a record changed again or its lease was lost meanwhile."""
        of_row: dict[int, tuple[SyncOperation, Applied]] = {}
        again = []  # claimed once more after a lease ran out, and both requests came home
        for pair in arrived:
            if of_row.setdefault(pair[0].outbox_id, pair) is not pair:
                again.append(pair)

        async def settle(operations: Operations) -> Operations:
            left = await self._settle([of_row[operation.outbox_id] for operation in operations])
            await self._send_once_more([of_row[outbox_id][0] for outbox_id, is_ours in left if not is_ours])
            return [of_row[outbox_id][0] for outbox_id, is_ours in left if is_ours]

        await while_locked(settle, [operation for operation, _ in of_row.values()])
        if again:
            await self.settle(again)

    async def _settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> Sequence[tuple[int, bool]]:
        """Give the rows that are left, and whether they are still ours."""
        parameters = claimed([operation for operation, _ in arrived]) | {
            "target": self._target,
            "etags": [applied.etag for _, applied in arrived],
            "payload_hashes": [applied.payload_hash for _, applied in arrived],
            "unsent": [operation.outbox_id for operation, applied in arrived if not applied.is_sent],
            "unanswered": [operation.outbox_id for operation, applied in arrived if applied.unanswered],
            "late_seconds": LATE_SECONDS,
        }
        async with one_trip(self._pool) as connection:
            cursor = await connection.execute(SETTLE, parameters)
        return await cursor.fetchall()

    async def _send_once_more(self, lost: Sequence[SyncOperation]) -> None:
        """A lease that ended before the write did: what was written may be older than what another worker wrote."""
        for operation in lost:
            emit("lease.lost", "warning", certification_id=operation.record_key, source_table=operation.source_table)
            async with transaction(self._pool) as connection:
                await connection.execute(
                    SEND_AGAIN,
                    [self._target, operation.source_table, operation.record_key, operation.operation_type],
                )

    async def release(
        self,
        operation: SyncOperation,
        attempts: int,
        failures: Sequence[FailedAttempt] = (),
        unanswered: bool = False,
    ) -> None:
        """Let go of a record that was not sent; keep its count and what happened."""
        release = _Release(operation, attempts, failures, unanswered)

        async def let_go(operations: Operations) -> Operations:
            nonlocal release
            is_locked = await self._release(release)
            release = _Release(operation, attempts)  # the rest is noted
            return operations if is_locked else ()

        await while_locked(let_go, [operation])

    async def resend_unanswered(self) -> None:
        """Mark records dirty whose unanswered requests are over."""
        async with transaction(self._pool) as connection:
            await connection.execute(RESEND_UNANSWERED, [self._target, RESENT_AT_ONCE])

    async def _release_batch(self, batch: Sequence[_Release]) -> Sequence[bool]:
        """Whether each is still ours, as a user's transaction has locked it."""
        async with transaction(self._pool) as connection:
            for each in batch:
                await note_attempts(connection, each.operation, each.failures)
            parameters = claimed([each.operation for each in batch]) | {
                "attempts": [each.attempts for each in batch],
                "unanswered": [each.operation.outbox_id for each in batch if each.unanswered],
                "late_seconds": LATE_SECONDS,
            }
            row = await (await connection.execute(RELEASE, parameters)).fetchone()
        locked = set(row[0]) if row else set()
        return [each.operation.outbox_id in locked for each in batch]

    def _operations(self, row: tuple[Any, ...], claim_id: str) -> Operations:
        """Those of records that changed together."""
        outbox_ids, source_table, record_keys, version, operation_type, changed_columns, attempts = row
        kind, columns = _TYPES[operation_type], tuple(changed_columns)
        return [
            SyncOperation(source_table, key, kind, version, attempts, self._target, columns, claim_id, outbox_id)
            for key, outbox_id in zip(record_keys, outbox_ids, strict=True)
        ]


async def while_locked(attempt: Callable[[Operations], Awaitable[Operations]], operations: Operations) -> None:
    """Repeat an attempt for those records that it gives back, as a user's transaction has locked them."""
    for wait_seconds in (0.0, *LOCKED_WAITS_SECONDS):
        await asyncio.sleep(wait_seconds)
        operations = await attempt(operations)
        if not operations:
            return
    for operation in operations:
        emit("record.locked", "warning", certification_id=operation.record_key, source_table=operation.source_table)


def claimed(operations: Sequence[SyncOperation]) -> dict[str, Any]:
    """What `GIVE_BACK`, `RELEASE` and `SETTLE` know claimed records by."""
    return {
        "ids": [operation.outbox_id for operation in operations],
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
