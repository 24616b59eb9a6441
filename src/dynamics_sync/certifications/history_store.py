"""The histories in the database: one step at a time, each a short transaction."""

from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from psycopg.rows import class_row

from dynamics_sync.certifications.jobs import Transaction

AS_SERVICE_ROLE = "set local role service_role"
"""Row-level security hides rows even from the tables' owner."""

READ_COMMITTED = "set transaction isolation level read committed"
"""Each statement of a step must see what others committed before it got its locks, whatever the database's default."""

COUNT = "select count(*) from public.certifications"

MIGRATE = """
select looked_at, last_id, busy, migrated, entries, left_ids, left_problems
from dynamics_certifications.migrate_histories(%s, %s)
"""

COMPARE = """
select looked_at, last_id, not_migrated, differing from dynamics_certifications.compare_histories(%s, %s)
"""

REPAIR = "select dynamics_certifications.repair_history(%s)"

OVERSIZED = "select certification_id, entries from dynamics_certifications.oversized_histories() limit %s"

COUNT_OVERSIZED = "select count(*) from dynamics_certifications.oversized_histories()"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MigratedStep:
    """What became of the next certifications."""

    looked_at: int
    last_id: UUID | None
    busy: int
    """Locked by somebody: left for later."""
    migrated: int
    entries: int
    left_ids: list[UUID]
    left_problems: list[str]


@dataclass(frozen=True, slots=True)
class ComparedStep:
    """How the next certifications compare."""

    looked_at: int
    last_id: UUID | None
    not_migrated: int
    differing: list[UUID]


class HistoryStore:
    """What the functions of the history migration do, with service_role's rights.

    Raises:
        DatabaseError: whichever it is, where the transaction gives it.
    """

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def count(self) -> int:
        """All certifications."""
        return int(await self._value(COUNT))

    async def migrate(self, after: UUID | None, at_most: int) -> MigratedStep:
        """Enter the histories of the next certifications, by id, into the table."""
        return await self._step(MigratedStep, MIGRATE, after, at_most)

    async def compare(self, after: UUID | None, at_most: int) -> ComparedStep:
        """Compare the next certifications' copies with the table."""
        return await self._step(ComparedStep, COMPARE, after, at_most)

    async def repair(self, certification_id: UUID) -> str | None:
        """Make the copy what the table says. What stands in the way, or None."""
        obstacle = await self._value(REPAIR, certification_id)
        return None if obstacle is None else str(obstacle)

    async def oversized(self, at_most: int) -> dict[UUID, int]:
        """Certifications with more than 500 entries, and how many they have."""
        async with self._transaction() as connection:
            await connection.execute(AS_SERVICE_ROLE)
            return dict(await (await connection.execute(OVERSIZED, [at_most])).fetchall())

    async def count_oversized(self) -> int:
        return int(await self._value(COUNT_OVERSIZED))

    async def _step(self, form: type[T], query: LiteralString, after: UUID | None, at_most: int) -> T:
        async with self._transaction() as connection:
            await connection.execute(READ_COMMITTED)
            await connection.execute(AS_SERVICE_ROLE)
            async with connection.cursor(row_factory=class_row(form)) as cursor:
                await cursor.execute(query, [after, at_most])
                (step,) = await cursor.fetchall()
                return step

    async def _value(self, query: LiteralString, *parameters: object) -> Any:
        async with self._transaction() as connection:
            await connection.execute(READ_COMMITTED)
            await connection.execute(AS_SERVICE_ROLE)
            row = await (await connection.execute(query, parameters)).fetchone()
        return row[0] if row else None
