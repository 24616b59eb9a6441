"""The inbox in PostgreSQL: deliveries are stored, claimed under leases and settled."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from dynamics_sync.core.incoming import OPEN_STATUSES, InboxStatus
from dynamics_sync.postgres.connections import Pool, all_rows, one_trip, transaction
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

RETENTION_DAYS = 30
"""How long a settled delivery is known, so that it is not stored again."""

Parameters = Mapping[str, Any]


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
        rows = await all_rows(self._pool, CLAIM, parameters)
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
        rows = await all_rows(self._pool, KNOWN_KEY, parameters)
        return rows[0][0] if rows else None

    async def forget_old(self) -> None:
        """Delete what was settled long ago."""
        async with transaction(self._pool) as connection:
            await connection.execute(FORGET, [RETENTION_DAYS])


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
