"""What `migrate` leaves behind, compared in the catalogue: on Supabase in both its worlds of default privileges, on a
bare PostgreSQL, and from the files that `migrations export` writes."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dynamics_sync.postgres.migrate import MACHINERY, migrate
from support import catalogue
from support.commands import run
from support.postgres import EVERYTHING, MIGRATIONS
from support.supabase import (
    CLI_LOGIN,
    GRANT_ON_EVERYTHING_NEW,
    HISTORY,
    ROLES,
    SCHEMAS,
    bare_server,
    database_of,
    roles,
)

FILES = [f"{migration.version}_{migration.name}.sql" for migration in MIGRATIONS]
RECORD = "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)"


@pytest.fixture(scope="module")
def superuser() -> Iterator[str]:
    """The address of the only role of a server: PostgreSQL 17, as Supabase now installs it."""
    with bare_server("pg17") as address:
        yield address


@pytest.fixture(scope="module")
def supabase(superuser: str) -> Iterator[str]:
    """The same server with Supabase's roles."""
    with roles(superuser, ROLES + ";" + CLI_LOGIN):
        yield superuser


@contextmanager
def project(supabase: str, *more: str) -> Iterator[str]:
    """The address of Supabase's `postgres` in a new project."""
    with database_of("postgres", supabase, ";".join([SCHEMAS, *more])) as address:
        yield address


@contextmanager
def migrated(supabase: str, *more: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with project(supabase, *more) as address, psycopg.connect(address, autocommit=True) as connection:
        asyncio.run(migrate(address, EVERYTHING))
        yield connection


def everything(connection: catalogue.Connection) -> catalogue.Rows:
    """All that is compared: who may do what, how it is protected, and what there is."""
    schemas = catalogue.OURS
    return (
        catalogue.rights(connection, *schemas)
        | catalogue.protection(connection, *schemas)
        | catalogue.definitions(connection, *schemas)
    )


def test_both_worlds_of_default_privileges_end_with_the_same_rights(supabase: str) -> None:
    with migrated(supabase, GRANT_ON_EVERYTHING_NEW) as older, migrated(supabase) as newer:
        assert everything(older) == everything(newer)


def test_nothing_of_supabases_own_is_touched(supabase: str) -> None:
    """The schema auth with all that it has, who owns it, and all roles with their settings and memberships."""
    untouched = ("auth", "extensions", "graphql_public", "realtime", "storage")
    with project(supabase) as address, psycopg.connect(address, autocommit=True) as connection:

        def look() -> catalogue.Rows:
            return (
                catalogue.rights(connection, *untouched)
                | catalogue.protection(connection, *untouched)
                | catalogue.definitions(connection, *untouched)
                | catalogue.roles(connection)
                | {row for row in catalogue.rights(connection, "public") if row[0] == "schema"}
            )

        before = look()
        asyncio.run(migrate(address, EVERYTHING))
        assert look() == before


def test_the_exported_files_make_what_migrate_makes(supabase: str, tmp_path: Path) -> None:
    """Applied as Supabase's tool does: one by one, in a transaction each, by a role that took the one of `postgres`."""
    folder = tmp_path / "supabase" / "migrations"
    done = run("migrations", "export", str(folder), "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["written"] == FILES
    with migrated(supabase) as usual, project(supabase) as address:
        with psycopg.connect(make_conninfo(address, user="cli_login_postgres"), autocommit=True) as tool:
            tool.execute("set session role postgres")
            tool.execute(HISTORY)
            for file in sorted(folder.iterdir()):
                version, _, name = file.stem.partition("_")
                with tool.transaction():
                    tool.execute(file.read_bytes())
                    tool.execute(RECORD, [version, name, [file.read_text()]])
            assert everything(tool) == everything(usual)
        assert asyncio.run(migrate(address, EVERYTHING)) == []


def test_supabases_owner_freezes_and_thaws_without_being_superuser(supabase: str) -> None:
    with migrated(supabase, GRANT_ON_EVERYTHING_NEW) as owner:
        owner.execute("create table public.things (id int); grant select (id) on public.things to anon")
        owner.execute("set role authenticated; grant select on public.things to anon; reset role")
        for relation in ("public.things", "public.certifications"):
            before = catalogue.rights(owner, "public")
            frozen = owner.execute("select kind from dynamics_sync.freeze(%s::regclass)", [relation]).fetchall()
            assert ("rights",) not in frozen
            assert {row[3] for row in before ^ catalogue.rights(owner, "public")} <= {"anon", "authenticated"}
            owner.execute("select dynamics_sync.thaw(%s::regclass)", [relation])
            assert catalogue.rights(owner, "public") == before


def test_with_a_mapping_of_ones_own_only_the_machinery_is_exported(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("")
    run("migrations", "export", "migrations", cwd=tmp_path, mapping="own.toml")
    names = [f"{migration.version}_{migration.name}.sql" for migration in MACHINERY.migrations()]
    assert sorted(file.name for file in (tmp_path / "migrations").iterdir()) == names


def test_a_bare_postgresql_gets_the_same_rights(supabase: str, empty_database: str) -> None:
    """Where the roles and the schema auth are made by us, and the owner is another one."""

    def rights(connection: catalogue.Connection) -> set[tuple[object, ...]]:
        owner = connection.info.user
        found = catalogue.rights(connection, "dynamics_sync", "dynamics_certifications")
        found |= {row for row in catalogue.rights(connection, "public") if row[0] != "schema"}
        return {tuple("the owner" if value == owner else value for value in row) for row in found}

    asyncio.run(migrate(empty_database, EVERYTHING))
    with migrated(supabase) as project, psycopg.connect(empty_database, autocommit=True) as bare:
        assert {row for row in rights(bare) ^ rights(project) if row[4] != "MAINTAIN"} == set()
