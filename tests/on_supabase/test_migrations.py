"""Supabase's own command line and ours, on one database: what one of them applied, the other knows."""

from pathlib import Path

from dynamics_sync.postgres.migrate import migrate
from support.commands import start
from support.postgres import EVERYTHING, MIGRATIONS
from support.supabase_cli import supabase

FILES = [f"{migration.version}_{migration.name}.sql" for migration in MIGRATIONS]


async def test_what_supabases_tool_pushed_needs_no_migrate(new_database: str, tmp_path: Path) -> None:
    exported = await start("migrations", "export", "supabase/migrations", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    pushed = await supabase("db", "push", database=new_database, cwd=tmp_path)
    assert pushed["migrations"] == FILES
    assert await migrate(new_database, EVERYTHING) == []


async def test_what_migrate_applied_needs_no_push_once_its_files_are_fetched(new_database: str, tmp_path: Path) -> None:
    await migrate(new_database, EVERYTHING)
    fetched = await supabase("migration", "fetch", database=new_database, cwd=tmp_path)
    assert {Path(file).name for file in fetched["files"]} == {*FILES}
    assert (await supabase("db", "push", database=new_database, cwd=tmp_path))["migrations"] == []
