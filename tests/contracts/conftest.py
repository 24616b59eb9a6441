"""What the contracts are checked against: each store that there is, on each PostgreSQL."""

from collections.abc import AsyncIterator, Iterator

import pytest

from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Pool, make_pool
from dynamics_sync.sync.memory import InMemoryCircuitStore
from dynamics_sync.sync.ports import CircuitStore, Outbox
from support.database_clock import DatabaseClock
from support.model_stores import ModelStores
from support.postgres import SERVERS, Cluster
from support.postgres_stores import PostgresStores
from support.stores import Stores


@pytest.fixture(params=("memory", "model", *SERVERS))
def place(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[str]:
    """Where stores are: in memory, in the simulation's model, or at the address of a database."""
    if request.param not in SERVERS:
        yield request.param
        return
    with clusters[request.param].database() as url:
        yield url


@pytest.fixture
async def circuits(place: str) -> AsyncIterator[CircuitStore]:
    """A circuit store of each kind."""
    if place == "memory":
        yield InMemoryCircuitStore()
    elif place == "model":
        yield ModelStores().circuits
    else:
        async with make_pool(place, 10) as pool:
            yield PostgresCircuitStore(pool, "dynamics")


@pytest.fixture(scope="module", params=("model", *SERVERS))
def home(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[str | None]:
    """Where all stores of one target are: at the address of a database, or None for in the simulation's model."""
    if request.param == "model":
        yield None
        return
    with clusters[request.param].database() as url:
        yield url


@pytest.fixture
async def stores(home: str | None) -> AsyncIterator[Stores]:
    """All stores of one target."""
    if home is None:
        yield ModelStores()
        return
    async with PostgresStores.at(home) as in_database:
        yield in_database


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[PostgresStores]:
    """Stores in PostgreSQL, for what only these have."""
    async with PostgresStores.at(database) as opened:
        yield opened


@pytest.fixture
def outbox(stores: Stores) -> Outbox:
    """One worker's outbox."""
    return stores.outbox()


@pytest.fixture
def other_outbox(stores: Stores) -> Outbox:
    """Another worker's."""
    return stores.outbox()


@pytest.fixture
async def pool(database: str, database_clock: DatabaseClock) -> AsyncIterator[Pool]:
    """Connections that go by the database's clock as the test sets it."""
    async with make_pool(database, 10) as opened:
        yield opened
