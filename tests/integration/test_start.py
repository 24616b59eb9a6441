"""What keeps `dynamics-sync run` from starting is told in one message that says what to do, and quotes no secret."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from dynamics_sync import app, sandbox
from dynamics_sync.simulator import PORTAL_SECRET, Simulator, SimulatorConfig
from support.commands import refused, start
from support.ports import free_port
from support.postgres import Cluster

SECRET = "s3cret~value"
TABLES = sandbox.simulator_tables(app.read_mapping(None))


@pytest.fixture
async def dynamics() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorConfig(TABLES, clients={"demo": SECRET})) as simulator:
        yield simulator


@pytest.fixture
async def dynamics_over_tls(tmp_path: Path) -> AsyncIterator[Simulator]:
    config = SimulatorConfig(TABLES, clients={"demo": SECRET}, tls=True, ca_file=tmp_path / "ca.pem")
    async with Simulator(config) as simulator:
        yield simulator


def pointing_at(simulator: Simulator) -> dict[str, str]:
    return {
        "dynamics_url": simulator.url,
        "authority_url": simulator.url,
        "tenant_id": "demo",
        "client_id": "demo",
        "client_secret": SECRET,
        "port": "0",
    }


async def refused_start(tmp_path: Path, *words: str, **settings: str) -> None:
    done = await start("run", cwd=tmp_path, **settings)
    refused(done, *words)
    assert SECRET not in done.stdout + done.stderr
    assert done.stderr.count("dynamics-sync:") == 1, done.stderr


async def test_a_database_that_nobody_serves(dynamics: Simulator, tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/x"
    await refused_start(tmp_path, "Start PostgreSQL", database_url=url, **pointing_at(dynamics))


async def test_a_database_host_that_does_not_exist(dynamics: Simulator, tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@database.invalid/x"
    words = "Cannot connect to database.invalid:5432/x: the host name is unknown"
    await refused_start(tmp_path, words, database_url=url, **pointing_at(dynamics))


@pytest.mark.parametrize(
    "url", [f"postgres:u:{SECRET}", f"postgresql://u:{SECRET}@h:port/x", f"mysql://u:{SECRET}@h/x"]
)
async def test_a_database_address_that_is_none(dynamics: Simulator, tmp_path: Path, url: str) -> None:
    await refused_start(tmp_path, "DYNAMICS_SYNC_DATABASE_URL", database_url=url, **pointing_at(dynamics))


async def test_a_wrong_database_password(database: str, dynamics: Simulator, tmp_path: Path) -> None:
    parts = urlsplit(database)
    wrong = urlunsplit(parts._replace(netloc=f"postgres:{SECRET}@{parts.hostname}:{parts.port}"))
    await refused_start(tmp_path, "the user or password is wrong", database_url=wrong, **pointing_at(dynamics))


async def test_a_database_that_does_not_exist(server: Cluster, dynamics: Simulator, tmp_path: Path) -> None:
    url = server.url_of("absent")
    await refused_start(tmp_path, "does not exist. Create it", database_url=url, **pointing_at(dynamics))


async def test_a_database_that_was_not_prepared(empty_database: str, dynamics: Simulator, tmp_path: Path) -> None:
    words = "Run `dynamics-sync migrate`"
    await refused_start(tmp_path, words, database_url=empty_database, **pointing_at(dynamics))


async def test_a_database_of_a_newer_version(database: str, dynamics: Simulator, tmp_path: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name) values ('29990101000000', %s)",
            ["dynamics_sync_future"],
        )
    words = "prepared by a newer dynamics-sync"
    await refused_start(tmp_path, words, "Upgrade", database_url=database, **pointing_at(dynamics))


async def test_a_wrong_client_secret_over_tls(database: str, dynamics_over_tls: Simulator, tmp_path: Path) -> None:
    settings = pointing_at(dynamics_over_tls) | {"client_secret": "wrong~s3cret", "ca_file": str(tmp_path / "ca.pem")}
    done = await start("run", cwd=tmp_path, database_url=database, **settings)
    refused(done, "DYNAMICS_SYNC_CLIENT_SECRET")
    assert "wrong~s3cret" not in done.stdout + done.stderr


async def test_a_portal_whose_changes_are_not_captured(database: str, dynamics: Simulator, tmp_path: Path) -> None:
    portal = {"portal_url": "https://portal.invalid", "portal_secret": PORTAL_SECRET}
    words = (
        "run `select dynamics_sync.watch('public.certifications', 'id', 'portal')`, then `select "
        "dynamics_sync.resync('public.certifications', 'portal')`"
    )
    await refused_start(tmp_path, words, database_url=database, **pointing_at(dynamics), **portal)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dynamics_url": "https://typo.invalid"}, "The host of DYNAMICS_SYNC_DYNAMICS_URL does not exist"),
        ({"dynamics_url": "http://org.invalid"}, "DYNAMICS_SYNC_DYNAMICS_URL must look like https://"),
        ({"dynamics_url": "https://[::1"}, "DYNAMICS_SYNC_DYNAMICS_URL must look like https://"),
        ({"authority_url": "https://typo.invalid"}, "The identity provider cannot be reached"),
        ({"authority_url": "http://login.invalid"}, "DYNAMICS_SYNC_AUTHORITY_URL must be an https:// address"),
        ({"authority_url": "https://typo.invalid", "tenant_id": "no tenant!"}, "DYNAMICS_SYNC_TENANT_ID"),
        ({"client_id": "nobody"}, "DYNAMICS_SYNC_CLIENT_ID"),
        ({"ca_file": "absent.pem"}, "DYNAMICS_SYNC_CA_FILE cannot be read"),
        ({"ca_file": "dynamics-sync.toml"}, "DYNAMICS_SYNC_CA_FILE cannot be read"),
        ({"mapping": "dynamics-sync.toml"}, "tables: Field required"),
        ({"mapping": "[/absent].toml"}, "[/absent].toml cannot be read"),
        ({"enabled": "perhaps"}, "DYNAMICS_SYNC_ENABLED"),
        ({"client_secret": ""}, "DYNAMICS_SYNC_CLIENT_SECRET must be set"),
        ({"dynamics_url": ""}, "DYNAMICS_SYNC_DYNAMICS_URL must be set too: Dynamics is reached with all four."),
    ],
)
async def test_a_wrong_setting(
    database: str, dynamics: Simulator, tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    (tmp_path / "dynamics-sync.toml").write_text("")
    await refused_start(tmp_path, words, database_url=database, **pointing_at(dynamics) | changed)


async def test_a_dynamics_that_nobody_vouches_for(
    database: str, dynamics: Simulator, dynamics_over_tls: Simulator, tmp_path: Path
) -> None:
    settings = pointing_at(dynamics) | {"dynamics_url": dynamics_over_tls.url}
    words = "The certificate of the Dynamics host is not trusted. Name the authority in DYNAMICS_SYNC_CA_FILE"
    await refused_start(tmp_path, words, database_url=database, **settings)


async def test_an_identity_provider_that_nobody_vouches_for(
    database: str, dynamics_over_tls: Simulator, tmp_path: Path
) -> None:
    words = "The identity provider's certificate is not trusted"
    await refused_start(tmp_path, words, database_url=database, **pointing_at(dynamics_over_tls))


@pytest.mark.parametrize(
    "text",
    [f'client_secret = "{SECRET}', f'client_secrets = "{SECRET}"', f'port = "{SECRET}"', f"\xff = '{SECRET}'", "["],
    ids=["half-written", "misspelt", "wrong type", "not UTF-8", "nonsense"],
)
async def test_a_wrong_configuration_file(database: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "dynamics-sync.toml").write_bytes(text.encode("latin-1"))
    await refused_start(tmp_path, "dynamics-sync.toml", database_url=database)


@pytest.mark.parametrize(
    "text", ["[[tables]]\nsource = ", "tables = 1", "\xff"], ids=["half-written", "another shape", "not UTF-8"]
)
async def test_a_wrong_mapping(database: str, dynamics: Simulator, tmp_path: Path, text: str) -> None:
    (tmp_path / "map.toml").write_bytes(text.encode("latin-1"))
    await refused_start(tmp_path, "map.toml", database_url=database, mapping="map.toml", **pointing_at(dynamics))


async def test_a_port_that_is_taken(database: str, dynamics: Simulator, tmp_path: Path) -> None:
    port = str(urlsplit(dynamics.url).port)
    settings: dict[str, Any] = pointing_at(dynamics) | {"port": port}
    refusal = f"cannot be served on port {port} of 127.0.0.1: Address already in use"
    await refused_start(tmp_path, refusal, database_url=database, **settings)
