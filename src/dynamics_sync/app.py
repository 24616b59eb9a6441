"""The one place where everything is wired."""

import asyncio
import gc
import tomllib
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dynamics_sync.certifications.history_watch import HistoryWatch
from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import Mapping as TableMappings
from dynamics_sync.core.mapping import parse_mapping
from dynamics_sync.core.operation import PORTAL
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.bulk_messages import BulkMessages
from dynamics_sync.dynamics.bundling import Bundling
from dynamics_sync.dynamics.gateway import DataverseGateway
from dynamics_sync.dynamics.limits import hints_from
from dynamics_sync.dynamics.reading import DataverseReader
from dynamics_sync.dynamics.tokens import Tokens, token_request
from dynamics_sync.dynamics.web_api import WebApi
from dynamics_sync.inbox import make_inbox
from dynamics_sync.postgres.connections import transaction
from dynamics_sync.postgres.environments import check_environment, check_nobody_else
from dynamics_sync.postgres.listener import listen
from dynamics_sync.postgres.migrate import check_schema
from dynamics_sync.postgres.records import PostgresRecords
from dynamics_sync.reconciliation import Reconciliation, make_reconciliation
from dynamics_sync.settings import Settings
from dynamics_sync.stores import Stores, open_stores
from dynamics_sync.sync.clock import StoppableClock, SystemClock
from dynamics_sync.sync.inbox import Inbox
from dynamics_sync.sync.reading import GentleReader
from dynamics_sync.sync.worker import Worker
from dynamics_sync.targets import (
    check_capture,
    dynamics_of,
    make_pacer,
    make_worker,
    open_portal,
    portal_of,
)
from dynamics_sync.transport.client import open_client
from dynamics_sync.web.health import Check, Health, health_app
from dynamics_sync.web.metrics import add_metrics, metric_sources
from dynamics_sync.web.server import Server, make_server
from dynamics_sync.web.webhooks import Webhooks, add_webhooks

GARBAGE_THRESHOLD = 50_000
"""Objects between two looks for garbage in cycles. At Python's 700, a worker spends a sixth of its time looking."""


def read_mapping(path: Path | None) -> TableMappings:
    """The mapping of a file, or the one that ships.

    Raises:
        MappingError: it cannot be read or used.
    """
    try:
        if path is None:
            text = files("dynamics_sync.certifications").joinpath("mapping.toml").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        return parse_mapping(tomllib.loads(text), str(path or "that ships"))
    except OSError:
        raise MappingError(f"The mapping {path} cannot be read. Correct DYNAMICS_SYNC_MAPPING.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MappingError(f"The mapping {path} is not valid TOML: {error}. Correct it and start again.") from None


async def check_captures(settings: Settings, database_url: str) -> None:
    """Make sure that all that is mapped is captured, for each target.

    Raises:
        ConfigurationError, DatabaseError: what is wrong, and what to do.
    """
    await check_capture(read_mapping(settings.mapping), settings.target, database_url)
    if (portal := portal_of(settings)) is not None:
        await check_capture(portal.contract, PORTAL, database_url)


@dataclass(frozen=True, slots=True)
class Engine:
    """A worker for each target, with all that they need."""

    workers: Mapping[str, Worker]
    """By target, Dynamics first."""
    messages: BulkMessages
    reconciliation: Reconciliation
    inbox: Inbox | None
    """What applies webhooks; None where they are off."""
    stores: Stores
    gateway: DataverseGateway
    api: WebApi
    tokens: Tokens
    database_url: str

    @property
    def worker(self) -> Worker:
        """The one that sends to Dynamics."""
        return next(iter(self.workers.values()))

    def stop(self) -> None:
        """Claim nothing more; `run_worker` returns once the requests in flight are answered and settled."""
        for worker in self.workers.values():
            worker.stop()


@asynccontextmanager
async def open_engine(settings: Settings, database_url: str) -> AsyncIterator[Engine]:
    """Wire the workers, checking everything that can be checked without Dynamics and without the portal.

    Raises:
        ConfigurationError, DatabaseError: what is wrong, and what to do.
    """
    mapping = read_mapping(settings.mapping)
    url, credentials = dynamics_of(settings)
    portal = portal_of(settings)
    ca_file = str(settings.ca_file) if settings.ca_file else None
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings, database_url))
        # One connection more than requests that write: what reads must not wait for one after it was let pass.
        client = await stack.enter_async_context(
            open_client(url, ca_file, settings.request_timeout_seconds, settings.concurrency + 1)
        )
        types = await check_capture(mapping, settings.target, database_url)
        tokens = Tokens(token_request(credentials, clock), f"{url}/.default", clock, settings.token_pause_seconds)
        records = PostgresRecords(stores.pool, mapping, types, clock)
        bundling = Bundling(mapping, settings.bulk_size)
        stopping = StoppableClock(clock)
        pacer = make_pacer(settings, stores.dynamics, stopping)
        api = WebApi(url, client, clock, lambda exchanged: pacer.hear(hints_from(exchanged.headers)))
        gateway = DataverseGateway(api=api, tokens=tokens, records=records, mapping=mapping, bundling=bundling)
        workers = {settings.target: make_worker(settings, stores.dynamics, gateway, records, stopping, pacer)}
        if portal is not None:
            opened = open_portal(settings, portal, stores.targets[PORTAL], database_url)
            workers[PORTAL] = await stack.enter_async_context(opened)
        reader = DataverseReader(url=url, client=client, tokens=tokens, clock=clock)
        reconciliation = make_reconciliation(
            settings,
            mapping=mapping,
            reader=reader,
            breaker=stores.breaker,
            pool=stores.pool,
            records=records,
            clock=clock,
        )
        inbox = make_inbox(
            settings, mapping=mapping, types=types, reader=reader, breaker=stores.breaker, pool=stores.pool, clock=clock
        )
        gentle = GentleReader(reader, stores.breaker, RetryPolicy(settings.max_retries, settings.base_delay_ms), clock)
        messages = BulkMessages(bundling, reader, gentle, clock)
        yield Engine(workers, messages, reconciliation, inbox, stores, gateway, api, tokens, database_url)


async def run_worker(engine: Engine) -> None:
    """Work for all targets until the workers are stopped or this is cancelled."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    wakes = {name: worker.wake for name, worker in engine.workers.items()}
    jobs = [listen(engine.database_url, wakes), engine.messages.run()]
    if engine.reconciliation.schedule is not None:
        jobs.append(engine.reconciliation.schedule.run())
    if engine.stores.sweep is not None:
        jobs.append(engine.stores.sweep.run())
    if engine.stores.histories is not None:
        jobs.append(HistoryWatch(engine.stores.histories, SystemClock()).run())
    if engine.inbox is not None:
        jobs.append(engine.inbox.run())
    async with beside(*jobs), asyncio.TaskGroup() as group:
        for worker in engine.workers.values():
            group.create_task(worker.run())


@asynccontextmanager
async def beside(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """These run meanwhile, and are cancelled at the end. One that fails ends everything: what nobody does any more must
    not go unnoticed."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(job) for job in jobs]
        try:
            yield
        finally:
            for job in running:
                job.cancel()


async def check_target(settings: Settings, stores: Stores) -> None:
    """Make sure that the name of the target means the environment that it always meant in this database, and is left to
    no simulator, which the settings mean where they name no Dynamics.

    Raises:
        ConfigurationError: it means another one; the message says what to do.
    """
    if settings.dynamics_url is None:
        await check_nobody_else(stores.pool, settings.target)
        return
    url, _ = dynamics_of(settings)
    await check_environment(stores.pool, settings.target, urlsplit(url).netloc.rpartition("@")[2].lower())


def web_server(stores: Stores, tokens: Tokens | None = None, webhooks: Webhooks | None = None) -> Server:
    """Health pages, metrics and webhooks as a server, not yet running. Without tokens the pages don't ask for one."""

    async def database_answers() -> None:
        async with transaction(stores.pool) as connection:
            await connection.execute("select 1")

    async def schema_fits() -> None:
        async with transaction(stores.pool) as connection:
            await check_schema(connection, stores.migration_sets)

    checks: dict[str, Check] = {"database": database_answers, "schema": schema_fits}
    if tokens is not None:

        async def token_is_had() -> None:
            await tokens.get()

        checks["token"] = token_is_had
    circuits = {name: target.breaker.status for name, target in stores.targets.items()}
    pages = health_app(Health(checks, circuits))
    oversized = stores.histories.count_oversized if stores.histories is not None else None
    add_metrics(pages, metric_sources(stores.waiting, stores.queue.counts, stores.inbox.counts, circuits, oversized))
    if webhooks is not None:
        add_webhooks(pages, webhooks)
    return make_server(pages)
