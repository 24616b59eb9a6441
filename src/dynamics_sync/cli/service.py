"""`migrate` and `run`: what an installation needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from dynamics_sync import app, sandbox
from dynamics_sync.cli.output import AsJson, console, print_json
from dynamics_sync.cli.signals import stop_event
from dynamics_sync.dynamics.checks import check_dynamics
from dynamics_sync.inbox import open_webhooks
from dynamics_sync.postgres.connections import describe
from dynamics_sync.postgres.migrate import migrate as apply_migrations
from dynamics_sync.settings import Settings, load_settings
from dynamics_sync.sync.events import emit
from dynamics_sync.web.server import Server, listening_socket
from dynamics_sync.web.webhooks import Webhooks


def migrate(as_json: AsJson = False) -> None:
    """Prepare the database, or bring it up to date. Safe to run again."""
    settings = load_settings()
    with app.database(settings) as url:
        applied = asyncio.run(apply_migrations(url, app.migration_sets(settings)))
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
    settings = load_settings()
    with app.database(settings) as url:
        if settings.database_url is None:
            _tell_embedded(settings, url)
        asyncio.run(_run(settings, url, web=web, worker=worker))


def _tell_embedded(settings: Settings, url: str) -> None:
    password = settings.data_dir / "postgres" / "server.json"
    Console(stderr=True).print(
        f"[bold yellow]No DYNAMICS_SYNC_DATABASE_URL is set: the EMBEDDED PostgreSQL is used at {describe(url)}[/] "
        f"(user postgres, password in {password}).",
        soft_wrap=True,
    )


async def _run(settings: Settings, url: str, *, web: bool, worker: bool) -> None:
    if settings.database_url is None:
        await apply_migrations(url, app.migration_sets(settings))
    if not settings.enabled:
        await app.check_captures(settings, url)
        async with app.open_stores(settings, url) as stores, _webhooks(settings, url, web, None) as webhooks:
            emit("worker.disabled", "warning")
            sweeps = [stores.sweep.run()] if worker and stores.sweep is not None else []
            async with app.beside(*sweeps):
                await _serve(settings, app.web_server(stores, None, webhooks) if web else None, None)
        return
    async with (
        sandbox.dynamics_or_simulator(settings) as settings,
        app.open_engine(settings, url) as engine,
        _webhooks(settings, url, web, engine) as webhooks,
    ):
        await check_dynamics(engine.gateway)
        server = app.web_server(engine.stores, engine.tokens, webhooks) if web else None
        await _serve(settings, server, engine if worker else None)


@asynccontextmanager
async def _webhooks(
    settings: Settings, url: str, web: bool, engine: app.Engine | None
) -> AsyncIterator[Webhooks | None]:
    """What receives webhooks, where they are on and anything is served."""
    wake = engine.inbox.wake.set if engine is not None and engine.inbox is not None else lambda: None
    async with open_webhooks(settings, url, wake) as webhooks:
        yield webhooks if web else None


async def _serve(settings: Settings, server: Server | None, engine: app.Engine | None) -> None:
    """Run what there is until SIGTERM or Ctrl-C, then end it in order."""
    stop = stop_event()
    jobs: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if server is not None:
        jobs.append(asyncio.create_task(server.serve([listening_socket(settings.host, settings.port)])))
    if engine is not None:
        jobs.append(asyncio.create_task(app.run_worker(engine)))
    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    if engine is not None:
        engine.stop()
    if server is not None:
        server.should_exit = True
    stop.set()
    await asyncio.gather(*jobs)
