"""Attacks on what stands around the policies, by somebody who may run any SQL as `authenticated`: through views and
functions of their own, with planted objects, settings and locks."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from security.world import Connection, acting, certification_id, claims, organisation_id

COUNT = "select count(*) from public.certifications"
TABLES = ("organisations", "chapters", "chapter_memberships", "peer_mentors", "certifications")


# Looking around the policies


@pytest.mark.parametrize(
    "query",
    [
        "select id from mine",
        "select c.id from public.certifications c left join public.peer_mentors m on m.id = c.peer_mentor_id",
        "select c.id from public.organisations full join public.certifications c on true",
        "select c.id from public.chapters h, lateral (select * from public.certifications where h.id is not null) c",
        "with recursive r as (select id from public.certifications union select c.id from r, certifications c) table r",
        "select id from public.certifications tablesample system (100)",
        "select id from only public.certifications order by random()",
        "update public.certifications set kind = 'x' returning id",
    ],
    ids=["own view", "left join", "full join", "lateral", "recursion", "sample", "only", "returning"],
)
def test_every_query_shows_what_the_policies_do(owner: Connection, query: str) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora:
        cora.execute("create temp view mine as table public.certifications")
        assert {key for (key,) in cora.execute(query.encode())} == {certification_id("Anna"), certification_id("Arne")}


def test_a_merge_changes_what_it_may_see_and_is_refused_blindly(owner: Connection) -> None:
    merge = "merge into public.certifications c using public.chapters h on {} when matched then update set kind = 'x'"
    with acting(owner, "authenticated", claims("Cora")) as cora:
        assert cora.execute(merge.format("h.id = c.chapter_id").encode()).rowcount == 2
        with pytest.raises(InsufficientPrivilege):
            cora.execute(merge.format("true").encode())


def test_a_condition_of_the_users_sees_no_row_before_the_policy(owner: Connection) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora:
        cora.execute("create temp table seen (id uuid)")
        cora.execute(
            "create function pg_temp.spy(id uuid) returns boolean language plpgsql cost 0.0000001 as "
            "$$ begin insert into pg_temp.seen values (id); return true; end $$"
        )
        cora.execute("select from public.certifications where pg_temp.spy(id)")
        assert set(cora.execute("table seen")) == {(certification_id("Anna"),), (certification_id("Arne"),)}


def test_copying_out_copies_what_is_seen(owner: Connection) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora, cora.cursor() as cursor:
        with cursor.copy("copy public.certifications (id) to stdout") as copied:
            assert {row for (row,) in copied.rows()} == {str(certification_id(name)) for name in ("Anna", "Arne")}


def test_the_planners_statistics_show_nothing(owner: Connection) -> None:
    owner.execute("analyze")
    query = "select count(*) from pg_stats where schemaname in ('public', 'dynamics_sync')"
    assert owner.execute(query).fetchone() != (0,)
    with acting(owner, "authenticated", claims("Cora")) as cora:
        assert cora.execute(query).fetchone() == (0,)


# Planted objects

CAUGHT = """
create temp table caught (who pg_catalog.text);
grant insert on caught to public;
create function pg_temp.catch(value pg_catalog.text) returns pg_catalog.bool language plpgsql as $$
begin
  insert into pg_temp.caught values (current_user);
  return true;
end
$$
"""
"""Code of the user's that notes whose rights it runs with."""

PLANTED_TYPES = """
do $$
declare
  name pg_catalog.text;
begin
  for name in
    select typname from pg_catalog.pg_type
    where typnamespace = 'pg_catalog'::pg_catalog.regnamespace and typtype = 'b' and typelem = 0
  loop
    execute pg_catalog.format(
      'create domain pg_temp.%I as pg_catalog.%I check (pg_temp.catch(value::pg_catalog.text))', name, name
    );
  end loop;
end
$$
"""
PLANTED_TABLES = """
do $$
declare
  name pg_catalog.text;
begin
  for name in
    select relname from pg_catalog.pg_class
    where relkind in ('r', 'v') and relnamespace::pg_catalog.regnamespace::pg_catalog.text ~ '^(public|dynamics|auth)'
  loop
    execute pg_catalog.format('create temp view %I as select pg_temp.catch(null)', name);
  end loop;
end
$$
"""
PLANTED_FUNCTIONS = """
create function hostile.now() returns pg_catalog.timestamptz language sql
  as $$ select pg_temp.catch(null); select timestamptz '-infinity' $$;
create function hostile.same(a pg_catalog.uuid, b pg_catalog.uuid) returns pg_catalog.bool language sql
  as $$ select pg_temp.catch(null) $$;
create function hostile.same(a pg_catalog.text, b pg_catalog.text) returns pg_catalog.bool language sql
  as $$ select pg_temp.catch(null) $$;
create operator hostile.= (leftarg = pg_catalog.uuid, rightarg = pg_catalog.uuid, function = hostile.same);
create operator hostile.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = hostile.same);
create function hostile.current_setting(a pg_catalog.text, b pg_catalog.bool) returns pg_catalog.text language sql
  as $$ select pg_temp.catch(null)::pg_catalog.text $$
"""


@pytest.fixture(params=["owner", "supabase_owner"], ids=["bare", "Supabase"])
def intruder(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Olga in a session of her own, in which no function has been prepared yet, with a schema that she may fill."""
    owner: Connection = request.getfixturevalue(request.param)
    with psycopg.connect(owner.info.dsn, password=owner.info.password) as fresh:
        fresh.execute("create schema hostile authorization authenticated")
        with acting(fresh, "authenticated", claims("Olga")) as olga:
            olga.execute(CAUGHT)
            yield olga
        fresh.rollback()


def whose_rights_it_had(connection: Connection) -> set[str]:
    return {who for (who,) in connection.execute("table pg_temp.caught")}


@pytest.mark.parametrize(
    "planted", [PLANTED_TYPES, PLANTED_TABLES, PLANTED_FUNCTIONS], ids=["types", "relations", "functions and operators"]
)
@pytest.mark.parametrize("path", ["hostile, pg_temp, pg_catalog", "pg_temp, hostile, public"])
def test_no_code_of_the_users_runs_with_other_rights(intruder: Connection, planted: str, path: str) -> None:
    intruder.execute(planted.encode())
    intruder.execute(f"set local search_path = {path}".encode())
    for relation in (*TABLES, "public_peer_mentors"):
        intruder.execute(f"select from public.{relation}".encode())
    assert intruder.execute("update public.certifications set status = 'active'").rowcount == 3
    read = intruder.execute("select from public.read_certifications(%s, 'review')", [organisation_id("A")])
    assert read.rowcount == 3
    intruder.execute(
        "insert into public.certifications (peer_mentor_id, chapter_id) select id, chapter_id from public.peer_mentors"
    )
    assert whose_rights_it_had(intruder) <= {"authenticated"}


def test_what_is_planted_would_be_seen_at_work(intruder: Connection) -> None:
    intruder.execute(PLANTED_TYPES)
    intruder.execute("set local search_path = pg_temp; select 'x'::pg_temp.text")
    assert whose_rights_it_had(intruder) == {"authenticated"}


@pytest.mark.parametrize(
    "function", ["dynamics_sync.capture('t', 'id', 'x')", "dynamics_sync.capture_truncate('t', 'id', 'x')"]
)
def test_nobody_makes_our_triggers_work_for_a_table_of_their_own(owner: Connection, function: str) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora:
        cora.execute("create temp table bait (id text)")
        with pytest.raises(InsufficientPrivilege):
            cora.execute(f"create trigger work after insert on bait execute function {function}".encode())


# Settings, roles, locks, definitions


def test_row_level_security_switched_off_is_an_error_and_no_way_around(owner: Connection) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora:
        cora.execute("set local row_security = off")
        with pytest.raises(InsufficientPrivilege, match="would be affected by row-level security"):
            cora.execute(COUNT)


@pytest.fixture
def guest(owner: Connection) -> Iterator[Connection]:
    """Somebody who logs in by themselves and may be `authenticated`."""
    owner.execute("create role guest login noinherit password 'only-here' in role authenticated")
    with psycopg.connect(owner.info.dsn, user="guest", password="only-here", autocommit=True) as connection:
        connection.execute("set role authenticated")
        yield connection
    owner.execute("drop role guest")


@pytest.mark.parametrize(
    "statement",
    [
        "set role service_role",
        "set role postgres",
        "set session authorization service_role",
        "set session_replication_role = replica",
        "alter role authenticated bypassrls",
        "grant service_role to authenticated",
    ],
)
def test_nobody_becomes_somebody_else(guest: Connection, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        guest.execute(statement.encode())


@pytest.mark.parametrize("mode", ["row exclusive", "share row exclusive", "access exclusive"])
@pytest.mark.parametrize("table", TABLES)
def test_nobody_locks_the_others_out(owner: Connection, table: str, mode: str) -> None:
    with acting(owner, "authenticated", claims("Olga")) as olga, pytest.raises(InsufficientPrivilege):
        olga.execute(f"lock table public.{table} in {mode} mode".encode())


@pytest.mark.parametrize(
    "statement",
    [
        "alter table public.certifications disable row level security",
        "alter table public.certifications no force row level security",
        "create policy mine on public.certifications using (true)",
        "drop policy managers_and_mentors_see_certification on public.certifications",
        "create trigger mine before update on public.certifications for each row "
        "execute function suppress_redundant_updates_trigger()",
        "create rule mine as on update to public.certifications do instead nothing",
        "create table public.mine (chapter_id uuid references public.chapters)",
        "create table mine () inherits (public.certifications)",
        "create function dynamics_certifications.managed_chapters() returns setof uuid return null",
        "alter function dynamics_certifications.managed_chapters() set search_path = hostile",
        "comment on table public.certifications is 'mine'",
    ],
)
def test_nobody_changes_the_definitions(owner: Connection, statement: str) -> None:
    with acting(owner, "authenticated", claims("Olga")) as olga, pytest.raises(InsufficientPrivilege):
        olga.execute(statement.encode())
