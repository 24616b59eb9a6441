"""What the database keeps, opened for a command or a worker. Nothing here speaks HTTP, so a command starts fast."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from dynamics_sync.certifications.history_store import HistoryStore
from dynamics_sync.certifications.sweep import Sweep
from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.operation import PORTAL
from dynamics_sync.postgres.access import PostgresAccess
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Pool, brief_connection, make_pool, one_value, transaction
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.environments import known_targets
from dynamics_sync.postgres.inbox_entries import PostgresInboxEntries
from dynamics_sync.postgres.incidents import PostgresIncidents
from dynamics_sync.postgres.migrate import MACHINERY, MigrationSet, check_schema
from dynamics_sync.postgres.outbox import IS_SENDING, WAITING
from dynamics_sync.postgres.pace_store import PostgresPaceStore
from dynamics_sync.postgres.reconciliation import COUNT_OPEN
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.settings import Settings
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import SystemClock
from dynamics_sync.sync.lease import LeaseTimes
from dynamics_sync.sync.replay import Replay, ReplaySettings

CERTIFICATIONS = MigrationSet("dynamics_sync.certifications", "dynamics_certifications_")
"""The tables of the domain that ships."""
POOL_SIZE = 6
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


def target_names(settings: Settings) -> tuple[str, ...]:
    """The targets of the settings, Dynamics first: it always is one."""
    return (settings.target,) if settings.portal_url is None else (settings.target, PORTAL)


def lease_times(settings: Settings) -> LeaseTimes:
    """Twice what one try may take, so that a record that waited for its turn needs no new lease."""
    request_seconds = settings.request_timeout_seconds + 5.0
    return LeaseTimes(2 * (PREPARE_SECONDS + request_seconds), PREPARE_SECONDS, request_seconds)


@dataclass(frozen=True, slots=True)
class TargetStores:
    """What the database keeps of one target."""

    name: str
    pool: Pool
    queue: PostgresRetryQueue
    """Its entries."""
    incidents: PostgresIncidents
    inbox: PostgresInboxEntries
    circuit_settings: CircuitSettings
    breaker: DynamicsCircuitBreaker
    pace: PostgresPaceStore

    async def waiting(self) -> int:
        """Records that wait to be sent, or are being sent."""
        return int(await one_value(self.pool, WAITING, {"target": self.name}))

    async def is_sending(self) -> bool:
        """Whether any worker holds a record."""
        return bool(await one_value(self.pool, IS_SENDING, {"target": self.name}))

    def breaker_of(self, operator: Operator) -> DynamicsCircuitBreaker:
        """The circuit, for a person to open or close: what they do is audited."""
        store = PostgresCircuitStore(self.pool, self.name, operator)
        return DynamicsCircuitBreaker(self.circuit_settings, store, target=self.name)

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


def target_stores(settings: Settings, pool: Pool, name: str) -> TargetStores:
    """Wire what the database keeps of a target."""
    circuit_settings = CircuitSettings(
        failure_threshold=settings.failure_threshold,
        cool_down_seconds=settings.cool_down_seconds,
        max_pause_seconds=settings.max_pause_seconds,
        probe_lease_seconds=lease_times(settings).lease_seconds,
        notice_seconds=NOTICE_SECONDS,
    )
    store = PostgresCircuitStore(pool, name)
    return TargetStores(
        name=name,
        pool=pool,
        queue=PostgresRetryQueue(pool, name),
        incidents=PostgresIncidents(pool, name),
        inbox=PostgresInboxEntries(pool, name),
        circuit_settings=circuit_settings,
        breaker=DynamicsCircuitBreaker(circuit_settings, store, trust_seconds=TRUST_SECONDS, target=name),
        pace=PostgresPaceStore(pool, name),
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """What lives in the database."""

    settings: Settings
    pool: Pool
    queue: PostgresRetryQueue
    """The entries of all targets."""
    incidents: PostgresIncidents
    """Of all targets."""
    access: PostgresAccess
    inbox: PostgresInboxEntries
    """What all environments of Dynamics told."""
    targets: Mapping[str, TargetStores]
    """What is kept of each target of the settings, Dynamics first."""
    migration_sets: tuple[MigrationSet, ...]
    sweep: Sweep | None
    """None where the certifications that ship are not used."""
    histories: HistoryStore | None
    """None where the certifications that ship are not used."""

    @property
    def dynamics(self) -> TargetStores:
        """The Dynamics environment of the settings."""
        return next(iter(self.targets.values()))

    @property
    def breaker(self) -> DynamicsCircuitBreaker:
        """Its circuit."""
        return self.dynamics.breaker

    async def every_target(self) -> Mapping[str, TargetStores]:
        """Those of the settings first, then all others that share the database: a person is shown them too."""
        others = sorted(await known_targets(self.pool) - {*self.targets})
        return {**self.targets, **{name: target_stores(self.settings, self.pool, name) for name in others}}

    async def target(self, name: str) -> TargetStores:
        """One of the targets, whether or not the settings name it.

        Raises:
            ConfigurationError: the database does not know it either.
        """
        every = self.targets if name in self.targets else await self.every_target()
        if name not in every:
            raise ConfigurationError(f"There is no target {name} in this database. There is {' and '.join(every)}.")
        return every[name]

    async def chosen(self, target: str | None) -> Sequence[TargetStores]:
        """One target, or all."""
        return [*(await self.every_target()).values()] if target is None else [await self.target(target)]

    async def queue_of(self, target: str | None) -> PostgresRetryQueue:
        """The entries of one target, or of all."""
        return self.queue if target is None else (await self.target(target)).queue

    async def inbox_of(self, target: str | None) -> PostgresInboxEntries:
        """What one environment told, or all."""
        return self.inbox if target is None else (await self.target(target)).inbox

    async def waiting(self) -> int:
        """Records that wait to be sent, or are being sent."""
        return int(await one_value(self.pool, WAITING, {"target": None}))

    async def differences(self, target: str | None) -> int:
        """Records of one target, or of all, that reconciliation found to differ, and that were not repaired."""
        return int(await one_value(self.pool, COUNT_OPEN, {"target": target}))


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
        yield Stores(
            settings=settings,
            pool=pool,
            queue=PostgresRetryQueue(pool),
            incidents=PostgresIncidents(pool),
            access=PostgresAccess(pool),
            inbox=PostgresInboxEntries(pool),
            targets={name: target_stores(settings, pool, name) for name in target_names(settings)},
            migration_sets=sets,
            sweep=Sweep(lambda: transaction(pool), SystemClock()) if CERTIFICATIONS in sets else None,
            histories=HistoryStore(lambda: transaction(pool)) if CERTIFICATIONS in sets else None,
        )
