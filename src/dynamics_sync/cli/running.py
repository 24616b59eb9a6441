"""What `run` does: workers, pages and webhooks in one process, until it is stopped."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dynamics_sync import app, sandbox
from dynamics_sync.cli.signals import stop_event
from dynamics_sync.dynamics.checks import check_dynamics
from dynamics_sync.inbox import open_webhooks
from dynamics_sync.postgres.migrate import migrate
from dynamics_sync.settings import Settings
from dynamics_sync.stores import migration_sets, open_stores
from dynamics_sync.sync.events import emit
from dynamics_sync.web.server import Server, listening_socket
from dynamics_sync.web.webhooks import Webhooks


def quickest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes an event loop: uvloop's, a seventh of a worker's time less; Python's own where there is none."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def run_until_stopped(settings: Settings, url: str, *, web: bool, worker: bool) -> None:
    """Work and serve until SIGTERM or Ctrl-C."""
    if settings.database_url is None:
        await migrate(url, migration_sets(settings))
    if not settings.enabled:
        await app.check_captures(settings, url)
        async with open_stores(settings, url) as stores, _webhooks(settings, url, web, None) as webhooks:
            emit("worker.disabled", "warning")
            sweeps = [stores.sweep.run()] if worker and stores.sweep is not None else []
            async with app.beside(*sweeps):
                await _serve(settings, app.web_server(stores, None, webhooks) if web else None, None)
        return
    async with (
        sandbox.dynamics_or_simulator(settings) as completed,
        app.open_engine(completed, url) as engine,
        _webhooks(completed, url, web, engine) as webhooks,
    ):
        await app.check_target(settings, engine.stores)
        await check_dynamics(engine.gateway)
        server = app.web_server(engine.stores, engine.tokens, webhooks) if web else None
        await _serve(completed, server, engine if worker else None)


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
