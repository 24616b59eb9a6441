"""Projects as Supabase has them: the database, migrated by a `postgres` that is no superuser, and PostgREST."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from dynamics_sync.postgres.connections import Connection, connect
from dynamics_sync.postgres.migrate import migrate
from support.jwt import JWT_SECRET
from support.postgres import EVERYTHING
from support.postgrest import rest_server
from support.supabase import GRANT_ON_EVERYTHING_NEW, ROLES, SCHEMAS, bare_server, database_of, roles
from support.supabase_gateway import Gateway, gateway

KINDS = {"older": ("pg15", SCHEMAS + ";" + GRANT_ON_EVERYTHING_NEW), "newer": ("pg17", SCHEMAS)}
"""Those from before 2026 grant each new table to all API roles; since then none is granted."""


@dataclass(frozen=True)
class Project:
    """A project's addresses."""

    owner: str
    """The database's, for `postgres`."""
    rest: str
    """PostgREST's."""


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def superuser(kind: str) -> Iterator[str]:
    """The address of `supabase_admin`, on a server with Supabase's roles."""
    server, _ = KINDS[kind]
    with bare_server(server) as address, roles(address, ROLES):
        yield address


@pytest.fixture
def new_database(superuser: str, kind: str) -> Iterator[str]:
    """The address of `postgres` in the database of a project that is new."""
    _, inside = KINDS[kind]
    with database_of("postgres", superuser, inside) as address:
        yield address


@pytest.fixture(scope="session")
def project(superuser: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One of each kind. Tests share it, and make what they act on anew."""
    _, inside = KINDS[kind]
    log = tmp_path_factory.mktemp("postgrest") / "postgrest.log"
    with database_of("postgres", superuser, inside) as owner:
        asyncio.run(migrate(owner, EVERYTHING))
        with rest_server(owner, JWT_SECRET, log) as rest:
            yield Project(owner, rest)


@pytest.fixture
async def supabase(project: Project) -> AsyncIterator[Gateway]:
    """The project as apps reach it."""
    async with gateway(project.rest) as running:
        yield running


@pytest.fixture
async def owner(project: Project) -> AsyncIterator[Connection]:
    """The project's `postgres`."""
    async with await connect(project.owner) as connection:
        yield connection
