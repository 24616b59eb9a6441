"""Who reached across chapters and organisations (R23): what the database noted."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

EXISTS = "select to_regclass('dynamics_certifications.access_audit') is not null"

RECENT = """
select a.at, a.actor, a.acting_as, a.kind, a.table_name, a.record_id, a.organisation_id, a.reason
from dynamics_certifications.access_audit a
where %(since)s::timestamptz is null or a.at >= %(since)s
order by a.at desc, a.id desc
limit %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Access:
    """One record that somebody read or wrote without being confined to its chapter."""

    at: datetime
    actor: str
    """The user's id; of a service or a direct session the role and its application_name."""
    acting_as: str
    """`organisation_admin`, or the database's role."""
    kind: str
    """`read`, `insert`, `update`, `delete` or `truncate`."""
    table_name: str
    record_id: UUID | None
    """None for a truncation."""
    organisation_id: UUID | None
    reason: str | None
    """Why it was read, in the reader's words."""


async def recent(connection: AsyncConnection[Any], since: datetime | None, limit: int) -> list[Access] | None:
    """The last so many, newest first; None where the certifications that ship are not used."""
    exists = await (await connection.execute(EXISTS)).fetchone()
    if exists != (True,):
        return None
    async with connection.cursor(row_factory=class_row(Access)) as cursor:
        return await (await cursor.execute(RECENT, {"since": since, "limit": limit})).fetchall()
