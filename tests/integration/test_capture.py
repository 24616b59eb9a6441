"""The outbox trigger: every committed change, nobody's rights widened."""

import psycopg
import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect
from dynamics_sync.postgres.migrate import check_schema, migrate
from support.outbox import FORGET_ALL, GATHER
from support.postgres import EVERYTHING, MIGRATIONS

TABLE = "create table public.things (id text primary key, name text, grade int)"


def waiting(connection: psycopg.Connection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    connection.execute(GATHER)
    query = "select record_key, operation_type, changed_columns from dynamics_sync.outbox order by record_key"
    return connection.execute(query).fetchall()


@pytest.fixture
def things(database: str) -> psycopg.Connection[tuple[object, ...]]:
    connection = psycopg.connect(database, autocommit=True)
    connection.execute(TABLE)
    connection.execute("select dynamics_sync.watch('public.things')")
    connection.execute("grant select, insert, update, delete on public.things to authenticated, service_role")
    yield connection
    connection.close()


@pytest.mark.every_postgres
def test_insert_update_delete_and_truncate_mark_the_record(things: psycopg.Connection[tuple[object, ...]]) -> None:
    things.execute("insert into public.things values ('a', 'x', 1), ('b', 'y', 2)")
    assert waiting(things) == [("a", "upsert", []), ("b", "upsert", [])]
    things.execute(FORGET_ALL)
    things.execute("update public.things set grade = 3 where id = 'a'")
    assert waiting(things) == [("a", "upsert", ["grade"])]
    things.execute("update public.things set name = 'z' where id = 'a'")
    assert waiting(things) == [("a", "upsert", ["grade", "name"])]
    things.execute("delete from public.things where id = 'a'")
    assert waiting(things)[0][:2] == ("a", "delete")
    things.execute("truncate public.things")
    assert [row[:2] for row in waiting(things)] == [("a", "delete"), ("b", "delete")]


def test_a_rolled_back_change_leaves_nothing(things: psycopg.Connection[tuple[object, ...]]) -> None:
    with things.transaction() as transaction:
        things.execute("insert into public.things values ('a', 'x', 1)")
        raise psycopg.Rollback(transaction)
    assert waiting(things) == []


def test_an_update_that_changes_nothing_marks_nothing(things: psycopg.Connection[tuple[object, ...]]) -> None:
    things.execute("insert into public.things values ('a', 'x', 1)")
    things.execute(FORGET_ALL)
    things.execute("update public.things set grade = 1")
    assert waiting(things) == []


def test_a_changed_key_marks_both_records(things: psycopg.Connection[tuple[object, ...]]) -> None:
    things.execute("insert into public.things values ('a', 'x', 1)")
    things.execute("update public.things set id = 'b'")
    assert [row[:2] for row in waiting(things)] == [("a", "delete"), ("b", "upsert")]


@pytest.mark.every_postgres
@pytest.mark.parametrize("role", ["service_role", "authenticated"])
def test_other_roles_changes_are_captured_and_their_rights_stay(
    things: psycopg.Connection[tuple[object, ...]], role: str
) -> None:
    things.execute(f"set role {role}".encode())
    things.execute("insert into public.things values ('a', 'x', 1)")
    for statement in (
        "select * from dynamics_sync.changes",
        "select * from dynamics_sync.outbox",
        "select dynamics_sync.resync('public.things')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            things.execute(statement.encode())
    things.execute("reset role")
    assert waiting(things) == [("a", "upsert", [])]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_the_queue_is_closed_to_users(things: psycopg.Connection[tuple[object, ...]], role: str) -> None:
    things.execute(f"set role {role}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        things.execute("select * from public.dynamics_sync_retry_queue")


def test_resync_marks_every_row(things: psycopg.Connection[tuple[object, ...]]) -> None:
    things.execute("insert into public.things select n::text, 'x', n from generate_series(1, 5) n")
    things.execute(FORGET_ALL)
    assert things.execute("select dynamics_sync.resync('public.things')").fetchone() == (5,)
    assert len(waiting(things)) == 5


def targets(connection: psycopg.Connection[tuple[object, ...]]) -> list[object]:
    connection.execute(GATHER)
    rows = connection.execute("select target from dynamics_sync.outbox order by target").fetchall()
    connection.execute(FORGET_ALL)
    return [row[0] for row in rows]


@pytest.mark.every_postgres
def test_a_table_may_be_watched_for_several_targets_and_each_ends_by_itself(
    things: psycopg.Connection[tuple[object, ...]],
) -> None:
    things.execute("select dynamics_sync.watch('public.things', 'id', 'portal')")
    things.execute("insert into public.things values ('a', 'x', 1)")
    assert targets(things) == ["dynamics", "portal"]
    things.execute("select dynamics_sync.resync('public.things', 'portal')")
    assert targets(things) == ["portal"]
    things.execute("select dynamics_sync.unwatch('public.things')")
    things.execute("update public.things set grade = 2")
    assert targets(things) == ["portal"]
    with pytest.raises(psycopg.errors.RaiseException, match="not watched for dynamics"):
        things.execute("select dynamics_sync.resync('public.things')")
    things.execute("truncate public.things")
    assert targets(things) == ["portal"]
    things.execute("select dynamics_sync.unwatch('public.things', 'portal')")
    things.execute("insert into public.things values ('a', 'x', 1)")
    things.execute("truncate public.things")
    assert targets(things) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("'public.keyless'", "no primary key"),
        ("'public.things', 'name'", "not a unique"),
        ("'pg_views'", "not a table"),
        ("'public.things', 'id', 'Portal 1'", "no name of a target"),
    ],
)
def test_watch_refuses_what_it_cannot_identify(
    things: psycopg.Connection[tuple[object, ...]], call: str, words: str
) -> None:
    things.execute("create table public.keyless (name text)")
    with pytest.raises(psycopg.errors.RaiseException, match=words):
        things.execute(f"select dynamics_sync.watch({call})".encode())


@pytest.mark.every_postgres
async def test_migrate_is_idempotent_and_recorded_as_supabase_does(empty_database: str) -> None:
    names = await migrate(empty_database, EVERYTHING)
    assert len(names) == len(MIGRATIONS)
    assert await migrate(empty_database, EVERYTHING) == []
    async with await connect(empty_database) as connection:
        await check_schema(connection, EVERYTHING)
        cursor = await connection.execute("select version || '_' || name from supabase_migrations.schema_migrations")
        assert sorted(row[0] for row in await cursor.fetchall()) == names


async def test_a_missing_and_a_newer_schema_are_told(empty_database: str) -> None:
    async with await connect(empty_database) as connection:
        with pytest.raises(DatabaseError, match="dynamics-sync migrate"):
            await check_schema(connection, EVERYTHING)
        await migrate(empty_database, EVERYTHING)
        await connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name) "
            "values ('29990101000000', 'dynamics_sync_x')"
        )
        with pytest.raises(DatabaseError, match="newer dynamics-sync"):
            await check_schema(connection, EVERYTHING)
