"""Plain SQL migrations, recorded in the table in which Supabase's own tool records them."""

from dataclasses import dataclass
from importlib.resources import files

import psycopg

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import Connection, connect, translated

NAME_PREFIX = "dynamics_sync_"
"""How our migrations are told from the user's own in the shared table."""

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


def migrations() -> list[Migration]:
    """All migrations of this version of the program, oldest first."""
    found = []
    for file in files("dynamics_sync.postgres").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            version, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(version, name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(database_url: str) -> list[str]:
    """Bring the database's schema up to date, all or nothing; give the names of the migrations applied.

    Raises:
        DatabaseError: it cannot be reached, is newer than this program, or refused a migration.
    """
    connection = await connect(database_url)
    try:
        async with connection, connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(%s)", [LOCK_KEY])
            await connection.execute(_CREATE_HISTORY)
            applied = await _applied(connection)
            _refuse_newer(applied)
            missing = [migration for migration in migrations() if migration.version not in applied]
            for migration in missing:
                await _apply(connection, migration)
    except psycopg.Error as error:
        raise _refusal(error) from None
    return [f"{migration.version}_{migration.name}" for migration in missing]


async def check_schema(connection: Connection) -> None:
    """Make sure that the database has exactly this program's schema.

    Raises:
        DatabaseError: it is missing, older or newer.
    """
    cursor = await connection.execute("select to_regclass('supabase_migrations.schema_migrations') is not null")
    row = await cursor.fetchone()
    applied = await _applied(connection) if row and row[0] else {}
    _refuse_newer(applied)
    missing = [migration for migration in migrations() if migration.version not in applied]
    if missing:
        raise DatabaseError(
            f"The database lacks {len(missing)} migration(s) of dynamics-sync. Run `dynamics-sync migrate`."
        )


async def _applied(connection: Connection) -> dict[str, str]:
    cursor = await connection.execute("select version, name from supabase_migrations.schema_migrations")
    return {version: name or "" for version, name in await cursor.fetchall()}


def _refuse_newer(applied: dict[str, str]) -> None:
    known = {migration.version for migration in migrations()}
    newer = [version for version, name in applied.items() if name.startswith(NAME_PREFIX) and version not in known]
    if newer:
        raise DatabaseError(
            f"The database was prepared by a newer dynamics-sync (migration {max(newer)}). Upgrade this program."
        )


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
