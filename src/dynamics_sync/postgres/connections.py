"""Connections to PostgreSQL, and its errors in words for people.

Works through every kind of pooler: nothing is prepared, no session state is kept, no options are sent at connect.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from dynamics_sync.core.errors import DatabaseError

Connection = psycopg.AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

CONNECT_TIMEOUT_SECONDS = 10

CONNECTION_OPTIONS = {
    "prepare_threshold": None,
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "fallback_application_name": "dynamics-sync",  # how audits name us
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,  # milliseconds
}
"""A server that a network silently cut off is noticed within 20 s, in a statement within 10."""

POOL_TIMEOUT_SECONDS = 5.0
"""How long work waits for a connection; and how long the pool tries to replace a lost one before it begins anew, as its
pauses double: left at its default it would find a database only minutes after it is back."""

_SHUTDOWNS = ("57P01", "57P02", "57P03")
"""admin_shutdown (pg_terminate_backend, too), crash_shutdown, cannot_connect_now."""

AS_SERVICE_ROLE = "set local role service_role"
"""Row-level security binds even the owner: the queue is written, and records read, with service_role's rights (R6)."""

AS_OURSELVES = "reset role"


class BinaryCursor(psycopg.AsyncCursor[Any]):
    """Takes values in binary form: as text, their form would depend on the database's settings, such as DateStyle."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.format = psycopg.pq.Format.BINARY


def make_pool(database_url: str, size: int) -> Pool:
    """A pool of up to `size` connections, not yet open."""
    return AsyncConnectionPool(
        database_url,
        min_size=1,
        max_size=size,
        timeout=POOL_TIMEOUT_SECONDS,
        reconnect_timeout=POOL_TIMEOUT_SECONDS,
        open=False,
        kwargs={**CONNECTION_OPTIONS, "cursor_factory": BinaryCursor},
    )


async def connect(database_url: str, **options: Any) -> Connection:
    """One connection, in autocommit.

    Raises:
        DatabaseError: it cannot be had; the message says why and what to do.
    """
    try:
        return await psycopg.AsyncConnection.connect(database_url, **(CONNECTION_OPTIONS | options))
    except psycopg.Error as error:
        raise DatabaseError(_why_no_connection(database_url, error)) from None


@asynccontextmanager
async def brief_connection(database_url: str) -> AsyncIterator[Connection]:
    """A connection for a few statements. psycopg's errors leave it as DatabaseError, without a word of the row."""
    try:
        async with await connect(database_url) as connection:
            yield connection
    except psycopg.Error as error:
        raise translated(error) from None


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """A connection in a transaction. psycopg's errors leave it as DatabaseError, without a word of the row."""
    try:
        async with pool.connection() as connection, connection.transaction():
            yield connection
    except psycopg.Error as error:
        await _replace_lost(pool, error)
        raise translated(error) from None


@asynccontextmanager
async def one_trip(pool: Pool) -> AsyncIterator[Connection]:
    """A connection whose statements travel together and are one transaction, unless they begin and end others. Read
    results after the block."""
    try:
        async with pool.connection() as connection, connection.pipeline():
            yield connection
    except psycopg.Error as error:
        await _replace_lost(pool, error)
        raise translated(error) from None


Parameters = Sequence[object] | Mapping[str, object]


async def all_rows(pool: Pool, query: LiteralString, parameters: Parameters = ()) -> list[TupleRow]:
    """The rows of a statement that is a transaction of its own."""
    async with transaction(pool) as connection:
        return await (await connection.execute(query, parameters)).fetchall()


async def one_value(pool: Pool, query: LiteralString, parameters: Parameters = ()) -> Any:
    """The first value of the first row; None if there is no row."""
    async with transaction(pool) as connection:
        row = await (await connection.execute(query, parameters)).fetchone()
    return row[0] if row else None


async def _replace_lost(pool: Pool, error: psycopg.Error) -> None:
    """Where one connection is lost others are too: the next to ask shall not get one of those."""
    is_lost = error.sqlstate is None or error.sqlstate in _SHUTDOWNS
    if is_lost and not pool.closed:
        await pool.check()


def translated(error: psycopg.Error) -> DatabaseError:
    """Our words for an error of the driver. PostgreSQL's own quote values; its SQLSTATE does not."""
    if error.sqlstate is None:
        return DatabaseError(
            "The connection to the database was lost, or none could be had. Nothing is lost: work goes on when it is "
            "back."
        )
    if error.sqlstate == "42501":
        return DatabaseError(
            "The database refused access (SQLSTATE 42501): the role that dynamics-sync connects with, or service_role, "
            "lacks a grant. `select dynamics_sync.watch('schema.table')` gives service_role what it needs on a table."
        )
    return DatabaseError(f"The database refused a statement (SQLSTATE {error.sqlstate}).")


def describe(database_url: str) -> str:
    """Host, port and database of an address, without user and password, for messages."""
    try:
        parts = conninfo_to_dict(database_url)
    except psycopg.Error:
        return "the database address"
    host = parts.get("host") or "localhost"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def _why_no_connection(database_url: str, error: psycopg.Error) -> str:
    where = describe(database_url)
    text = str(error).lower()
    if isinstance(error, psycopg.ProgrammingError):
        return (
            "DYNAMICS_SYNC_DATABASE_URL is no PostgreSQL address. It looks like "
            "postgresql://user:password@host:5432/database."
        )
    for sign, meaning in _SIGNS:
        if sign in text:
            return f"Cannot connect to {where}: {meaning}"
    return f"Cannot connect to {where}: the server did not accept the connection. Check address, port and firewall."


_NOT_LET_IN = "the user or password is wrong. Correct DYNAMICS_SYNC_DATABASE_URL."
_NO_CONNECTION_LEFT = "the server has no connection left. Raise its limit, or close some."
_NO_SUCH_PROJECT = (
    "the pooler knows no such project. Copy the host and the user, postgres.<project>, from Supabase's page Connect."
)

# PgBouncer and Supabase's pooler have words of their own.
_SIGNS = (
    ("password authentication failed", _NOT_LET_IN),
    ("sasl authentication failed", _NOT_LET_IN),
    ("no password supplied", "the server wants a password. Put one into DYNAMICS_SYNC_DATABASE_URL."),
    ("does not exist", "the database or the user does not exist. Create it, or correct DYNAMICS_SYNC_DATABASE_URL."),
    ("tenant or user not found", _NO_SUCH_PROJECT),
    ("tenant/user", _NO_SUCH_PROJECT),
    ("no pg_hba.conf entry", "the server does not let this user in from here. Add a line to its pg_hba.conf."),
    ("too many", _NO_CONNECTION_LEFT),
    ("remaining connection slots", _NO_CONNECTION_LEFT),
    ("no more connections allowed", _NO_CONNECTION_LEFT),
    ("max clients reached", _NO_CONNECTION_LEFT),
    ("ssl", "TLS could not be agreed on. Check sslmode and sslrootcert in DYNAMICS_SYNC_DATABASE_URL."),
    ("certificate", "the server's certificate is not trusted. Check sslrootcert in DYNAMICS_SYNC_DATABASE_URL."),
    ("resolve", "the host name is unknown. Correct DYNAMICS_SYNC_DATABASE_URL."),
    ("not known", "the host name is unknown. Correct DYNAMICS_SYNC_DATABASE_URL."),
    ("refused", "nothing listens there. Start PostgreSQL, or correct DYNAMICS_SYNC_DATABASE_URL."),
    ("timeout", "no answer. Check address, port and firewall."),
    ("starting up", "the server is starting up. Try again in a moment."),
    ("shutting down", "the server is shutting down. Try again when it is back."),
)
