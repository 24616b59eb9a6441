"""`migrate` on the databases that people have: Supabase's, in both its worlds, and plain ones with whatever rights."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import date
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect, make_pool
from dynamics_sync.postgres.migrate import LOCK_KEY, check_schema, migrate
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from support.commands import launched
from support.mentors import add_chapter, add_mentor, certify
from support.outbox import GATHER
from support.postgres import EVERYTHING, MIGRATIONS, SERVERS
from support.processes import Process
from support.supabase import (
    API_ROLES,
    GRANT_ON_EVERYTHING_NEW,
    PASSWORD,
    ROLES,
    SCHEMAS,
    bare_server,
    database_of,
    roles,
)

Connection = psycopg.Connection[tuple[object, ...]]

LISTED = "select id from public.public_peer_mentors"
MORE_THAN_READING = """
select has_table_privilege('public.public_peer_mentors', 'insert, update, delete, truncate, references, trigger')
"""

RIGHTS_IN_THE_MACHINERY = """
select r.role, c.oid::regclass::text from unnest(%(roles)s::text[]) r(role), pg_class c
where c.relnamespace = 'dynamics_sync'::regnamespace and c.relkind in ('r', 'p', 'v')
  and has_table_privilege(r.role, c.oid, 'select, insert, update, delete, truncate, references, trigger')
union all
select r.role, c.oid::regclass::text from unnest(%(roles)s::text[]) r(role), pg_class c
where c.relnamespace = 'dynamics_sync'::regnamespace and c.relkind = 'S'
  and has_sequence_privilege(r.role, c.oid, 'usage, select, update')
union all
select r.role, p.oid::regprocedure::text from unnest(%(roles)s::text[]) r(role), pg_proc p
where p.pronamespace = 'dynamics_sync'::regnamespace and has_function_privilege(r.role, p.oid, 'execute')
union all
select r.role, 'the schema' from unnest(%(roles)s::text[]) r(role)
where has_schema_privilege(r.role, 'dynamics_sync', 'usage, create')
"""

RIGHTS_ON_OUR_TABLES = """
select r.role, c.relname from unnest(%(roles)s::text[]) r(role), pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname <> 'things'
  and has_table_privilege(r.role, c.oid, 'select, insert, update, delete, truncate, references, trigger')
"""


@pytest.fixture(scope="module", params=SERVERS)
def superuser(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the only role of a server."""
    with bare_server(request.param) as address:
        yield address


@pytest.fixture(params=["granting", "granting nothing"])
def supabase(request: pytest.FixtureRequest, superuser: str) -> Iterator[str]:
    """The address of Supabase's `postgres`, with either world of default privileges."""
    grants = GRANT_ON_EVERYTHING_NEW if request.param == "granting" else ""
    with roles(superuser, ROLES), database_of("postgres", superuser, SCHEMAS + ";" + grants) as address:
        yield address


@pytest.fixture
def project(supabase: str) -> Iterator[Connection]:
    """A migrated Supabase database with a watched table of the user's, seen by its owner."""
    asyncio.run(migrate(supabase, EVERYTHING))
    with psycopg.connect(supabase, autocommit=True) as connection:
        connection.execute("create table public.things (id text primary key, name text)")
        connection.execute("select dynamics_sync.watch('public.things')")
        connection.execute("grant select, insert, update, delete on public.things to authenticated, service_role")
        yield connection


def migrating(address: str, cwd: Path) -> AbstractContextManager[Process]:
    """`dynamics-sync migrate`, under way."""
    return launched("migrate", "--json", cwd=cwd, database_url=address)


def applied_by(process: Process) -> int:
    assert process.join(60) == 0, process.errors
    return len(json.loads(process.output)["applied"])


def wait_until_blocked(connection: Connection, count: int) -> None:
    """Until that many of the server's sessions wait for a lock."""
    deadline = time.monotonic() + 30
    while connection.execute("select count(*) from pg_locks where not granted").fetchone() != (count,):
        assert time.monotonic() < deadline, "they do not wait for one another"
        time.sleep(0.02)


@contextmanager
def through_the_api(owner: Connection, role: str) -> Iterator[Connection]:
    """As PostgREST comes: logged in as `authenticator`, which then takes the role."""
    with psycopg.connect(owner.info.dsn, user="authenticator", password=PASSWORD, autocommit=True) as connection:
        connection.execute(f"set role {role}".encode())
        yield connection


def waiting(connection: Connection) -> list[tuple[object, ...]]:
    connection.execute(GATHER)
    return connection.execute("select source_table, record_key, operation_type from dynamics_sync.outbox").fetchall()


def schemas(connection: Connection) -> set[object]:
    query = "select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"
    return {name for (name,) in connection.execute(query)}


async def can_use_the_queue(address: str) -> bool:
    async with make_pool(address, 1) as pool:
        return await PostgresRetryQueue(pool).entries() == []


async def test_supabases_owner_may_migrate_twice(supabase: str) -> None:
    with psycopg.connect(supabase, autocommit=True) as connection:
        before = schemas(connection)
        assert len(await migrate(supabase, EVERYTHING)) == len(MIGRATIONS)
        assert await migrate(supabase, EVERYTHING) == []
        assert schemas(connection) - before == {"dynamics_sync", "dynamics_certifications", "supabase_migrations"}
    async with await connect(supabase) as checked:
        await check_schema(checked, EVERYTHING)
    assert await can_use_the_queue(supabase)


def test_the_owners_change_is_captured(project: Connection) -> None:
    project.execute("insert into public.things values ('a', 'x')")
    assert waiting(project) == [("public.things", "a", "upsert")]


@pytest.mark.parametrize("role", ["service_role", "authenticated"])
def test_an_api_roles_change_is_captured_without_rights_on_the_outbox(project: Connection, role: str) -> None:
    with through_the_api(project, role) as api:
        api.execute("insert into public.things values ('a', 'x')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            api.execute("select from dynamics_sync.outbox")
    assert waiting(project) == [("public.things", "a", "upsert")]


def test_no_api_role_has_a_right_in_the_machinery(project: Connection) -> None:
    assert project.execute(RIGHTS_IN_THE_MACHINERY, {"roles": [*API_ROLES]}).fetchall() == []


def test_only_service_role_has_a_right_on_the_queue_and_anon_has_none_on_a_table(project: Connection) -> None:
    found = project.execute(RIGHTS_ON_OUR_TABLES, {"roles": [*API_ROLES]}).fetchall()
    assert {role for role, table in found if table == "dynamics_sync_retry_queue"} == {"service_role"}
    assert {role for role, table in found if table == "certifications"} == {"service_role", "authenticated"}
    assert "anon" not in {role for role, _ in found}


def test_the_domain_that_ships_is_captured(project: Connection) -> None:
    with through_the_api(project, "service_role") as api:
        (chapter,) = (
            api.execute(
                "with o as (insert into public.organisations (name) values ('O') returning id) "
                "insert into public.chapters (organisation_id, name) select id, 'C' from o returning id"
            ).fetchone()
            or ()
        )
        api.execute(
            "with m as (insert into public.peer_mentors (chapter_id, display_name) values (%s, 'M') returning id) "
            "insert into public.certifications (peer_mentor_id, chapter_id) select id, %s from m",
            [chapter, chapter],
        )
    assert [row[0] for row in waiting(project)] == ["public.certifications"]


def test_the_listing_answers_anon_and_its_owner_who_schedules_the_sweep(project: Connection) -> None:
    mentor = add_mentor(project, add_chapter(project))
    certify(project, mentor, date(2099, 1, 31))
    certify(project, mentor, date(2020, 1, 31))
    with through_the_api(project, "anon") as api:
        assert api.execute(LISTED).fetchall() == [(mentor,)]
        assert api.execute(MORE_THAN_READING).fetchone() == (False,)
    assert project.execute("select * from dynamics_certifications.sweep(1000)").fetchone() == (0, 1)
    assert project.execute(LISTED).fetchall() == [(mentor,)]


@pytest.mark.parametrize(
    "columns",
    [
        "version text primary key",
        "version text primary key, statements text[], name text, created_by text, idempotency_key text unique",
    ],
    ids=["first release", "newer than us"],
)
async def test_what_supabases_tool_recorded_stays_and_ours_is_added(supabase: str, columns: str) -> None:
    history = "supabase_migrations.schema_migrations"
    with psycopg.connect(supabase, autocommit=True) as connection:
        connection.execute("create schema supabase_migrations")
        connection.execute(f"create table {history} ({columns})".encode())
        connection.execute(f"insert into {history} (version) values ('20200101000000'), ('20991231000000')".encode())
        names = await migrate(supabase, EVERYTHING)
        assert len(names) == len(MIGRATIONS)
        found = connection.execute(f"select version, name, statements from {history} order by version".encode())
        (first, *ours, last) = found.fetchall()
    assert (first[0], last[0]) == ("20200101000000", "20991231000000")
    assert [(f"{version}_{name}", statements) for version, name, statements in ours] == [
        (f"{migration.version}_{migration.name}", [migration.sql]) for migration in MIGRATIONS
    ]


def test_two_processes_at_once_wait_for_one_another(supabase: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with psycopg.connect(supabase) as first:
            first.execute("select pg_advisory_xact_lock(%s)", [LOCK_KEY])
            processes = [stack.enter_context(migrating(supabase, tmp_path)) for _ in range(2)]
            wait_until_blocked(first, 2)
        assert sorted(applied_by(process) for process in processes) == [0, len(MIGRATIONS)]


@pytest.fixture
def app(request: pytest.FixtureRequest, superuser: str) -> Iterator[str]:
    """The address of `app`, an ordinary owner of a database, on a server without Supabase's roles."""
    attributes = getattr(request, "param", "")
    with roles(superuser, f"create role app login {attributes} password '{PASSWORD}'"):
        with database_of("app", superuser) as address:
            yield address


def as_superuser(superuser: str, address: str) -> str:
    return make_conninfo(superuser, dbname=conninfo_to_dict(address)["dbname"])


async def statements_asked_for(address: str) -> list[str]:
    """What a superuser has to run first, as the refusal says. Nothing was changed by then."""
    with pytest.raises(DatabaseError) as refused:
        await migrate(address, EVERYTHING)
    message = str(refused.value)
    assert "\n" not in message
    with psycopg.connect(address) as connection:
        assert schemas(connection) == {"public"}
    return message.removesuffix(". Nothing was changed.").partition("Have a superuser run: ")[2].split("; ")


async def test_a_superuser_gets_the_missing_roles_made(superuser: str, app: str) -> None:
    admin = as_superuser(superuser, app)
    assert len(await migrate(admin, EVERYTHING)) == len(MIGRATIONS)
    assert await can_use_the_queue(admin)
    with psycopg.connect(admin) as connection:
        query = "select rolname, rolcanlogin, rolbypassrls from pg_roles where rolname = any(%s) order by 1"
        assert connection.execute(query, [[*API_ROLES]]).fetchall() == [
            ("anon", False, False),
            ("authenticated", False, False),
            ("service_role", False, True),
        ]


def test_two_databases_of_one_server_may_be_prepared_at_once(superuser: str, app: str, tmp_path: Path) -> None:
    with database_of("app", superuser) as other, ExitStack() as stack:
        with psycopg.connect(superuser) as first:
            first.execute("create role anon")
            addresses = [as_superuser(superuser, address) for address in (app, other)]
            processes = [stack.enter_context(migrating(address, tmp_path)) for address in addresses]
            wait_until_blocked(first, 2)
            first.rollback()
        assert [applied_by(process) for process in processes] == [len(MIGRATIONS)] * 2


@pytest.mark.parametrize("app", ["", "createrole"], indirect=True)
async def test_an_ordinary_owner_migrates_once_a_superuser_did_what_the_message_says(superuser: str, app: str) -> None:
    statements = await statements_asked_for(app)
    with psycopg.connect(superuser, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())
    assert len(await migrate(app, EVERYTHING)) == len(MIGRATIONS)
    assert await can_use_the_queue(app)


async def test_only_what_is_missing_is_asked_for(superuser: str, app: str) -> None:
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute("create role anon; create role authenticated; create role service_role bypassrls")
    assert await statements_asked_for(app) == ["grant service_role to app"]


@pytest.mark.parametrize("superuser", ["pg17", "pg18"], indirect=True)
@pytest.mark.parametrize("app", ["createrole bypassrls"], indirect=True)
async def test_since_postgresql_16_an_owner_may_make_the_roles_without_being_superuser(app: str) -> None:
    assert len(await migrate(app, EVERYTHING)) == len(MIGRATIONS)
    assert await can_use_the_queue(app)


async def test_listing_and_sweep_see_rows_that_row_level_security_hides_from_the_owner(
    superuser: str, app: str
) -> None:
    with psycopg.connect(superuser, autocommit=True) as admin:
        for statement in await statements_asked_for(app):
            admin.execute(statement.encode())
    await migrate(app, EVERYTHING)
    with psycopg.connect(app, autocommit=True) as owner:
        owner.execute("set role service_role")
        mentor = add_mentor(owner, add_chapter(owner))
        certify(owner, mentor, date(2099, 1, 31))
        certify(owner, mentor, date(2020, 1, 31))
        owner.execute("reset role")
        assert owner.execute("select from public.certifications").fetchall() == []
        assert owner.execute("select * from dynamics_certifications.sweep(1000)").fetchone() == (0, 1)
        assert owner.execute(LISTED).fetchall() == [(mentor,)]


async def test_no_row_hides_behind_row_level_security_from_a_truncate_or_a_resync(superuser: str, app: str) -> None:
    with psycopg.connect(superuser, autocommit=True) as admin:
        for statement in await statements_asked_for(app):
            admin.execute(statement.encode())
    await migrate(app, EVERYTHING)
    with psycopg.connect(app, autocommit=True) as owner:
        owner.execute("create table public.things (id text primary key)")
        owner.execute("insert into public.things values ('a')")
        owner.execute("alter table public.things enable row level security, force row level security")
        owner.execute("select dynamics_sync.watch('public.things')")
        assert owner.execute("select dynamics_sync.resync('public.things')").fetchone() == (1,)
        assert waiting(owner) == [("public.things", "a", "upsert")]
        owner.execute("truncate public.things")
        assert waiting(owner) == [("public.things", "a", "delete")]


async def test_a_service_role_that_would_not_see_every_row_is_refused(superuser: str, app: str) -> None:
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute("create role service_role")
    assert await statements_asked_for(as_superuser(superuser, app)) == ["alter role service_role bypassrls"]


async def test_a_role_without_rights_in_the_database_is_told_which_it_lacks(superuser: str, app: str) -> None:
    with psycopg.connect(superuser, autocommit=True) as admin:
        admin.execute(f"create role guest login password '{PASSWORD}'".encode())
    with pytest.raises(DatabaseError, match=r"permission denied for database.*Connect as the database's owner"):
        await migrate(make_conninfo(app, user="guest"), EVERYTHING)


async def test_a_name_that_is_taken_is_told(superuser: str, app: str) -> None:
    admin = as_superuser(superuser, app)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("create table public.dynamics_sync_retry_queue ()")
        with pytest.raises(DatabaseError, match='"dynamics_sync_retry_queue" already exists'):
            await migrate(admin, EVERYTHING)
        assert schemas(connection) == {"public"}
