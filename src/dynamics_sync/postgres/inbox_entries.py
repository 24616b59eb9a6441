"""What people see of the inbox and its conflicts, and having deliveries looked at again."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from dynamics_sync.core.incoming import OPEN_STATUSES, REPLAYABLE_STATUSES, InboxStatus
from dynamics_sync.postgres.audit import Operator, note
from dynamics_sync.postgres.connections import Pool, all_rows, transaction

OF_TARGET = "(%(target)s::text is null or target = %(target)s)"

COUNT = f"""
select status, count(*) from dynamics_sync.inbox where {OF_TARGET} group by status
union all
select 'conflicts', count(*) from dynamics_sync.conflicts where {OF_TARGET}
"""

COLUMNS = """
id, target, received_at, status, entity_name, message, record_id, operation_at, correlation_id, contract, source_table,
record_key, headers, octet_length(body) as body_bytes, attempts, error_code, place, settled_at
"""

CHOSEN = f"""
from dynamics_sync.inbox
where {OF_TARGET} and (%(id)s::bigint is null or id = %(id)s) and status = any(%(statuses)s)
"""

SELECT = f"select {COLUMNS} {CHOSEN} order by id limit %(limit)s"

REPLAY = f"""
update dynamics_sync.inbox
set status = 'received', attempts = 0, error_code = null, place = null, not_before = null, settled_at = null
where id = any(array(select id {CHOSEN} for update))
returning id, target
"""

CONFLICTS = f"""
select inbox_id, target, source_table, record_key, column_name, winner, noticed_at from dynamics_sync.conflicts
where {OF_TARGET} and (%(inbox_id)s::bigint is null or inbox_id = %(inbox_id)s)
order by id desc limit %(limit)s
"""


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """One delivery as an operator sees it: no value of the record."""

    id: int
    target: str
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
    target: str
    source_table: str
    record_key: str
    column_name: str | None
    winner: str
    noticed_at: datetime


class PostgresInboxEntries:
    """`dynamics_sync.inbox` as an operator sees it.

    Args:
        target: whose deliveries are seen; None for all.
    """

    def __init__(self, pool: Pool, target: str | None = None) -> None:
        self._pool = pool
        self._target = target

    async def counts(self) -> dict[str, int]:
        """Deliveries by status, and conflicts."""
        return dict(await all_rows(self._pool, COUNT, {"target": self._target}))

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
        rows = await all_rows(self._pool, CONFLICTS, {"target": self._target, "limit": limit, "inbox_id": inbox_id})
        return [ConflictEntry(*row) for row in rows]

    async def replay(self, entry_id: int | None, operator: Operator) -> list[int]:
        """Have one delivery, or all that no version understood or that could not be applied, looked at again."""
        async with transaction(self._pool) as connection:
            cursor = await connection.execute(REPLAY, self._chosen(REPLAYABLE_STATUSES, entry_id))
            found = dict(await cursor.fetchall())
            for target in sorted({*found.values()}):
                await note(connection, operator, "inbox replay", target)
        return sorted(found)

    def _chosen(self, statuses: Collection[InboxStatus], entry_id: int | None) -> dict[str, Any]:
        return {"target": self._target, "id": entry_id, "statuses": [str(status) for status in statuses]}
