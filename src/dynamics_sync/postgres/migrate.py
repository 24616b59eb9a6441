"""Plain SQL migrations, recorded in the table in which Supabase's own tool records them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import psycopg

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import Connection, connect, translated

LOCK_KEY = 0x64796E73
"""Two `migrate` at once wait for one another."""

_CREATE_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text primary key);
alter table supabase_migrations.schema_migrations
  add column if not exists statements text[],
  add column if not exists name text
"""
"""As Supabase's tool does it: its first releases knew only the version."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`: `<version>_<name>.sql`."""

    version: str
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class MigrationSet:
    """Migrations that are applied together: the files below `migrations/` of a package."""

    package: str
    name_prefix: str
    """How they are told from other sets, and from the user's own, in the shared table."""

    def migrations(self) -> list[Migration]:
        """All of this version of the program, oldest first."""
        found = []
        for file in files(self.package).joinpath("migrations").iterdir():
            if file.name.endswith(".sql"):
                version, _, name = file.name.removesuffix(".sql").partition("_")
                found.append(Migration(version, name, file.read_text(encoding="utf-8")))
        return sorted(found, key=lambda migration: migration.version)


MACHINERY = MigrationSet("dynamics_sync.postgres", "dynamics_sync_")
"""Outbox, queue, circuit: what every database needs."""


async def migrate(database_url: str, sets: Sequence[MigrationSet]) -> list[str]:
    """Bring the database's schema up to date, all or nothing; give the names of the migrations applied.

    Raises:
        DatabaseError: it cannot be reached, is newer than this program, or refused a migration.
    """
    connection = await connect(database_url)
    try:
        async with connection, connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(%s)", [LOCK_KEY])
            await connection.execute(_CREATE_HISTORY)
            missing = _missing(await _applied(connection), sets)
            for migration in missing:
                await _apply(connection, migration)
    except psycopg.Error as error:
        raise _refusal(error) from None
    return [f"{migration.version}_{migration.name}" for migration in missing]


async def check_schema(connection: Connection, sets: Sequence[MigrationSet]) -> None:
    """Make sure that the database has exactly this program's schema.

    Raises:
        DatabaseError: it is missing, older or newer.
    """
    cursor = await connection.execute("select to_regclass('supabase_migrations.schema_migrations') is not null")
    row = await cursor.fetchone()
    applied = await _applied(connection) if row and row[0] else {}
    if missing := _missing(applied, sets):
        raise DatabaseError(
            f"The database lacks {len(missing)} migration(s) of dynamics-sync. Run `dynamics-sync migrate`."
        )


async def _applied(connection: Connection) -> dict[str, str]:
    cursor = await connection.execute("select version, name from supabase_migrations.schema_migrations")
    return {version: name or "" for version, name in await cursor.fetchall()}


def _missing(applied: dict[str, str], sets: Sequence[MigrationSet]) -> list[Migration]:
    """What is still to be applied, oldest first.

    Raises:
        DatabaseError: one of the sets is newer in the database.
    """
    known = {migration.version: migration for each in sets for migration in each.migrations()}
    prefixes = tuple(each.name_prefix for each in sets)
    newer = [version for version, name in applied.items() if name.startswith(prefixes) and version not in known]
    if newer:
        raise DatabaseError(
            f"The database was prepared by a newer dynamics-sync (migration {max(newer)}). Upgrade this program."
        )
    return [known[version] for version in sorted(known.keys() - applied.keys())]


async def _apply(connection: Connection, migration: Migration) -> None:
    # The text holds no parameters: it is sent as it is, as `supabase db push` would.
    await connection.execute(migration.sql.encode())
    await connection.execute(
        "insert into supabase_migrations.schema_migrations (version, statements, name) values (%s, %s, %s)",
        [migration.version, [migration.sql], migration.name],
    )


def _refusal(error: psycopg.Error) -> DatabaseError:
    """What stood in the way of a migration. PostgreSQL's words are kept only where they cannot quote a row."""
    words = error.diag.message_primary
    if isinstance(error, psycopg.errors.RaiseException):  # our own words
        return DatabaseError(f"{words}. Nothing was changed.")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return DatabaseError(
            f"The database refused to be prepared: {words}. Nothing was changed. Connect as the database's owner, or "
            "have the missing right granted to the role of DYNAMICS_SYNC_DATABASE_URL."
        )
    if error.sqlstate is not None and error.sqlstate.startswith("42"):  # about names, such as one that is taken
        return DatabaseError(f"The database refused to be prepared: {words}. Nothing was changed.")
    return translated(error)
