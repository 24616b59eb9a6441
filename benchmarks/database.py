"""The PostgreSQL 15 that all share, with its defaults, and a database for each that is measured.

Each has the same table of a user's, `public.certificates`, and rows in it. Making records wait is changing their rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.processes import BenchmarkError, children
from dynamics_sync.postgres.embedded import EmbeddedPostgres

BINARIES = Path("/usr/lib/postgresql/15/bin")

TABLE = """
create table public.certificates (
  id uuid primary key default gen_random_uuid(),
  number integer generated always as identity unique,
  status text not null default 'active',
  issued_on date not null default '2026-01-01',
  expires_on date not null default '2027-01-01'
) with (fillfactor = 50);
insert into public.certificates select from generate_series(1, {rows});
vacuum analyze public.certificates;
"""
"""Half of each page is free: changed rows find room in theirs, as in a table that has been in use for a while."""

TOGGLED = "case status when 'active' then 'expired' else 'active' end"
"""Another state than the one that was sent last: what Dynamics holds already would not be sent."""


Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Database:
    """One database. Its address has a password: it is handed on in the environment, never in a command."""

    url: str

    def run(self, *statements: str) -> None:
        """Each in a transaction of its own."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def value(self, query: str) -> Any:
        """The first value of a query."""
        with self.connect() as connection:
            row = connection.execute(query).fetchone()
        return row[0] if row else None

    def connect(self) -> Connection:
        """A connection in autocommit."""
        return psycopg.connect(self.url, autocommit=True)

    def settle(self) -> None:
        """What a busy server does now and then, done now: not in the middle of what is measured, and for all alike.
        Nothing is analysed, as queues are analysed at the wrong moment everywhere."""
        self.run("vacuum", "checkpoint")


@dataclass(frozen=True, slots=True)
class Server:
    """The server."""

    url: str

    @property
    def version(self) -> str:
        """Such as 15.14."""
        return str(Database(self.url).value("show server_version")).split(" ", 1)[0]

    def processes(self) -> Sequence[int]:
        """All that it has at present."""
        directory = Path(str(Database(self.url).value("show data_directory")))
        parent = int((directory / "postmaster.pid").read_text().split()[0])
        return [parent, *children(parent)]

    @contextmanager
    def database(self, name: str, rows: int) -> Iterator[Database]:
        """A new one with a user's table, dropped at the end."""
        everywhere = Database(self.url)
        everywhere.run(f'create database "{name}"')
        try:
            made = Database(self.url.rsplit("/", 1)[0] + f"/{name}")
            made.run(*TABLE.format(rows=rows).strip().removesuffix(";").split(";"))
            yield made
        finally:
            everywhere.run(f'drop database "{name}" with (force)')


@contextmanager
def server() -> Iterator[Server]:
    """PostgreSQL 15 in a temporary directory, as `nobody` where we are root. Durable, as it is by default.

    Raises:
        BenchmarkError: it is not there.
    """
    if not (BINARIES / "pgbench").exists():
        raise BenchmarkError("PostgreSQL 15 is not installed. On Debian: apt-get install postgresql-15")
    with EmbeddedPostgres(bindir=BINARIES) as running:
        yield Server(running.url)
