"""The emergency switch: tables and views that are closed to the API's roles. What closes them is in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from dynamics_sync.core.errors import ConfigurationError, DatabaseError
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.connections import Connection, Pool, transaction

FIND = """
select c.oid, format('%%I.%%I', n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(%(name)s)
"""

FREEZE = "select way, kind, roles from dynamics_sync.freeze(%(relation)s::oid, %(why)s, %(who)s)"

THAW = "select privilege, column_name, grantee from dynamics_sync.thaw(%(relation)s::oid, %(why)s, %(who)s)"

FORGET = """
with gone as (
  delete from dynamics_sync.frozen f
  where f.name in (%(name)s, 'public.' || %(name)s) and not exists (select from pg_class c where c.oid = f.relation)
  returning f.name
)
insert into dynamics_sync.audit (actor, action, relation, reason)
select %(who)s, 'thaw', gone.name, %(why)s from gone
returning relation
"""

LIST = """
select f.name, f.frozen_at, f.frozen_by, f.reason, c.oid is null as is_gone,
  array(
    select k.privilege || coalesce(' (' || k.column_name || ')', '') || ' to ' || k.grantee
    from dynamics_sync.frozen_rights k where k.relation = f.relation order by k.grantee::text, 1
  ) as taken,
  array(
    select json_build_object('way', w.way, 'kind', w.kind, 'roles', w.roles)
    from dynamics_sync.ways_to(f.relation) as w
  ) as ways
from dynamics_sync.frozen f left join pg_class c on c.oid = f.relation
order by f.frozen_at
"""


class WayKind(StrEnum):
    """How the API's roles get at what is in a table or view."""

    RIGHTS = "rights"
    """By rights on itself: granted since, by somebody else, or to a role that they are members of."""
    PARTITION = "partition"
    VIEW = "view"
    MATERIALIZED_VIEW = "materialized view"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class Way:
    """One way that stays open."""

    way: str
    """The table, view or function, as SQL names it."""
    kind: WayKind
    roles: Sequence[str]
    """`anon`, `authenticated` or both."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A table or view that is closed."""

    name: str
    frozen_at: datetime
    frozen_by: str
    reason: str | None
    is_gone: bool
    """It was dropped since. One of the same name that was made afterwards is not closed."""
    taken: Sequence[str]
    """The rights that it gets back: `SELECT (email) to anon`."""
    ways: Sequence[Way]

    @property
    def is_open_again(self) -> bool:
        """Whether the API's roles have rights on it all the same."""
        return any(way.kind is WayKind.RIGHTS for way in self.ways)


class PostgresAccess:
    """`dynamics_sync.frozen`, and the functions that close and open."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def freeze(self, name: str, operator: Operator) -> tuple[str, list[Way]]:
        """Close a table or view at once; give its full name and the ways that stay open.

        What has begun ends as it began: a statement or a cursor that was let in before still delivers its rows, and so
        does the rest of a transaction that has used the table before. Over Supabase's API a transaction is one request,
        with a time-out of seconds. All else is refused, also on open connections, and what was prepared.

        Raises:
            ConfigurationError: there is no such table or view.
            DatabaseError: it cannot be frozen.
        """
        async with transaction(self._pool) as connection:
            relation, full_name = await _find(connection, name)
            if relation is None:
                raise ConfigurationError(_nothing_named(name))
            rows = await _call(connection, FREEZE, _parameters(operator, relation=relation))
        return full_name, [_way(row) for row in rows]

    async def thaw(self, name: str, operator: Operator) -> tuple[str, list[str]]:
        """Give back the rights that were taken; give its full name and the rights that could not be given back.

        Raises:
            ConfigurationError: there is no such table or view, or it is not frozen.
            DatabaseError: the rights cannot be given back.
        """
        async with transaction(self._pool) as connection:
            relation, full_name = await _find(connection, name)
            if relation is None:
                forgotten = await _call(connection, FORGET, _parameters(operator, name=name))
                if not forgotten:
                    raise ConfigurationError(_nothing_named(name))
                return forgotten[0]["relation"], []
            rows = await _call(connection, THAW, _parameters(operator, relation=relation))
        return full_name, [_right(**row) for row in rows]

    async def frozen(self) -> list[Frozen]:
        """All that is closed, the longest first."""
        async with transaction(self._pool) as connection:
            rows = await _call(connection, LIST, {})
        return [Frozen(**row | {"ways": [_way(way) for way in row["ways"]]}) for row in rows]


async def _find(connection: Connection, name: str) -> tuple[int | None, str]:
    try:
        row = await (await connection.execute(FIND, {"name": name})).fetchone()
    except (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError):
        raise ConfigurationError(_nothing_named(name)) from None
    return row or (None, name)


async def _call(connection: Connection, statement: LiteralString, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a statement.

    Raises:
        DatabaseError: it was refused; in the words of the migration where they are ours.
    """
    try:
        async with connection.cursor(row_factory=dict_row) as cursor:
            return await (await cursor.execute(statement, parameters)).fetchall()
    except psycopg.errors.RaiseException as error:
        raise DatabaseError(f"{error.diag.message_primary}. Nothing was changed.") from None
    except (psycopg.errors.LockNotAvailable, psycopg.errors.InternalError_):
        raise DatabaseError(
            "A transaction is changing the definition or the rights at this moment. Nothing was changed. Try again, or "
            "end it: pg_stat_activity shows it."
        ) from None


def _parameters(operator: Operator, **others: object) -> dict[str, Any]:
    return {"who": operator.name, "why": operator.reason, **others}


def _way(row: Mapping[str, Any]) -> Way:
    return Way(row["way"], WayKind(row["kind"]), tuple(row["roles"]))


def _right(privilege: str, column_name: str | None, grantee: str) -> str:
    column = f" ({column_name})" if column_name else ""
    return f"{privilege}{column} to {grantee}"


def _nothing_named(name: str) -> str:
    return f"There is no table or view {name}. Name it as SQL does, with its schema: public.certifications."
