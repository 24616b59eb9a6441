"""The present state of records: many in one query where many are asked for at once."""

import re
from collections import deque
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from itertools import islice

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import SourceTable, SourceTables, UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.postgres.catalogue import POINTS_IN_TIME, TypesOf
from dynamics_sync.postgres.coalesce import Coalescer
from dynamics_sync.postgres.connections import Pool, translated
from dynamics_sync.sync.ports import Clock, Reading

AS_READER = """
select set_config('role', 'service_role', true), set_config('row_security', 'off', true),
  set_config('statement_timeout', '5s', true)
"""
"""With row_security off a row that a policy hides is an error; hidden, it would look like a deleted one. The time-out
is for tables that somebody has locked."""

READ_AS_THEY_ARE = (
    *("boolean", "smallint", "integer", "bigint", "numeric", "double precision", "uuid", "date"),
    *POINTS_IN_TIME,
)
"""Types that have a form in Python. All others are read as text, a choice's and a lookup's too."""

KEY = "dynamics_sync_key"
"""What the key is called in a result, beside the mapped columns."""

Row = MappingOf[str, object]
"""Values by column."""

AHEAD_SECONDS = 1.0
"""How old a row that was read ahead may be: what waits longer for its turn is read again."""


KNOWN_PAYLOADS = "select * from dynamics_sync.known_payloads(%s, %s, %b::text[])"


class PostgresRecords:
    """Reads the present state of records, many in one query where many are asked for at once."""

    def __init__(self, pool: Pool, mapping: SourceTables, types: TypesOf, clock: Clock) -> None:
        self._pool = pool
        self._queries = {table.source: row_query(table, types[table.source]) for table in mapping.tables}
        self._queries_of_any = {
            table.source: row_query(table, types[table.source], any_text=True) for table in mapping.tables
        }
        self._next_keys = {table.source: _next_keys(table, types[table.source]) for table in mapping.tables}
        self._key_types = {table.source: types[table.source][table.key] for table in mapping.tables}
        self._read_together = Coalescer(self._read_batches)
        self._clock = clock
        self._ahead: dict[tuple[int, int], Reading] = {}
        self._ahead_at: deque[tuple[float, Sequence[tuple[int, int]]]] = deque()

    async def read(self, operations: Sequence[SyncOperation]) -> Sequence[Reading]:
        """How mapped records are now: the mapped columns of each row, or None if there is none.

        An UnsendableError says that its table cannot be read: it is gone, or a column, or service_role's right to read
        it. Or the record cannot: a value has no form in Python.

        Raises:
            DatabaseError: no table can be read for now.
        """
        self._forget_what_is_old(self._clock.monotonic())
        found = [self._ahead.pop(_claimed(operation), None) for operation in operations]
        missing = [operation for operation, reading in zip(operations, found, strict=True) if reading is None]
        read = iter(await self._read_together(missing) if missing else ())
        return [next(read) if reading is None else reading for reading in found]

    async def read_ahead(self, operations: Sequence[SyncOperation]) -> None:
        """Read just claimed records at once, each for the one `read` that comes first if it comes soon.

        A record that changes in between is sent again, because its version is no longer the claimed one.
        """
        now = self._clock.monotonic()
        mapped = [operation for operation in operations if operation.source_table in self._queries]
        readings = await self._read_batch(mapped)
        self._forget_what_is_old(now)
        claimed = [_claimed(operation) for operation in mapped]
        self._ahead |= zip(claimed, readings, strict=True)
        self._ahead_at.append((now, claimed))

    def _forget_what_is_old(self, now: float) -> None:
        while self._ahead_at and self._ahead_at[0][0] <= now - AHEAD_SECONDS:
            for claimed in self._ahead_at.popleft()[1]:
                self._ahead.pop(claimed, None)

    async def read_many(self, source_table: str, keys: Sequence[str]) -> MappingOf[str, Row | UnsendableError]:
        """The rows that are there, by key. Keys may be any texts, also such as the key's column cannot hold.

        Raises:
            DatabaseError: no table can be read for now.
        """
        possible = [key for key in keys if is_possible(key, self._key_types[source_table])]
        if not possible:
            return {}
        readings = await self._read_table(self._queries_of_any[source_table], source_table, possible)
        return {key: reading.row for key, reading in readings.items() if reading.row is not None}

    async def next_keys(self, source_table: str, after: str | None, limit: int) -> list[str]:
        """The next keys of a table, in the order of the key's own type.

        Raises:
            MappingError: the table cannot be read.
            DatabaseError: no table can be read for now.
        """
        try:
            async with self._pool.connection() as connection:
                async with connection.pipeline():
                    await connection.execute(AS_READER)
                    cursor = await connection.execute(
                        self._next_keys[source_table], {"after": after, "limit": limit, "all": after is None}
                    )
                return [str(key) for (key,) in await cursor.fetchall()]
        except psycopg.ProgrammingError:
            raise MappingError(
                f"Table {source_table} cannot be read: it or a column is gone, or service_role may not read it. "
                "`dynamics-sync run` names what is wrong when it starts."
            ) from None
        except psycopg.Error as error:
            raise translated(error) from None

    async def _read_batches(self, batches: Sequence[Sequence[SyncOperation]]) -> Sequence[Sequence[Reading]]:
        readings = iter(await self._read_batch([operation for batch in batches for operation in batch]))
        return [list(islice(readings, len(batch))) for batch in batches]

    async def _read_batch(self, operations: Sequence[SyncOperation]) -> Sequence[Reading]:
        found: dict[str, MappingOf[str, Reading]] = {}
        for source in {operation.source_table for operation in operations}:
            keys = [operation.record_key for operation in operations if operation.source_table == source]
            found[source] = await self._read_table(self._queries[source], source, keys, operations[0].target)
        return [found[operation.source_table].get(operation.record_key, _GONE) for operation in operations]

    async def _read_table(
        self, query: sql.Composed, source: str, keys: Sequence[str], target: str | None = None
    ) -> MappingOf[str, Reading]:
        """Those that are there, by key; with a target also what that is known to hold of them."""
        try:
            return await self._select(query, source, keys, target)
        except psycopg.DataError:
            # One record, by its key or a value that has no form in Python, must not keep the others from being read.
            if len(keys) == 1:
                return {keys[0]: Reading(UnsendableError("database.unreadable_value", source))}
            single = [await self._read_table(query, source, [key], target) for key in keys]
            return {key: reading for readings in single for key, reading in readings.items()}
        except psycopg.ProgrammingError:
            return {key: Reading(UnsendableError("database.unreadable", source)) for key in keys}
        except psycopg.Error as error:
            raise translated(error) from None

    async def _select(
        self, query: sql.Composed, source: str, keys: Sequence[str], target: str | None
    ) -> MappingOf[str, Reading]:
        async with self._pool.connection() as connection:
            async with connection.pipeline():  # one transaction, as nothing is asked for before its end
                if target is not None:
                    known = await connection.execute(KNOWN_PAYLOADS, [target, source, list(keys)])
                await connection.execute(AS_READER)
                cursor = connection.cursor(row_factory=dict_row)
                await cursor.execute(query, [list(keys)])
            hashes: dict[str, bytes] = dict(await known.fetchall()) if target is not None else {}
            rows = {str(row[KEY]): row for row in await cursor.fetchall()}
        return {key: Reading(row, hashes.get(key)) for key, row in rows.items()}


_GONE = Reading(None)


def _claimed(operation: SyncOperation) -> tuple[int, int]:
    """A row that was read for one version must not be sent for the next."""
    return operation.outbox_id, operation.version


def is_possible(key: str, type_name: str) -> bool:
    """Whether a key column of that type can hold the text; the others need not be asked for."""
    if type_name in _INTEGER_BYTES:
        bound = 2 ** (8 * _INTEGER_BYTES[type_name] - 1)
        return re.fullmatch(r"-?[0-9]{1,19}", key) is not None and -bound <= int(key) < bound
    if type_name in _FORMS:
        return re.fullmatch(_FORMS[type_name], key) is not None
    return "\0" not in key and not any("\ud800" <= character <= "\udfff" for character in key)


_INTEGER_BYTES = {"smallint": 2, "integer": 4, "bigint": 8}
_FORMS = {
    "uuid": r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "numeric": r"-?[0-9]+(\.[0-9]+)?|NaN|-?Infinity",
}


def row_query(table: SourceTable, types: MappingOf[str, str], *, any_text: bool = False) -> sql.Composed:
    """The rows with some keys, each looked up by itself: for many keys the planner may prefer to read the whole table.
    With `any_text` also a text that is no label of the key's enumeration is no error."""
    key_type = types[table.key]
    query = (
        "select found.* from unnest(%b::{type}[]) as wanted (key) "
        "cross join lateral (select {key}::text as {alias}, {columns} from {table} where {key} = wanted.key limit 1) "
        "as found"
    )
    if any_text and key_type not in (*_INTEGER_BYTES, *_FORMS, "text", "character varying"):
        query = "select {key}::text as {alias}, {columns} from {table} where {key}::text = any(%b::text[])"
    return sql.SQL(query).format(
        key=sql.Identifier(table.key),
        alias=sql.Identifier(KEY),
        columns=sql.SQL(", ").join(_expression(column, types[column]) for column in table.columns),
        table=sql.Identifier(*table.source.split(".")),
        type=sql.SQL(key_type),  # from the catalogue's own format_type
    )


def _next_keys(table: SourceTable, types: MappingOf[str, str]) -> sql.Composed:
    statement = (
        "select {key}::text from {table} where %(all)s or {key} > %(after)s::{type} order by {key} limit %(limit)s"
    )
    return sql.SQL(statement).format(
        key=sql.Identifier(table.key),
        table=sql.Identifier(*table.source.split(".")),
        type=sql.SQL(types[table.key]),  # from the catalogue's own format_type
    )


def _expression(column: str, type_name: str) -> sql.Composable:
    name = sql.Identifier(column)
    if type_name in READ_AS_THEY_ARE:
        return name
    # The number that a real is written as, not the binary one that it holds: 0.1, not 0.10000000149011612.
    form = "{}::text::double precision as {}" if type_name == "real" else "{}::text as {}"
    return sql.SQL(form).format(name, name)
