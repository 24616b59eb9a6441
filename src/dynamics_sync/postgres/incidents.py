"""Incidents: the outages of a target, as the database notes them when a circuit opens and closes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import dict_row

from dynamics_sync.core.operation import OPEN_STATUSES
from dynamics_sync.postgres.connections import AS_SERVICE_ROLE, Pool, transaction

NUMBER_OF_OPEN = "select id from dynamics_sync.incidents where target = %(target)s and closed_at is null"

SELECT = """
select id, target, failing_since, opened_at, closed_at, error_code, failure_count,
  greatest(coalesce(closed_at, clock_timestamp()) - opened_at, '0') as duration
from dynamics_sync.incidents
where (%(target)s::text is null or target = %(target)s) and (%(number)s::bigint is null or id = %(number)s)
order by id desc
limit %(limit)s
"""

COUNT_ENTRIES = """
select incident_id, status, count(*) from public.dynamics_sync_retry_queue
where incident_id = any(%(numbers)s)
group by incident_id, status
"""


@dataclass(frozen=True, slots=True)
class Incident:
    """One outage."""

    id: int
    target: str
    failing_since: datetime
    """The first of the failures in a row."""
    opened_at: datetime
    closed_at: datetime | None
    """None while the circuit has not closed again."""
    error_code: str
    """What the request said that opened the circuit; `operator` where a person did."""
    failure_count: int
    """Failures in a row, failed probes included."""
    duration: timedelta
    entries: Mapping[str, int]
    """The queue's entries that belong to it, by status."""

    @property
    def open_entries(self) -> int:
        """Those that still stand for something that Dynamics lacks."""
        return sum(self.entries.get(status, 0) for status in OPEN_STATUSES)


class PostgresIncidents:
    """`dynamics_sync.incidents`, of one target, or of all."""

    def __init__(self, pool: Pool, target: str | None = None) -> None:
        self._pool = pool
        self._target = target

    async def recent(self, limit: int) -> list[Incident]:
        """The last so many, newest first."""
        return await self._select(None, limit)

    async def find(self, number: int) -> Incident | None:
        """The one with that number."""
        return next(iter(await self._select(number, 1)), None)

    async def current(self) -> Incident | None:
        """The one that has not ended; of all targets, the last of those."""
        last = await self._select(None, 1)
        return last[0] if last and last[0].closed_at is None else None

    async def _select(self, number: int | None, limit: int) -> list[Incident]:
        parameters = {"target": self._target, "number": number, "limit": limit}
        async with transaction(self._pool) as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = await (await cursor.execute(SELECT, parameters)).fetchall()
            await cursor.execute(AS_SERVICE_ROLE)
            counts = await (await cursor.execute(COUNT_ENTRIES, {"numbers": [row["id"] for row in rows]})).fetchall()
        return [_incident(row, counts) for row in rows]


def _incident(row: dict[str, Any], counts: Sequence[dict[str, Any]]) -> Incident:
    entries = {count["status"]: count["count"] for count in counts if count["incident_id"] == row["id"]}
    return Incident(**row, entries=entries)
