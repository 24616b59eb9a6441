"""The inbox in PostgreSQL: deliveries are stored, claimed under leases, settled, and put back by people."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from psycopg.rows import class_row

from dynamics_sync.core.incoming import OPEN_STATUSES, REPLAYABLE_STATUSES, InboxStatus
from dynamics_sync.postgres.audit import Operator, note
from dynamics_sync.postgres.connections import Pool, one_trip, transaction
from dynamics_sync.sync.inbox_ports import ClaimedDelivery, Delivery

AT_MOST_50_MS = """
select set_config('statement_timeout', '50ms', true), set_config('lock_timeout', '50ms', true)
"""

RECEIVE = """
insert into dynamics_sync.inbox
  (target, delivery_id, entity_name, message, record_id, operation_at, correlation_id, headers, body)
values (%(target)s, %(delivery_id)s, %(entity_name)s, %(message)s, %(record_id)s, %(operation_at)s,
  %(correlation_id)s, %(headers)s::jsonb, %(body)s)
on conflict (target, delivery_id) do nothing
"""

# The oldest of each record, one at a time; what tells of no record has none to wait for. The oldest is looked up by the
# index, whatever the planner believes of the table; a join may go through all that waits, for each row.
CLAIM = """
with due as (
  select i.id from dynamics_sync.inbox i
  where i.target = %(target)s and i.status = 'received'
    and (i.not_before is null or i.not_before <= clock_timestamp())
    and (i.lease_until is null or i.lease_until < clock_timestamp())
    and (i.entity_name is null or i.record_id is null or i.id = (
      select first.id from dynamics_sync.inbox first
      where first.target = i.target and first.status = 'received' and first.entity_name = i.entity_name
        and first.record_id = i.record_id
      order by first.target, first.entity_name, first.record_id, first.id
      limit 1
    ))
  order by i.id
  limit %(limit)s
  for update skip locked
)
update dynamics_sync.inbox i
set lease_owner = %(claim_id)s, lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
where i.id = any(array(select due.id from due))
returning i.id, clock_timestamp(), i.headers, i.body, i.attempts
"""

RELEASE = """
update dynamics_sync.inbox
set lease_owner = null, lease_until = null, attempts = attempts + %(failures)s,
  not_before = clock_timestamp() + make_interval(secs => %(wait_seconds)s)
where id = %(id)s and lease_owner = %(claim_id)s
"""

SETTLE = """
update dynamics_sync.inbox
set status = %(status)s, error_code = %(error_code)s, place = %(place)s, contract = coalesce(%(contract)s, contract),
  body = case when %(status)s = any(%(open)s) then body end, lease_owner = null, lease_until = null,
  not_before = null, settled_at = clock_timestamp()
where id = %(id)s and lease_owner = %(claim_id)s and status = 'received'
returning id
"""

KNOWN_KEY = """
select record_key from dynamics_sync.inbox_records
where (target, entity_name, record_id) = (%(target)s, %(entity_name)s, %(record_id)s)
union all
select record_key from dynamics_sync.reconciliation_seen
where (target, source_table, id) = (%(target)s, %(source_table)s, %(record_id)s)
limit 1
"""

FORGET = """
delete from dynamics_sync.inbox
where id = any(array(
  select id from dynamics_sync.inbox
  where status in ('applied', 'superseded', 'ignored') and settled_at < clock_timestamp() - make_interval(days => %s)
  limit 1000
))
"""

COUNT = """
select status, count(*) from dynamics_sync.inbox where target = %(target)s group by status
union all
select 'conflicts', count(*) from dynamics_sync.conflicts where target = %(target)s
"""

COLUMNS = """
id, received_at, status, entity_name, message, record_id, operation_at, correlation_id, contract, source_table,
record_key, headers, octet_length(body) as body_bytes, attempts, error_code, place, settled_at
"""

CHOSEN = """
from dynamics_sync.inbox
where target = %(target)s and (%(id)s::bigint is null or id = %(id)s) and status = any(%(statuses)s)
"""

SELECT = f"select {COLUMNS} {CHOSEN} order by id limit %(limit)s"

REPLAY = f"""
update dynamics_sync.inbox
set status = 'received', attempts = 0, error_code = null, place = null, not_before = null, settled_at = null
where id = any(array(select id {CHOSEN} for update))
returning id
"""

CONFLICTS = """
select inbox_id, source_table, record_key, column_name, winner, noticed_at from dynamics_sync.conflicts
where target = %(target)s and (%(inbox_id)s::bigint is null or inbox_id = %(inbox_id)s)
order by id desc limit %(limit)s
"""

RETENTION_DAYS = 30
"""How long a settled delivery is known, so that it is not stored again."""

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """One delivery as an operator sees it: no value of the record."""

    id: int
    received_at: datetime
    status: str
    entity_name: str | None
    message: str | None
    record_id: str | None
    operation_at: datetime | None
    correlation_id: str | None
    contract: str | None
    source_table: str | None
    record_key: str | None
    headers: dict[str, str]
    body_bytes: int | None
    attempts: int
    error_code: str | None
    place: str | None
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class ConflictEntry:
    """Both sides had changed; names only."""

    inbox_id: int
    source_table: str
    record_key: str
    column_name: str | None
    winner: str
    noticed_at: datetime


class PostgresInbox:
    """`dynamics_sync.inbox`, of one target."""

    def __init__(self, pool: Pool, target: str) -> None:
        self._pool = pool
        self._target = target

    async def receive(self, delivery: Delivery) -> None:
        """Store it, unless it is there already.

        Raises:
            DatabaseError: it is not surely stored; the database was given 50 ms.
        """
        parameters = {
            "target": self._target,
            "delivery_id": delivery.delivery_id,
            "entity_name": delivery.entity_name,
            "message": delivery.message,
            "record_id": delivery.record_id,
            "operation_at": delivery.operation_at,
            "correlation_id": delivery.correlation_id,
            "headers": json.dumps(dict(delivery.headers)),
            "body": delivery.body,
        }
        async with one_trip(self._pool) as connection:
            await connection.execute(AT_MOST_50_MS)
            await connection.execute(RECEIVE, parameters)

    async def claim(self, limit: int, lease_seconds: float) -> list[ClaimedDelivery]:
        """Take up to `limit` deliveries, not more than one of a record; the oldest first."""
        claim_id = uuid4().hex
        parameters = {
            "target": self._target,
            "claim_id": claim_id,
            "limit": limit,
            "lease_seconds": lease_seconds,
        }
        rows = await self._rows(CLAIM, parameters)
        return sorted((ClaimedDelivery(row[0], claim_id, *row[1:]) for row in rows), key=lambda each: each.id)

    async def release(self, claimed: ClaimedDelivery, wait_seconds: float, *, failures: int = 0) -> None:
        """Let it wait for another turn."""
        parameters = {
            "id": claimed.id,
            "claim_id": claimed.claim_id,
            "wait_seconds": wait_seconds,
            "failures": failures,
        }
        async with transaction(self._pool) as connection:
            await connection.execute(RELEASE, parameters)

    async def settle(
        self,
        claimed: ClaimedDelivery,
        status: InboxStatus,
        code: str | None = None,
        *,
        place: str | None = None,
        contract: str | None = None,
    ) -> None:
        """It needs no row of ours to be written. Without effect if the lease is lost."""
        async with transaction(self._pool) as connection:
            await connection.execute(SETTLE, settlement(claimed, status, code, place, contract))

    async def known_key(self, entity_name: str, record_id: str, source_table: str) -> str | None:
        """The key of a record of Dynamics, if it was told or seen before."""
        parameters = {
            "target": self._target,
            "entity_name": entity_name,
            "record_id": record_id,
            "source_table": source_table,
        }
        rows = await self._rows(KNOWN_KEY, parameters)
        return rows[0][0] if rows else None

    async def forget_old(self) -> None:
        """Delete what was settled long ago."""
        async with transaction(self._pool) as connection:
            await connection.execute(FORGET, [RETENTION_DAYS])

    async def counts(self) -> dict[str, int]:
        """Deliveries by status, and conflicts."""
        return dict(await self._rows(COUNT, {"target": self._target}))

    async def entries(
        self, statuses: Collection[InboxStatus] = OPEN_STATUSES, entry_id: int | None = None, limit: int = 1000
    ) -> list[InboxEntry]:
        """Some deliveries, oldest first."""
        parameters = self._chosen(statuses, entry_id) | {"limit": limit}
        async with (
            transaction(self._pool) as connection,
            connection.cursor(row_factory=class_row(InboxEntry)) as cursor,
        ):
            await cursor.execute(SELECT, parameters)
            return await cursor.fetchall()

    async def conflicts(self, limit: int, inbox_id: int | None = None) -> list[ConflictEntry]:
        """The latest, newest first."""
        rows = await self._rows(CONFLICTS, {"target": self._target, "limit": limit, "inbox_id": inbox_id})
        return [ConflictEntry(*row) for row in rows]

    async def replay(self, entry_id: int | None, operator: Operator) -> list[int]:
        """Have one delivery, or all that no version understood or that could not be applied, looked at again."""
        async with transaction(self._pool) as connection:
            cursor = await connection.execute(REPLAY, self._chosen(REPLAYABLE_STATUSES, entry_id))
            ids = sorted(row[0] for row in await cursor.fetchall())
            if ids:
                await note(connection, operator, "inbox replay", self._target)
        return ids

    def _chosen(self, statuses: Collection[InboxStatus], entry_id: int | None) -> dict[str, Any]:
        return {"target": self._target, "id": entry_id, "statuses": [str(status) for status in statuses]}

    async def _rows(self, query: Any, parameters: Parameters | Sequence[Any]) -> list[tuple[Any, ...]]:
        async with transaction(self._pool) as connection:
            return await (await connection.execute(query, parameters)).fetchall()


def settlement(
    claimed: ClaimedDelivery, status: InboxStatus, code: str | None, place: str | None, contract: str | None
) -> dict[str, Any]:
    """What `SETTLE` needs."""
    return {
        "id": claimed.id,
        "claim_id": claimed.claim_id,
        "status": str(status),
        "open": [str(open_status) for open_status in OPEN_STATUSES],
        "error_code": code,
        "place": place,
        "contract": contract,
    }
