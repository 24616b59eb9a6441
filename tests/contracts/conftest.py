"""What the contracts are checked against: each store that there is, on each PostgreSQL."""

from collections.abc import AsyncIterator, Iterator

import pytest

from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Pool, make_pool
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.sync.memory import InMemoryCircuitStore
from dynamics_sync.sync.ports import CircuitStore
from support.database_clock import DatabaseClock
from support.outbox import LEASE_SECONDS, TARGET
from support.postgres import SERVERS, Cluster


@pytest.fixture(params=("memory", *SERVERS))
def place(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[str | None]:
    """Where stores are: at the address of a database, or None for in memory."""
    if request.param == "memory":
        yield None
        return
    with clusters[request.param].database() as url:
        yield url


@pytest.fixture
async def circuits(place: str | None) -> AsyncIterator[CircuitStore]:
    """A circuit store of each kind."""
    if place is None:
        yield InMemoryCircuitStore()
        return
    async with make_pool(place, 10) as pool:
        yield PostgresCircuitStore(pool, "dynamics")


@pytest.fixture
async def pool(database: str, database_clock: DatabaseClock) -> AsyncIterator[Pool]:
    """Connections that go by the database's clock as the test sets it."""
    async with make_pool(database, 10) as opened:
        yield opened


@pytest.fixture
def outbox(pool: Pool) -> PostgresOutbox:
    """One worker's outbox."""
    return PostgresOutbox(pool, TARGET, LEASE_SECONDS)


@pytest.fixture
def other_outbox(pool: Pool) -> PostgresOutbox:
    """Another worker's."""
    return PostgresOutbox(pool, TARGET, LEASE_SECONDS)
