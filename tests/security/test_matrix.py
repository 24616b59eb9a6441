"""Every actor attacks every table, view, sequence and function; and the matrix notices each hole that is made."""

import re
import sys

import pytest

from security import matrix
from security.actors import ACTORS, AUTHENTICATED
from security.matrix import Result, run
from security.policy import FUNCTIONS
from security.report import lines
from security.world import Connection


def shown(result: Result) -> str:
    return "\n".join(lines(result))


def test_nobody_reaches_more_or_less_than_is_meant(owner: Connection) -> None:
    result = run(owner)
    sys.stdout.write(shown(result))
    assert result.deviations == (), shown(result)


def test_nor_on_supabase_where_everything_new_is_granted(supabase_owner: Connection) -> None:
    result = run(supabase_owner)
    assert result.deviations == (), shown(result)


HOLES = {
    "a policy is dropped": (
        "drop policy managers_and_mentors_see_certification on public.certifications",
        "Cora: select public.certifications reaches nothing; meant: Anna, Arne",
    ),
    "row-level security is off": (
        "alter table public.certifications disable row level security",
        "nobody: select public.certifications reaches Anna, Arne, Astrid, Bea, Bo; meant: nothing",
    ),
    "a policy lets everybody read": (
        "alter policy managers_and_mentors_see_mentor on public.peer_mentors using (true)",
        "Bea: select public.peer_mentors reaches Anna, Arne, Astrid, Bea, Bo; meant: Bea",
    ),
    "a policy lets everybody write": (
        "alter policy managers_change_certification on public.certifications using (true) with check (true)",
        "Eva: update public.certifications reaches some row; meant: nothing",
    ),
    "a second policy adds its rows": (
        "create policy generous on public.certifications for insert to authenticated with check (true)",
        "Anna: insert public.certifications reaches Anna, Arne, Astrid, Bea, Bo; meant: nothing",
    ),
    "a policy forgets that memberships end": (
        "create policy forgetful on public.chapters for select to authenticated using "
        "(id in (select chapter_id from public.chapter_memberships where user_id = auth.uid()))",
        "Eva: select public.chapters reaches A1, B1; meant: nothing",
    ),
    "a policy believes the token": (
        "create policy believing on public.organisations for select to authenticated using "
        "(auth.jwt() -> 'user_metadata' ->> 'role' = 'coordinator')",
        "forged: select public.organisations reaches A, B; meant: nothing",
    ),
    "a table is granted to anon": (
        "grant select on public.chapters to anon",
        "anon holds select on public.chapters: *; meant: nothing",
    ),
    "a column is granted": (
        "grant update (renewal_history) on public.certifications to authenticated",
        "authenticated holds update on public.certifications: expires_on, issued_on, kind, renewal_history, status; "
        "meant: expires_on, issued_on, kind, status",
    ),
    "truncating is granted, which no policy holds back": (
        "grant truncate on public.certifications to authenticated",
        "nobody: truncate public.certifications reaches all; meant: nothing",
    ),
    "a table in a closed schema is granted": (
        "grant select on dynamics_sync.outbox to authenticated",
        "authenticated holds select on dynamics_sync.outbox: *; meant: nothing",
    ),
    "a closed schema is opened": (
        "grant usage on schema dynamics_certifications to authenticated",
        "Cora: execute dynamics_certifications.managed_chapters() reaches called; meant: nothing",
    ),
    "a function with its owner's rights may be called": (
        "grant execute on function dynamics_sync.keys_of to authenticated",
        "authenticated holds execute on dynamics_sync.keys_of(regclass,name)",
    ),
    "a new function is everybody's": (
        "create function public.peek() returns bigint language sql security definer set search_path = '' "
        "as 'select count(*) from public.certifications'",
        "anon: execute public.peek() reaches called; meant: nothing",
    ),
    "a new table has rows for everybody": (
        "create table public.notes (id int); insert into public.notes values (1); grant all on public.notes to anon",
        "anon: select public.notes reaches some row; meant: nothing",
    ),
    "a new table is open and still empty": (
        "create table public.notes (id int); grant select on public.notes to authenticated",
        "none: select public.notes is not refused",
    ),
    "a view sees with its owner's eyes": (
        "create view public.overview as select id from public.certifications; grant select on public.overview to anon",
        "anon: select public.overview reaches Anna, Arne, Astrid, Bea, Bo; meant: nothing",
    ),
    "a sequence is granted": (
        "grant usage on sequence dynamics_sync.change_version to anon; grant usage on schema dynamics_sync to anon",
        "anon: use dynamics_sync.change_version reaches some row; meant: nothing",
    ),
    "the machinery forgets whose the queue is": (
        "grant select on public.dynamics_sync_retry_queue to authenticated; "
        "alter policy service_role_only on public.dynamics_sync_retry_queue to public",
        "Olga: select public.dynamics_sync_retry_queue reaches an entry; meant: nothing",
    ),
}


@pytest.mark.parametrize(("hole", "noticed"), HOLES.values(), ids=HOLES.keys())
def test_the_matrix_notices_when(owner: Connection, hole: str, noticed: str) -> None:
    thing = re.search(r"(?:public|dynamics_\w+)\.\w+", noticed)
    assert thing is not None
    with owner.transaction(force_rollback=True):
        owner.execute(hole.encode())
        result = run(owner, only=thing[0])
    assert noticed in result.deviations, shown(result)


def test_a_function_that_is_meant_for_users_is_called_with_foreign_ids(
    owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "FUNCTIONS", {**FUNCTIONS, "public.find(uuid,text)": {AUTHENTICATED}})
    with owner.transaction(force_rollback=True):
        owner.execute(
            "create function public.find(mentor uuid, reason text) returns text language sql security definer return "
            "(select display_name from public.peer_mentors where id = mentor and reason is not null)"
        )
        owner.execute("revoke execute on function public.find from public")
        owner.execute("grant execute on function public.find to authenticated")
        result = run(owner, only="public.find")
    everybody = "Anna, Arne, Astrid, Bea, Bo"
    assert f"Bea: execute public.find(uuid,text) reaches {everybody}; meant: nothing" in result.deviations
    assert not [deviation for deviation in result.deviations if deviation.startswith("anon")]


def test_a_table_that_is_meant_to_be_open_has_rows_to_attack(owner: Connection) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute("delete from public.certifications")
        result = run(owner, only="public.certifications")
    assert "public.certifications is empty: give it rows in tests/security/world.py" in result.deviations


def test_everything_that_the_catalogue_knows_is_attacked_by_everybody(owner: Connection) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute("create table auth.sessions (id int); create view auth.open as table auth.sessions")
        owner.execute("create materialized view auth.counts as select 1; create sequence auth.numbers")
        owner.execute("create table auth.days (day date) partition by range (day)")
        owner.execute("create procedure auth.close() language sql as 'select 1'")
        owner.execute("create function auth.hello(name text, loud bool default true) returns text return name")
        result = run(owner, only="auth.")
    new = {"sessions", "open", "counts", "numbers", "days", "close()", "hello(text,boolean)"}
    attacked = {(cell.thing, cell.actor.name) for cell in result.cells}
    assert attacked >= {(f"auth.{name}", actor.name) for name in new for actor in ACTORS}
    assert "anon: execute auth.hello(text,boolean) reaches called; meant: nothing" in result.deviations
