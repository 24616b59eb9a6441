"""The mapped tables: checked against the catalogue at start, read row by row when they are sent."""

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import Mapping, TableMapping, UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.postgres.coalesce import Coalescer
from dynamics_sync.postgres.connections import Connection, Pool, translated
from dynamics_sync.sync.ports import Clock

COLUMNS_OF = """
select a.attname, format_type(a.atttypid, a.atttypmod)
from pg_attribute a
where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
"""

KEY_OF_TRIGGER = """
select split_part(encode(t.tgargs, 'escape'), '\\000', 1), split_part(encode(t.tgargs, 'escape'), '\\000', 2)
from pg_trigger t
where t.tgrelid = to_regclass(%s) and t.tgname = 'dynamics_sync_capture' and t.tgenabled <> 'D'
"""

MAY_READ = """
select has_table_privilege('service_role', to_regclass(%s), 'select'),
  (select rolbypassrls or rolsuper from pg_roles where rolname = 'service_role')
"""

AS_READER = """
select set_config('role', 'service_role', true), set_config('row_security', 'off', true),
  set_config('statement_timeout', '5s', true)
"""
"""With row_security off a row that a policy hides is an error; hidden, it would look like a deleted one. The time-out
is for tables that somebody has locked."""

Row = MappingOf[str, object]
"""Values by column."""

AHEAD_SECONDS = 1.0
"""How old a row that was read ahead may be: what waits longer for its turn is read again."""


@dataclass(frozen=True, slots=True)
class _Reading:
    row: Row | UnsendableError | None
    read_at: float


@dataclass(frozen=True, slots=True)
class _Table:
    """How one mapped table is read."""

    query: sql.Composed
    key: str


class PostgresRecords:
    """Reads the present state of records, many in one query where many are asked for at once."""

    def __init__(self, pool: Pool, mapping: Mapping, key_types: MappingOf[str, str], clock: Clock) -> None:
        self._pool = pool
        self._tables = {table.source: _reader(table, key_types[table.source]) for table in mapping.tables}
        self._read_many = Coalescer(self._read_batch)
        self._clock = clock
        self._ahead: dict[SyncOperation, _Reading] = {}

    async def read(self, operation: SyncOperation) -> Row | None:
        """The mapped columns of the record's row, or None if there is none.

        Raises:
            UnsendableError: its table cannot be read: it is gone, or a column, or service_role's right to read it. Or
                the record cannot: a value has no form in Python.
            DatabaseError: no table can be read for now.
        """
        ahead = self._ahead.pop(operation, None)
        if ahead is not None and ahead.read_at > self._clock.monotonic() - AHEAD_SECONDS:
            row = ahead.row
        else:
            row = await self._read_many(operation)
        if isinstance(row, UnsendableError):
            raise row
        return row

    async def read_ahead(self, operations: Sequence[SyncOperation]) -> None:
        """Read just claimed records at once, each for the one `read` that comes first if it comes soon.

        A record that changes in between is sent again, because its version is no longer the claimed one.
        """
        now = self._clock.monotonic()
        mapped = [operation for operation in operations if operation.source_table in self._tables]
        rows = await self._read_batch(mapped)
        self._ahead = {
            known: reading for known, reading in self._ahead.items() if reading.read_at > now - AHEAD_SECONDS
        }
        self._ahead |= {operation: _Reading(row, now) for operation, row in zip(mapped, rows, strict=True)}

    async def _read_batch(self, operations: Sequence[SyncOperation]) -> Sequence[Row | UnsendableError | None]:
        rows: dict[tuple[str, str], Row | UnsendableError] = {}
        for source in {operation.source_table for operation in operations}:
            keys = [operation.record_key for operation in operations if operation.source_table == source]
            for key, row in (await self._read_table(source, keys)).items():
                rows[source, key] = row
        return [rows.get((operation.source_table, operation.record_key)) for operation in operations]

    async def _read_table(self, source: str, keys: Sequence[str]) -> MappingOf[str, Row | UnsendableError]:
        try:
            return await self._select(self._tables[source], keys)
        except psycopg.DataError:
            # One record, by its key or a value that has no form in Python, must not keep the others from being read.
            if len(keys) == 1:
                return {keys[0]: UnsendableError("database.unreadable_value", source)}
            single = [await self._read_table(source, [key]) for key in keys]
            return {key: row for rows in single for key, row in rows.items()}
        except psycopg.ProgrammingError:
            return {key: UnsendableError("database.unreadable", source) for key in keys}
        except psycopg.Error as error:
            raise translated(error) from None

    async def _select(self, table: _Table, keys: Sequence[str]) -> dict[str, Row]:
        async with self._pool.connection() as connection:
            async with connection.pipeline(), connection.transaction():
                await connection.execute(AS_READER)
                cursor = connection.cursor(row_factory=dict_row)
                await cursor.execute(table.query, [list(keys)])
            return {str(row[table.key]): row for row in await cursor.fetchall()}


async def check_mapping(connection: Connection, mapping: Mapping, target: str) -> dict[str, str]:
    """Compare a mapping with the database; give the type of each table's key column.

    Raises:
        MappingError: a table or column is missing, a table is not watched or cannot be read. All are named.
    """
    problems: list[str] = []
    key_types: dict[str, str] = {}
    for table in mapping.tables:
        columns = dict(await _rows(connection, COLUMNS_OF, table.source))
        if not columns:
            problems.append(f"table {table.source} does not exist")
            continue
        wanted = [table.key, *table.columns]
        missing = [name for name in wanted if name not in columns]
        problems += [f"table {table.source} has no column {name}" for name in missing]
        key_types[table.source] = columns.get(table.key, "text")
        problems += await _capture_problems(connection, table, target)
    if problems:
        raise MappingError("The mapping does not fit the database:\n" + "\n".join(f"  {line}" for line in problems))
    return key_types


async def _capture_problems(connection: Connection, table: TableMapping, target: str) -> list[str]:
    call = f"select dynamics_sync.watch('{table.source}', '{table.key}')"
    triggers = await _rows(connection, KEY_OF_TRIGGER, table.source)
    if not triggers:
        return [f"changes of table {table.source} are not captured: run `{call}`"]
    if triggers[0] != (target, table.key):
        return [f"table {table.source} is captured with another key or target: run `{call}`"]
    ((may_read, bypasses),) = await _rows(connection, MAY_READ, table.source)
    if not may_read:
        return [f"service_role may not read table {table.source}: run `{call}`"]
    if not bypasses:
        return ["role service_role lacks bypassrls: run `alter role service_role bypassrls` as a superuser"]
    return []


async def _rows(connection: Connection, query: Any, table: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, [table])).fetchall()


def _reader(table: TableMapping, key_type: str) -> _Table:
    schema, name = table.source.split(".")
    columns = sql.SQL(", ").join(sql.Identifier(column) for column in table.columns)
    query = sql.SQL("select {key}::text as {alias}, {columns} from {table} where {key} = any(%s::{type}[])").format(
        key=sql.Identifier(table.key),
        alias=sql.Identifier(KEY_ALIAS),
        columns=columns,
        table=sql.Identifier(schema, name),
        type=sql.SQL(key_type),  # from the catalogue's own format_type
    )
    return _Table(query, KEY_ALIAS)


KEY_ALIAS = "dynamics_sync_key"
