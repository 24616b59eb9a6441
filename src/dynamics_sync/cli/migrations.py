"""`migrations`: the SQL of `migrate` as files, for those who have Supabase's own tool apply it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dynamics_sync.cli.output import AsJson, console, print_json
from dynamics_sync.postgres.export import export_migrations
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import migration_sets

migration_commands = typer.Typer(help="The SQL of `migrate` as files.", no_args_is_help=True)


@migration_commands.command("export")
def migrations_export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Usually supabase/migrations.")],
    as_json: AsJson = False,
) -> None:
    """Write the migrations for Supabase's own tool, which applies them in order. A file that differs is not replaced.

    With a mapping of your own it is the machinery alone. `dynamics-sync migrate` goes on from what that tool applied.
    """
    exported = export_migrations(directory, migration_sets(load_settings()))
    if as_json:
        print_json({"directory": str(directory), "written": exported.written, "unchanged": exported.unchanged})
        return
    for name in exported.written:
        console.print(f"[green]written[/] {escape(str(directory / name))}", highlight=False, soft_wrap=True)
    if not exported.written:
        console.print("All files are there already.")
