"""A mapping beside the database's catalogue: whether all that it names is there, captured, and of types that fit."""

import re
from collections.abc import Iterator
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from typing import Any

from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import Column, ColumnKind, SourceTable, SourceTables
from dynamics_sync.core.operation import DYNAMICS
from dynamics_sync.postgres.connections import Connection

COLUMNS_OF = """
select a.attname, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null), t.typcategory
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
"""

# The key; the columns that count, where not all do; whether rows may be changed past the trigger: where a table has
# become part of another since, one for whole statements does not hear of that one's.
CAPTURE = """
select said.arguments[2], nullif(said.arguments[5], '')::text[],
  t.tgtype & 1 = 0 and exists (select from pg_inherits where inhrelid = t.tgrelid)
from pg_trigger t
cross join lateral (
  select array_agg(convert_from(decode(argument, 'escape'), getdatabaseencoding()) order by n) as arguments
  from string_to_table(encode(t.tgargs, 'escape'), '\\000') with ordinality as given (argument, n)
) as said
where t.tgrelid = to_regclass(%(source)s) and t.tgname = 'dynamics_sync_capture_' || %(target)s
  and not exists (
    select from pg_trigger part
    where part.tgrelid = t.tgrelid and part.tgenabled not in ('O', 'A') and part.tgname = any (array[
      'dynamics_sync_capture_' || %(target)s, 'dynamics_sync_insert_' || %(target)s,
      'dynamics_sync_delete_' || %(target)s
    ])
  )
"""

MAY_READ = """
select has_table_privilege('service_role', to_regclass(%s), 'select'),
  (select rolbypassrls or rolsuper from pg_roles where rolname = 'service_role')
"""

POINTS_IN_TIME = ("timestamp without time zone", "timestamp with time zone")
FITTING_TYPES = {
    ColumnKind.DATE: ("date", *POINTS_IN_TIME),
    ColumnKind.DATETIME: POINTS_IN_TIME,
    ColumnKind.AUTO: ("uuid", "date", *POINTS_IN_TIME),
}
FITTING_CATEGORIES = ("B", "E", "N", "S")
"""PostgreSQL's letters for booleans, enumerations, numbers and texts, which go as they are."""

TypesOf = MappingOf[str, MappingOf[str, str]]
"""The type of each column of each table; of a domain, the type behind it."""


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    category: str


async def check_mapping(connection: Connection, mapping: SourceTables, target: str) -> TypesOf:
    """Compare what is mapped for a target with the database; give the types of the tables' columns.

    Raises:
        MappingError: a table or column is missing or of a type that does not fit, or a table is not captured or cannot
            be read. All are named.
    """
    problems: list[str] = []
    types: dict[str, dict[str, str]] = {}
    for table in mapping.tables:
        columns = {name: _Type(*rest) for name, *rest in await _rows(connection, COLUMNS_OF, table)}
        types[table.source] = {name: found.name for name, found in columns.items()}
        if columns:
            problems += _column_problems(table, columns)
            problems += await _capture_problems(connection, table, target)
        else:
            problems.append(f"table {table.source} does not exist")
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise MappingError(f"{mapping.title} does not fit the database:\n{lines}")
    return types


def _column_problems(table: SourceTable, columns: MappingOf[str, _Type]) -> Iterator[str]:
    for name in (table.key, *table.columns):
        if name not in columns:
            yield f"table {table.source} has no column {name}"
        elif name in table.columns and not _fits(table.columns[name], columns[name]):
            kind = table.columns[name].kind
            wanted = "" if kind is ColumnKind.AUTO else f" as a {kind}"
            problem = f"has type {columns[name].name}, which cannot be sent{wanted}"
            yield f"column {name} of table {table.source} {problem}"


def _fits(column: Column, found: _Type) -> bool:
    if column.choices is not None or column.lookup is not None:
        return True
    return found.name in FITTING_TYPES[column.kind] or (
        column.kind is ColumnKind.AUTO and found.category in FITTING_CATEGORIES
    )


async def _capture_problems(connection: Connection, table: SourceTable, target: str) -> list[str]:
    of_target = "" if target == DYNAMICS else f", '{target}'"
    columns = ", ".join(_in_array(name) for name in table.columns)
    watched = f"'{table.quoted_source}', '{table.key}'{of_target}, columns => '{{{columns}}}'"
    call = f"select dynamics_sync.watch({watched})"
    and_resync = (
        f"run `{call}`, then `select dynamics_sync.resync('{table.quoted_source}'{of_target})` for the rows that are "
        "there already"
    )
    found = await connection.execute(CAPTURE, {"source": table.quoted_source, "target": target})
    capture = await found.fetchone()
    if capture is None:
        return [f"changes of table {table.source} are not captured for {target}: {and_resync}"]
    key, captured_columns, misses_rows = capture
    if key != table.key:
        return [f"table {table.source} is captured with another key: run `{call}`"]
    if misses_rows:
        return [f"table {table.source} has become part of another one, whose changes are not captured: {and_resync}"]
    if captured_columns is not None and (
        uncaptured := [name for name in table.columns if name not in captured_columns]
    ):
        return [
            f"changes of {', '.join(uncaptured)} in table {table.source} are not captured for {target}: {and_resync}"
        ]
    ((may_read, bypasses),) = await _rows(connection, MAY_READ, table)
    if not may_read:
        return [f"service_role may not read table {table.source}: run `{call}`"]
    if not bypasses:
        return ["role service_role lacks bypassrls: run `alter role service_role bypassrls` as a superuser"]
    return []


def _in_array(name: str) -> str:
    """As an element of an array's text, within a string of SQL."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() != "null"
    element = name if plain else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return element.replace("'", "''")


async def _rows(connection: Connection, query: Any, table: SourceTable) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, [table.quoted_source])).fetchall()
