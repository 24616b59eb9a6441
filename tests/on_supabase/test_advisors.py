"""What Supabase's own advisors say of a migrated project: its real command line, which runs its linter, `splinter`."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import LiteralString

import pytest

from dynamics_sync.postgres.connections import Connection
from on_supabase.conftest import Project
from support.supabase_cli import supabase

ACCEPTED = {"unused_index"}
"""Of level INFO: nobody has asked anything of a new database. Which index serves which query, its own tests show."""

HOLES: dict[str, LiteralString] = {
    "rls_disabled_in_public": "create table public.open_table (id int primary key); "
    "grant select on public.open_table to anon",
    "security_definer_view": "create view public.open_view as table public.certifications; "
    "grant select on public.open_view to anon",
    "function_search_path_mutable": "create function public.open_function() returns int language sql as 'select 1'",
    "auth_rls_initplan": "create policy slow on public.certifications for delete using (auth.uid() is not null)",
    "unindexed_foreign_keys": "alter table public.organisations "
    "add column part_of uuid references public.organisations",
}
"""By the lint that finds it."""
REPAIR = """
drop view if exists public.open_view; drop table if exists public.open_table;
drop function if exists public.open_function; drop policy if exists slow on public.certifications;
alter table public.organisations drop column if exists part_of
"""


async def findings(project: Project, cwd: Path) -> dict[str, list[str]]:
    """What each lint found, by its name."""
    found: dict[str, list[str]] = {}
    for result in (await supabase("db", "advisors", "--level=info", database=project.owner, cwd=cwd))["results"]:
        found.setdefault(result["name"], []).append(f"{result['level']}: {result['detail']}")
    return found


@pytest.fixture
async def with_holes(owner: Connection) -> AsyncIterator[None]:
    """For a while the project has one of each."""
    try:
        for hole in HOLES.values():
            await owner.execute(hole)
        yield
    finally:
        await owner.execute(REPAIR)


async def test_they_find_nothing(project: Project, tmp_path: Path) -> None:
    found = await findings(project, tmp_path)
    assert {name: details for name, details in found.items() if name not in ACCEPTED} == {}


@pytest.mark.usefixtures("with_holes")
async def test_they_would_find_holes(project: Project, tmp_path: Path) -> None:
    found = await findings(project, tmp_path)
    assert found.keys() - ACCEPTED == HOLES.keys()
