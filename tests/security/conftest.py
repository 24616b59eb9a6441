"""Populated databases to attack."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dynamics_sync.postgres.migrate import migrate
from security.world import Connection, populate
from support.postgres import EVERYTHING, Cluster
from support.supabase import GRANT_ON_EVERYTHING_NEW, ROLES, SCHEMAS, bare_server, database_of, roles


@pytest.fixture(scope="session")
def owner(clusters: dict[str, Cluster]) -> Iterator[Connection]:
    """A superuser of a database with two organisations in it. What a test changes it takes back."""
    with clusters["pg18"].database() as url, psycopg.connect(url, autocommit=True) as connection:
        populate(connection)
        yield connection


@pytest.fixture(scope="session")
def supabase_owner() -> Iterator[Connection]:
    """The same on Supabase, where it grants everybody everything new in public."""
    with bare_server("pg17") as superuser, roles(superuser, ROLES):
        with database_of("postgres", superuser, SCHEMAS + ";" + GRANT_ON_EVERYTHING_NEW) as address:
            asyncio.run(migrate(address, EVERYTHING))
            database = conninfo_to_dict(address)["dbname"]
            with psycopg.connect(make_conninfo(superuser, dbname=database), autocommit=True) as connection:
                populate(connection)
                yield connection
