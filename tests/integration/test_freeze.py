"""`access freeze` and `thaw` as an operator uses them, when a hole is found: on tables and views of anybody's."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.catalogue import rights
from support.commands import refused, run
from support.postgres import Cluster

Connection = psycopg.Connection[tuple[object, ...]]
Access = Callable[..., subprocess.CompletedProcess[str]]

DOMAIN_OF_ONES_OWN = """
create table public.people (id int primary key, name text, email text);
insert into public.people values (1, 'Kari', 'kari@example.invalid');
grant select, insert on public.people to anon;
grant select (id, name) on public.people to public;
grant select, update on public.people to authenticated with grant option;
grant update (email) on public.people to authenticated;
grant select on public.people to service_role;
set role authenticated;
grant select on public.people to partner;
reset role;
create view public.everybody as select id, name from public.people;
grant select on public.everybody to anon;
create view public.asking with (security_invoker = true) as select id from public.people;
grant select on public.asking to anon
"""

READ = "select name from public.people"


@pytest.fixture(autouse=True)
def partner(server: Cluster) -> Iterator[None]:
    """A role that has nothing to do with the API, until the test's database is gone."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create role partner nologin")
        yield
        connection.execute("drop role partner")


@pytest.fixture
def database(partner: None, server: Cluster) -> Iterator[str]:
    with server.database() as url:
        yield url


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(DOMAIN_OF_ONES_OWN)
        yield connection


@pytest.fixture
def access(database: str, tmp_path: Path) -> Access:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return run("access", *words, cwd=tmp_path, database_url=database)

    return command


@contextmanager
def somebody(database: str, role: str) -> Iterator[Connection]:
    """A connection of the API that has prepared its statement and used it."""
    with psycopg.connect(database, autocommit=True, prepare_threshold=0) as connection:
        connection.execute(f"set role {role}".encode())
        assert connection.execute(READ).fetchall() == [("Kari",)]
        yield connection


def is_refused(connection: Connection, statement: str = READ) -> bool:
    """Whether the statement is refused for want of a right (SQLSTATE 42501)."""
    try:
        connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def ways(owner: Connection, relation: str) -> dict[object, object]:
    """Freeze it as an operator does with SQL; what stays open."""
    return dict(owner.execute("select way, kind from dynamics_sync.freeze(%s::regclass)", [relation]).fetchall())


def test_open_connections_are_closed_out_at_once_and_get_back_exactly_what_they_had(
    database: str, owner: Connection, access: Access
) -> None:
    before = rights(owner, "public")
    with (
        somebody(database, "anon") as anon,
        somebody(database, "authenticated") as user,
        somebody(database, "service_role") as service,
        somebody(database, "anon") as in_transaction,
    ):
        in_transaction.execute("begin isolation level repeatable read")
        in_transaction.execute("select 1")
        done = access("freeze", "people", "--reason", "everybody sees e-mail addresses")
        assert (done.returncode, done.stdout) == (0, "frozen: public.people\n")
        assert "public.everybody reads from it and stays open to anon: freeze it too" in done.stderr
        assert "public.asking" not in done.stderr

        assert is_refused(anon)
        assert is_refused(anon, "insert into public.people values (2, 'Ola')")
        assert is_refused(user)
        assert is_refused(user, "update public.people set email = ''")
        assert is_refused(in_transaction)
        assert service.execute(READ).fetchall() == [("Kari",)]

        ways(owner, "public.people")
        assert "thawed: public.people" in access("thaw", "public.people", "--reason", "repaired").stdout
        assert rights(owner, "public") == before
        assert anon.execute(READ).fetchall() == [("Kari",)]
        assert user.execute(READ).fetchall() == [("Kari",)]
    audit = owner.execute(
        "select actor <> '', action, relation, reason from dynamics_sync.audit order by id"
    ).fetchall()
    assert audit == [
        (True, "freeze", "public.people", "everybody sees e-mail addresses"),
        (True, "freeze", "public.people", None),  # once more, by SQL
        (True, "thaw", "public.people", "repaired"),
    ]


@pytest.mark.every_postgres
def test_frozen_twice_and_thawed_all_rights_are_as_they_were(owner: Connection) -> None:
    before = rights(owner, "public")
    ways(owner, "public.people")
    assert {row[3] for row in rights(owner, "public") if str(row[1]).startswith("public.people")} == {
        "postgres",
        "service_role",
    }
    ways(owner, "public.people")
    assert owner.execute("select * from dynamics_sync.thaw('public.people')").fetchall() == []
    assert rights(owner, "public") == before
    assert owner.execute("select from dynamics_sync.frozen_rights").fetchall() == []


def test_a_cursor_that_was_open_delivers_its_rows_and_the_next_transaction_none(
    database: str, owner: Connection
) -> None:
    with somebody(database, "anon") as anon:
        anon.execute("begin")
        anon.execute("declare begun cursor for select name from public.people")
        ways(owner, "public.people")
        assert anon.execute("fetch begun").fetchall() == [("Kari",)]
        anon.execute("commit")
        assert is_refused(anon)


def test_what_is_granted_to_a_frozen_table_is_seen(
    database: str, owner: Connection, access: Access, tmp_path: Path
) -> None:
    ways(owner, "public.people")
    assert (
        owner.execute("select way from dynamics_sync.ways_to('public.people') where kind = 'rights'").fetchall() == []
    )
    owner.execute("grant select (name) on public.people to anon")
    (frozen,) = json.loads(access("list", "--json").stdout)
    assert (frozen["name"], frozen["frozen_by"], frozen["is_open_again"]) == ("public.people", "postgres", True)
    assert {"INSERT to anon", "UPDATE (email) to authenticated", "SELECT to partner"} <= {*frozen["taken"]}
    status = run("status", "--json", cwd=tmp_path, database_url=database)
    assert json.loads(status.stdout)["frozen"] == {"public.people": True}
    assert "public.people" not in ways(owner, "public.people")


def test_what_is_granted_meanwhile_stays_when_it_is_thawed(owner: Connection) -> None:
    ways(owner, "public.people")
    owner.execute("grant delete on public.people to anon")
    before = rights(owner, "public")
    owner.execute("select dynamics_sync.thaw('public.people')")
    assert rights(owner, "public") > before


def test_what_can_no_longer_be_given_back_is_told(owner: Connection) -> None:
    ways(owner, "public.people")
    owner.execute("alter table public.people drop column email cascade")
    lost = owner.execute("select privilege, column_name, grantee from dynamics_sync.thaw('public.people')").fetchall()
    assert lost == [("UPDATE", "email", "authenticated")]


def test_a_view_is_frozen_like_a_table(owner: Connection) -> None:
    before = rights(owner, "public")
    assert ways(owner, "public.everybody") == {}
    owner.execute("set role anon")
    assert is_refused(owner, "select from public.everybody")
    owner.execute("reset role")
    owner.execute("select dynamics_sync.thaw('public.everybody')")
    assert rights(owner, "public") == before


def test_what_cannot_be_closed_is_told_and_is_a_failure(owner: Connection, access: Access) -> None:
    owner.execute("create role reader")
    try:
        owner.execute("grant reader to anon with inherit true")
        owner.execute("grant select on public.people to reader")
        done = access("freeze", "public.people", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["is_closed"] is False
        assert "public.people is open to anon" in done.stderr
    finally:
        owner.execute("drop owned by reader; drop role reader")


def test_all_other_ways_are_named(owner: Connection) -> None:
    owner.execute("""
        create table public.visits (id int, at date) partition by range (at);
        create table public.visits_2026 partition of public.visits for values from ('2026-01-01') to ('2027-01-01');
        create materialized view public.counted as select count(*) from public.visits;
        create view public.over with (security_invoker = true) as select * from public.counted;
        create function public.last_visit() returns date language plpgsql security definer set search_path = ''
          as $$ begin return (select max(at) from public.visits); end $$;
        create function public.asked() returns date language sql begin atomic select public.last_visit(); end;
        create function public.visits_of_others() returns int language sql security definer return 1;
        grant select on all tables in schema public to anon
    """)
    assert ways(owner, "public.visits") == {
        "public.visits_2026": "partition",
        "public.counted": "materialized view",
        "public.over": "view",
        "public.last_visit()": "function",
        "public.asked()": "function",
    }
    owner.execute("grant select on public.visits to anon")
    assert ways(owner, "public.visits_2026")["public.visits"] == "partition"


def test_freezing_the_certifications_tells_that_administrators_still_read_them(owner: Connection) -> None:
    assert "public.read_certifications(uuid,text)" in ways(owner, "public.certifications")


@pytest.mark.parametrize("table", ["peer_mentors", "certifications"])
def test_freezing_what_the_listing_shows_tells_that_it_stays_open(owner: Connection, table: str) -> None:
    assert "public.public_peer_mentors" in ways(owner, f"public.{table}")


def test_what_is_not_there_is_told(owner: Connection, access: Access) -> None:
    refused(access("freeze", "public..absent"), "There is no table or view public..absent")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("freeze('pg_catalog.pg_class')", "pg_class belongs to PostgreSQL itself and cannot be frozen"),
        ("freeze('public.people_pkey')", "public.people_pkey is neither a table nor a view"),
        ("thaw('public.people')", "public.people is not frozen"),
    ],
)
def test_what_cannot_be_frozen_or_thawed_is_told(owner: Connection, call: str, told: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match=told):
        owner.execute(f"select dynamics_sync.{call}".encode())


def test_a_table_of_another_role_is_told(owner: Connection) -> None:
    owner.execute("grant usage on schema dynamics_sync to partner")
    owner.execute("grant execute on all functions in schema dynamics_sync to partner")
    owner.execute("set role partner")
    with pytest.raises(
        psycopg.errors.RaiseException, match="belongs to the role postgres, as which partner may not act"
    ):
        owner.execute("select dynamics_sync.freeze('public.people')")


def test_a_table_dropped_while_frozen_is_told_and_forgotten(owner: Connection, access: Access) -> None:
    owner.execute("create table public.brief (id int); grant select on public.brief to anon")
    ways(owner, "public.brief")
    owner.execute("drop table public.brief")
    assert "dropped since" in access("list").stdout
    assert "thawed: public.brief" in access("thaw", "public.brief").stdout
    assert owner.execute("select from dynamics_sync.frozen").fetchall() == []
