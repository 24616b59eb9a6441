"""`migrate` and `run`: what an installation needs."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from dynamics_sync.cli.output import AsJson, console, print_json
from dynamics_sync.postgres.connections import describe
from dynamics_sync.postgres.migrate import migrate as apply_migrations
from dynamics_sync.settings import Settings, load_settings
from dynamics_sync.stores import database, migration_sets


def migrate(as_json: AsJson = False) -> None:
    """Prepare the database, or bring it up to date. Safe to run again."""
    settings = load_settings()
    with database(settings) as url:
        applied = asyncio.run(apply_migrations(url, migration_sets(settings)))
    if as_json:
        print_json({"applied": applied})
    elif applied:
        for name in applied:
            console.print(f"[green]applied[/] {name}")
    else:
        console.print("The database is up to date.")


def run(
    web: Annotated[bool, typer.Option(help="Serve the health pages.")] = True,
    worker: Annotated[bool, typer.Option(help="Send changes.")] = True,
) -> None:
    """Work: send what changes, and serve health pages. Stops gracefully on SIGTERM and Ctrl-C."""
    # Slow to import, as all that speaks HTTP: other commands do without.
    from dynamics_sync.cli.running import quickest_loop, run_until_stopped

    settings = load_settings()
    with database(settings) as url:
        if settings.database_url is None:
            _tell_embedded(settings, url)
        with asyncio.Runner(loop_factory=quickest_loop()) as runner:
            runner.run(run_until_stopped(settings, url, web=web, worker=worker))


def _tell_embedded(settings: Settings, url: str) -> None:
    password = settings.data_dir / "postgres" / "server.json"
    Console(stderr=True).print(
        f"[bold yellow]No DYNAMICS_SYNC_DATABASE_URL is set: the EMBEDDED PostgreSQL is used at {describe(url)}[/] "
        f"(user postgres, password in {password}).",
        soft_wrap=True,
    )
