"""What Supabase's linter would say of our schemas, and some more that it does not ask.

Numbers are those of https://github.com/supabase/splinter. Each check finds nothing, and finds a flaw made on purpose.
"""

from dataclasses import dataclass

import pytest

from security.world import Connection


@dataclass(frozen=True)
class Lint:
    """A query for flaws, and a flaw."""

    query: str
    flaw: str
    found: str


TABLE = "create table public.flaw (id uuid primary key, owner uuid);"
OURS = "('public', 'dynamics_sync', 'dynamics_certifications')"
POLICIES = """
  select tablename || ': ' || policyname as name, concat_ws(' ', qual, with_check) as condition, roles, tablename, cmd
  from pg_policies where schemaname = 'public'
"""

LINTS = {
    "row-level security off, or not forced (0013)": Lint(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') "
        "and not (relrowsecurity and relforcerowsecurity)",
        TABLE + "alter table public.flaw enable row level security",
        "flaw",
    ),
    "a view with its owner's eyes (0010, 0016)": Lint(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and (relkind = 'm' or relkind = 'v' "
        "and not coalesce(reloptions && array['security_invoker=true', 'security_invoker=on'], false))",
        "create view public.flaw as table public.certifications",
        "flaw",
    ),
    "a function without a search path (0011)": Lint(
        f"select proname from pg_proc where pronamespace::regnamespace::text in {OURS} "
        "and not exists (select from unnest(proconfig) setting where setting like 'search\\_path=%')",
        "create function dynamics_sync.flaw() returns int language sql as 'select 1'",
        "flaw",
    ),
    "code with more rights than the user's that looks into pg_temp first": Lint(
        f"""
        with recursive ours as (
          select p.*, nspname || '\\.' || proname || '\\(' as called
          from pg_proc p join pg_namespace n on n.oid = pronamespace where nspname in {OURS} or nspname = 'auth'
        ),
        reached as (
          select oid, proname, prosrc, proconfig from ours
          where prosecdef or oid in (select tgfoid from pg_trigger t join pg_class c on c.oid = tgrelid
            where relnamespace = 'public'::regnamespace)
          union
          select ours.oid, ours.proname, ours.prosrc, ours.proconfig from reached join ours on reached.prosrc ~ called
        )
        select proname from reached, unnest(proconfig) setting
        where setting ~ '^search_path=' and setting !~ '\\mpg_temp$'
        """,
        "create function public.flaw() returns text language sql set search_path = '' as $$ select 'x'::text $$;"
        "create function public.door() returns text language sql security definer "
        "set search_path = pg_catalog, pg_temp as 'select public.flaw()'",
        "flaw",
    ),
    "a foreign key without an index (0001)": Lint(
        f"select conname from pg_constraint c where contype = 'f' and connamespace::regnamespace::text in {OURS} "
        "and not exists (select from pg_index i where i.indrelid = c.conrelid "
        "and (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey and i.indpred is null)",
        "create table public.flaw (chapter uuid constraint flaw references public.chapters)",
        "flaw",
    ),
    "a function that a policy asks for each row (0003)": Lint(
        f"select name from ({POLICIES}) p "
        "where regexp_replace(condition, 'SELECT (auth|dynamics_certifications)\\.', '', 'g') "
        "~ '\\m(auth|dynamics_certifications)\\.\\w+\\(|current_setting'",
        TABLE + "create policy flaw on public.flaw to authenticated using (owner = auth.uid())",
        "flaw: flaw",
    ),
    "a policy for everybody": Lint(
        f"select name from ({POLICIES}) p where roles && array['public', 'anon']::name[]",
        TABLE + "create policy flaw on public.flaw using (owner is null)",
        "flaw: flaw",
    ),
    "a policy that always agrees (0024)": Lint(
        f"select name from ({POLICIES}) p where condition ~ '^(true ?)+$' and roles <> '{{service_role}}'",
        TABLE + "create policy flaw on public.flaw to authenticated using (true)",
        "flaw: flaw",
    ),
    "two policies where one would do (0006)": Lint(
        f"select tablename from ({POLICIES}) p, unnest(roles) role group by tablename, cmd, role having count(*) > 1",
        TABLE + "create policy a on public.flaw to authenticated using (owner is null);"
        "create policy b on public.flaw to authenticated using (id is null)",
        "flaw",
    ),
    "something granted to anon": Lint(
        f"select relname from pg_class where relnamespace::regnamespace::text in {OURS} "
        "and relkind in ('r', 'p', 'v', 'm') and relname <> 'public_peer_mentors' "
        "and has_any_column_privilege('anon', oid, 'select, insert, update, references')",
        TABLE + "grant select (id) on public.flaw to anon",
        "flaw",
    ),
    "a right to refer, to trigger or to maintain, or to pass a right on": Lint(
        "select c.relname from pg_class c, aclexplode(c.relacl) held "
        f"where c.relnamespace::regnamespace::text in {OURS} "
        "and held.grantee::regrole::text in ('anon', 'authenticated', 'service_role', '-') "
        "and (held.is_grantable or held.privilege_type in ('REFERENCES', 'TRIGGER', 'MAINTAIN'))",
        TABLE + "grant trigger on public.flaw to service_role",
        "flaw",
    ),
    "a right to make something in our schemas": Lint(
        f"select nspname from pg_namespace, unnest(array['anon', 'authenticated', 'service_role']) role "
        f"where nspname in {OURS} and has_schema_privilege(role, oid, 'create')",
        "grant create on schema dynamics_certifications to service_role",
        "dynamics_certifications",
    ),
}


def found_by(owner: Connection, lint: Lint) -> set[str]:
    return {name for (name,) in owner.execute(lint.query.encode())}


@pytest.mark.parametrize("database", ["owner", "supabase_owner"], ids=["bare", "Supabase"])
@pytest.mark.parametrize("lint", LINTS.values(), ids=LINTS.keys())
def test_there_is_not(request: pytest.FixtureRequest, database: str, lint: Lint) -> None:
    assert found_by(request.getfixturevalue(database), lint) == set()


@pytest.mark.parametrize("lint", LINTS.values(), ids=LINTS.keys())
def test_it_would_be_noticed_were_there(owner: Connection, lint: Lint) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute(lint.flaw.encode())
        assert found_by(owner, lint) == {lint.found}
