"""The one place where everything is wired."""

import asyncio
import contextlib
import gc
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, LiteralString

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.errors import ConfigurationError, MappingError
from dynamics_sync.core.mapping import Mapping, parse_mapping
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.checks import check_dynamics_url
from dynamics_sync.dynamics.gateway import DataverseGateway, open_session
from dynamics_sync.dynamics.reading import DataverseReader
from dynamics_sync.dynamics.tokens import Credentials, Tokens, token_request
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.catalogue import TypesOf, check_mapping
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Pool, brief_connection, make_pool, transaction
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.incidents import PostgresIncidents
from dynamics_sync.postgres.listener import listen
from dynamics_sync.postgres.migrate import MACHINERY, MigrationSet, check_schema
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.postgres.reconciliation import COUNT_OPEN
from dynamics_sync.postgres.records import PostgresRecords
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.reconciliation import Reconciliation, make_reconciliation
from dynamics_sync.settings import Settings
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock, SystemClock
from dynamics_sync.sync.lease import LeasedGateway, LeaseTimes
from dynamics_sync.sync.replay import Replay, ReplaySettings
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from dynamics_sync.web.health import Check, Health, health_app
from dynamics_sync.web.server import Server, make_server

TARGET = "dynamics"
CERTIFICATIONS = MigrationSet("dynamics_sync.certifications", "dynamics_certifications_")
"""The tables of the domain that ships."""
POOL_SIZE = 6
GARBAGE_THRESHOLD = 50_000
"""Objects between two looks for garbage in cycles. At Python's 700, a worker spends a sixth of its time looking."""
PREPARE_SECONDS = 10.0
"""The longest that reading a record and getting a token may take."""
TRUST_SECONDS = 0.1
"""How long a healthy circuit is believed without a look at the database; claims renew it."""
COOL_DOWNS_WAITED = 3
"""How many cool-downs of an open circuit a replay waits for."""
NOTICE_SECONDS = 0.5
"""How soon all workers of a target know that the circuit opened; they must agree on it."""


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The database's address; the embedded server runs meanwhile if none is set."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres(settings.data_dir / "postgres", settings.pg_bindir) as server:
        yield server.url


def migration_sets(settings: Settings) -> tuple[MigrationSet, ...]:
    """What the database needs. Whoever maps tables of their own has no use for those that ship."""
    return (MACHINERY, CERTIFICATIONS) if settings.mapping is None else (MACHINERY,)


def read_mapping(path: Path | None) -> Mapping:
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


@dataclass(frozen=True, slots=True)
class Stores:
    """What lives in the database."""

    pool: Pool
    queue: PostgresRetryQueue
    circuits: PostgresCircuitStore
    incidents: PostgresIncidents
    circuit_settings: CircuitSettings
    breaker: DynamicsCircuitBreaker
    migration_sets: tuple[MigrationSet, ...]

    async def waiting(self) -> int:
        """Records in the outbox."""
        return int(await self._value("select count(*) from dynamics_sync.outbox"))

    async def differences(self) -> int:
        """Records that reconciliation found to differ, and that were not repaired."""
        return int(await self._value(COUNT_OPEN))

    async def is_sending(self) -> bool:
        """Whether any worker holds a record."""
        held = "select exists (select from dynamics_sync.outbox where lease_until > clock_timestamp())"
        return bool(await self._value(held))

    def breaker_of(self, operator: Operator) -> DynamicsCircuitBreaker:
        """The circuit, for a person to open or close: what they do is audited."""
        return DynamicsCircuitBreaker(self.circuit_settings, PostgresCircuitStore(self.pool, TARGET, operator))

    def replay(self, per_second: float, patience_seconds: float) -> Replay:
        """The paced way back into the outbox."""
        settings = ReplaySettings(
            per_second=per_second,
            patience_seconds=patience_seconds,
            blocked_patience_seconds=patience_seconds + COOL_DOWNS_WAITED * self.circuit_settings.cool_down_seconds,
        )
        return Replay(
            queue=self.queue, breaker=self.breaker, is_sending=self.is_sending, clock=SystemClock(), settings=settings
        )

    async def _value(self, query: LiteralString) -> Any:
        async with transaction(self.pool) as connection:
            row = await (await connection.execute(query)).fetchone()
        return row[0] if row else None


@asynccontextmanager
async def open_stores(settings: Settings, database_url: str) -> AsyncIterator[Stores]:
    """Connect and make sure of the schema.

    Raises:
        DatabaseError: it cannot be reached, or its schema is another.
    """
    sets = migration_sets(settings)
    async with brief_connection(database_url) as connection:
        await check_schema(connection, sets)
    async with make_pool(database_url, POOL_SIZE) as pool:
        circuits = PostgresCircuitStore(pool, TARGET)
        circuit_settings = CircuitSettings(
            failure_threshold=settings.failure_threshold,
            cool_down_seconds=settings.cool_down_seconds,
            max_pause_seconds=settings.max_pause_seconds,
            probe_lease_seconds=lease_times(settings).lease_seconds,
            notice_seconds=NOTICE_SECONDS,
        )
        breaker = DynamicsCircuitBreaker(circuit_settings, circuits, trust_seconds=TRUST_SECONDS)
        yield Stores(
            pool=pool,
            queue=PostgresRetryQueue(pool),
            circuits=circuits,
            incidents=PostgresIncidents(pool, TARGET),
            circuit_settings=circuit_settings,
            breaker=breaker,
            migration_sets=sets,
        )


async def check_capture(mapping: Mapping, database_url: str) -> TypesOf:
    """Make sure that all that is mapped is captured; give the types of the columns.

    Raises:
        DatabaseError, MappingError: what is wrong, and what to do.
    """
    async with brief_connection(database_url) as connection:
        return await check_mapping(connection, mapping, TARGET)


@dataclass(frozen=True, slots=True)
class Engine:
    """A worker with all that it needs."""

    worker: Worker
    reconciliation: Reconciliation
    stores: Stores
    gateway: DataverseGateway
    tokens: Tokens
    database_url: str


@asynccontextmanager
async def open_engine(settings: Settings, database_url: str) -> AsyncIterator[Engine]:
    """Wire a worker, checking everything that can be checked without Dynamics.

    Raises:
        ConfigurationError, DatabaseError: what is wrong, and what to do.
    """
    mapping = read_mapping(settings.mapping)
    url, credentials = _dynamics(settings)
    ca_file = str(settings.ca_file) if settings.ca_file else None
    clock = SystemClock()
    async with (
        open_stores(settings, database_url) as stores,
        # One connection more than requests that write: what reads must not wait for one after it was let pass.
        open_session(ca_file, settings.request_timeout_seconds, settings.concurrency + 1) as session,
    ):
        types = await check_capture(mapping, database_url)
        tokens = Tokens(token_request(credentials, clock), f"{url}/.default", clock, settings.token_pause_seconds)
        records = PostgresRecords(stores.pool, mapping, types, clock)
        gateway = DataverseGateway(
            url=url, session=session, tokens=tokens, records=records, mapping=mapping, clock=clock
        )
        worker = _worker(settings, stores, gateway, records, StoppableClock(clock))
        reconciliation = make_reconciliation(
            settings,
            target=TARGET,
            mapping=mapping,
            reader=DataverseReader(url=url, session=session, tokens=tokens, clock=clock),
            breaker=stores.breaker,
            pool=stores.pool,
            records=records,
            clock=clock,
        )
        yield Engine(worker, reconciliation, stores, gateway, tokens, database_url)


def _worker(
    settings: Settings, stores: Stores, gateway: DataverseGateway, records: PostgresRecords, clock: StoppableClock
) -> Worker:
    times = lease_times(settings)
    outbox = PostgresOutbox(stores.pool, TARGET, times.lease_seconds)
    leased = LeasedGateway(gateway, outbox, clock, times)
    service = HLFDynamicsSyncService(
        breaker=stores.breaker,
        policy=RetryPolicy(settings.max_retries, settings.base_delay_ms),
        gateway=leased,
        queue=stores.queue,
        clock=clock,
    )
    return Worker(
        service=service,
        breaker=stores.breaker,
        outbox=outbox,
        leases=leased,
        read_ahead=records.read_ahead,
        clock=clock,
        settings=WorkerSettings(
            settings.concurrency, settings.poll_seconds, shutdown_seconds=times.request_seconds + 15.0
        ),
    )


def lease_times(settings: Settings) -> LeaseTimes:
    """Twice what one try may take, so that a record that waited for its turn needs no new lease."""
    request_seconds = settings.request_timeout_seconds + 5.0
    return LeaseTimes(2 * (PREPARE_SECONDS + request_seconds), PREPARE_SECONDS, request_seconds)


def _dynamics(settings: Settings) -> tuple[str, Credentials]:
    wanted = {
        "DYNAMICS_SYNC_DYNAMICS_URL": settings.dynamics_url,
        "DYNAMICS_SYNC_TENANT_ID": settings.tenant_id,
        "DYNAMICS_SYNC_CLIENT_ID": settings.client_id,
        "DYNAMICS_SYNC_CLIENT_SECRET": settings.client_secret,
    }
    missing = [name for name, value in wanted.items() if not value]
    if missing or settings.dynamics_url is None or settings.client_secret is None:
        raise ConfigurationError(f"{', '.join(missing)} must be set too: Dynamics is reached with all four.")
    credentials = Credentials(
        tenant_id=settings.tenant_id or "",
        client_id=settings.client_id or "",
        client_secret=settings.client_secret.get_secret_value(),
        authority_url=settings.authority_url,
        ca_file=str(settings.ca_file) if settings.ca_file else None,
    )
    return check_dynamics_url(settings.dynamics_url), credentials


async def run_worker(engine: Engine) -> None:
    """Work until the worker is stopped or this is cancelled."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    beside = [asyncio.create_task(listen(engine.database_url, engine.worker.wake))]
    if engine.reconciliation.schedule is not None:
        beside.append(asyncio.create_task(engine.reconciliation.schedule.run()))
    try:
        await engine.worker.run()
    finally:
        for task in beside:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def health_server(stores: Stores, tokens: Tokens | None = None) -> Server:
    """The health pages as a server, not yet running. Without tokens they don't ask for one."""

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
    return make_server(health_app(Health(checks, stores.breaker.status)))
