"""One reconciliation at a time among all processes, and when the next one is due: one row for each target."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dynamics_sync.postgres.connections import Pool, transaction
from dynamics_sync.sync.reconciliation import TurnLostError

NOTICE = "insert into dynamics_sync.reconciliation (target) values (%(target)s) on conflict do nothing"

# Due is what was begun and not finished, and what was finished long enough ago; the first one is due as long after the
# row was made. `not_before` puts off what failed.
SECONDS_UNTIL_DUE = """
select extract(epoch from greatest(
  case
    when begun_at > coalesce(finished_at, '-infinity') then '-infinity'
    else coalesce(finished_at, noticed_at) + make_interval(secs => %(every)s)
  end,
  not_before, clock_timestamp()
) - clock_timestamp())
from dynamics_sync.reconciliation where target = %(target)s
"""

TAKE = """
update dynamics_sync.reconciliation
set owner = %(owner)s, owned_until = clock_timestamp() + make_interval(secs => %(seconds)s)
where target = %(target)s and (owner is null or owner = %(owner)s or owned_until < clock_timestamp())
"""

KEEP = """
update dynamics_sync.reconciliation set owned_until = clock_timestamp() + make_interval(secs => %(seconds)s)
where target = %(target)s and owner = %(owner)s
"""

GIVE_BACK = """
update dynamics_sync.reconciliation set owner = null, owned_until = null
where target = %(target)s and owner = %(owner)s
"""

BEGIN = """
update dynamics_sync.reconciliation
set begun_at = case
  when not %(restart)s and begun_at > coalesce(finished_at, '-infinity') then begun_at else clock_timestamp()
end
where target = %(target)s
returning begun_at
"""

FINISHED = """
update dynamics_sync.reconciliation set finished_at = clock_timestamp(), not_before = null where target = %(target)s
"""

PUT_OFF = """
update dynamics_sync.reconciliation set not_before = clock_timestamp() + make_interval(secs => %(pause)s)
where target = %(target)s
"""

OWNED_UNTIL = "select owned_until from dynamics_sync.reconciliation where target = %(target)s and owner is not null"


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of one process. It is kept before each request, and so must last longer than one may take."""

    target: str
    owner: str
    seconds: float


class PostgresTurns:
    """The turns of one process."""

    def __init__(self, pool: Pool, turn: Turn) -> None:
        self._pool = pool
        self._known = asdict(turn)

    async def take(self, if_due_every_seconds: float | None = None) -> bool:
        """Whether it is due is decided while nobody else can have a turn."""
        async with transaction(self._pool) as connection:
            await connection.execute(NOTICE, self._known)
            if (await connection.execute(TAKE, self._known)).rowcount == 0:
                return False
        if if_due_every_seconds is not None and await self.seconds_until_due(if_due_every_seconds) > 0:
            await self.give_back()
            return False
        return True

    async def keep(self) -> None:
        if await self._change(KEEP) == 0:
            raise TurnLostError

    async def give_back(self) -> None:
        await self._change(GIVE_BACK)

    async def begin(self, *, restart: bool) -> datetime:
        async with transaction(self._pool) as connection:
            row = await (await connection.execute(BEGIN, self._known | {"restart": restart})).fetchone()
        if row is None:
            raise TurnLostError
        return row[0]  # type: ignore[no-any-return]

    async def finished(self) -> None:
        await self._change(FINISHED)

    async def failed(self, pause_seconds: float) -> None:
        await self._change(PUT_OFF, pause=pause_seconds)

    async def seconds_until_due(self, every_seconds: float) -> float:
        async with transaction(self._pool) as connection:
            await connection.execute(NOTICE, self._known)
            cursor = await connection.execute(SECONDS_UNTIL_DUE, self._known | {"every": every_seconds})
            row = await cursor.fetchone()
        return float(row[0]) if row else every_seconds

    async def owned_until(self) -> datetime | None:
        """Until when somebody's turn lasts unless it is kept; None while nobody has it."""
        async with transaction(self._pool) as connection:
            row = await (await connection.execute(OWNED_UNTIL, self._known)).fetchone()
        return row[0] if row else None

    async def _change(self, statement: Any, **parameters: object) -> int:
        async with transaction(self._pool) as connection:
            return (await connection.execute(statement, self._known | parameters)).rowcount
