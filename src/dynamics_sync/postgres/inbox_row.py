"""The user's row that a change from Dynamics goes to: read, locked and written as service_role."""

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from dynamics_sync.core.conflicts import Incoming
from dynamics_sync.core.decoding import agrees
from dynamics_sync.postgres.connections import AS_OURSELVES, AS_SERVICE_ROLE, Connection
from dynamics_sync.postgres.records import row_query
from dynamics_sync.sync.inbox_ports import NotApplicableError

SHOW_OR_FAIL = "set local row_security = off"
"""A row that a policy hides is an error; hidden, it would look like a missing one."""

AS_EVER = "set local row_security = on"

TRANSIENT = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE after which another try may do: connections, conflicts, resources, locks, operators, systems."""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class InboxRow:
    """One row, in a transaction."""

    connection: Connection
    incoming: Incoming
    key: str

    async def read(self, *, lock: bool) -> Row | None:
        """The mapped columns; None if there is no such row.

        Raises:
            NotApplicableError: it cannot be read, or service_role may not change it.
        """
        query = row_query(self.incoming.table, self.incoming.types)
        if lock:
            query = query + sql.SQL(" for no key update")
        await self.connection.execute(AS_SERVICE_ROLE)
        await self.connection.execute(SHOW_OR_FAIL)
        try:
            async with self.connection.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(query, [[self.key]])
                row = await cursor.fetchone()
        except psycopg.Error as error:
            if is_transient(error):
                raise
            code = "database.unreadable_value" if isinstance(error, psycopg.DataError) else "inbox.may_not_write"
            raise NotApplicableError(code, self.incoming.table.source) from None
        await self.connection.execute(AS_EVER)
        await self.connection.execute(AS_OURSELVES)
        return row

    async def write(self, values: Row) -> None:
        """Change some columns.

        Raises:
            NotApplicableError: service_role may not, or a rule of the table forbids it.
        """
        table, types = self.incoming.table, self.incoming.types
        assignments = [
            sql.SQL("{} = {}::{}").format(sql.Identifier(name), sql.Placeholder(f"value{number}"), sql.SQL(types[name]))
            for number, name in enumerate(values)
        ]
        statement = sql.SQL("update {table} set {assignments} where {key} = %(record_key)s::{type}").format(
            table=sql.Identifier(*table.source.split(".")),
            assignments=sql.SQL(", ").join(assignments),
            key=sql.Identifier(table.key),
            type=sql.SQL(types[table.key]),  # from the catalogue's own format_type
        )
        parameters = {f"value{number}": value for number, value in enumerate(values.values())}
        await self.connection.execute(AS_SERVICE_ROLE)
        try:
            await self.connection.execute(statement, {"record_key": self.key, **parameters})
        except psycopg.Error as error:
            if is_transient(error):
                raise
            code = "inbox.may_not_write" if error.sqlstate == "42501" else "inbox.refused_by_database"
            raise NotApplicableError(code, table.source) from None
        await self.connection.execute(AS_OURSELVES)

    async def altered(self, before: Row, written: Row) -> set[str]:
        """Columns that are not as they were or were written: other triggers made them into something that Dynamics
        does not have."""
        after = await self.read(lock=False)
        columns = self.incoming.table.columns
        if after is None:
            return set(columns)
        wanted = {name: written.get(name, before[name]) for name in columns}
        return {
            name
            for name, column in columns.items()
            if after[name] != wanted[name] and not agrees(name, column, after[name], wanted[name])
        }


def is_transient(error: psycopg.Error) -> bool:
    """Whether another try may do, with nothing put right."""
    return error.sqlstate is None or error.sqlstate[:2] in TRANSIENT
