"""The whole engine on real parts: a worker, a PostgreSQL, the simulator, sockets in between."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp

from dynamics_sync import app, sandbox
from dynamics_sync.postgres.connections import Connection, connect
from dynamics_sync.settings import Settings, load_settings
from dynamics_sync.simulator import PORTAL_SECRET, Simulator, SimulatorConfig
from support.pooler import for_engine

ENTITY_SET = "hlf_certifications"
LAST_DAY = "2099-01-31"
"""Far ahead, so that a certification expires only where a test wants it to."""


@dataclass
class Stage:
    """What a test acts on."""

    user: Connection
    engine: app.Engine
    http: aiohttp.ClientSession
    simulator: Simulator
    mentor: UUID
    chapter: UUID

    async def issue(self, status: str = "active", expires_on: str = LAST_DAY) -> str:
        cursor = await self.user.execute(
            "insert into public.certifications (peer_mentor_id, chapter_id, status, expires_on) "
            "values (%s, %s, %s, %s) returning id::text",
            [self.mentor, self.chapter, status, expires_on],
        )
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])

    async def fault(self, **declared: object) -> None:
        async with self.http.post(f"{self.simulator.url}/_simulator/faults", json=declared) as response:
            assert response.status in (200, 201), await response.text()

    async def credentials(self, **wish: object) -> None:
        """Rotate the secret (`client_secret`) or end all tokens (`revoke`), at the identity provider."""
        async with self.http.post(f"{self.simulator.url}/_simulator/credentials", json=wish) as response:
            assert response.status == 204, await response.text()

    async def lift_faults(self) -> None:
        async with self.http.delete(f"{self.simulator.url}/_simulator/faults") as response:
            assert response.status in (200, 204)

    async def requests(self) -> list[dict[str, Any]]:
        async with self.http.get(f"{self.simulator.url}/_simulator/requests") as response:
            return [noted for noted in await response.json() if noted["entity_set"] == ENTITY_SET]

    async def writes(self) -> list[dict[str, Any]]:
        """All that was to change something there, in order; a batch belongs to no entity set."""
        async with self.http.get(f"{self.simulator.url}/_simulator/requests") as response:
            return [noted for noted in await response.json() if noted["method"] != "GET"]

    async def record(self, key: str) -> dict[str, Any] | None:
        return (await self.records(ENTITY_SET)).get(key)

    async def records(self, entity_set: str) -> dict[str, dict[str, Any]]:
        """What Dynamics holds, by key."""
        async with self.http.get(f"{self.simulator.url}/_simulator/records/{entity_set}") as response:
            return {record["key"]: record["attributes"] for record in await response.json()}

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await (await self.user.execute(query.encode(), parameters)).fetchall()

    async def change_portal(self, **wish: object) -> None:
        """Another contract, a log-in page, another secret: what is not named is as at first."""
        async with self.http.post(f"{self.simulator.url}/_simulator/portal", json=wish) as response:
            assert response.status == 204, await response.text()

    async def deliveries(self) -> list[dict[str, Any]]:
        """Each event that the portal was sent, in order."""
        async with self.http.get(f"{self.simulator.url}/_simulator/portal") as response:
            return list((await response.json())["deliveries"])

    async def listed(self) -> list[str]:
        """Who is on the portal's public listing."""
        async with self.http.get(f"{self.simulator.url}/portal/mentors") as response:
            return list((await response.json())["mentors"])

    async def queue(self) -> list[tuple[Any, ...]]:
        """Status, attempt count, reason and error code of each entry, oldest first."""
        return await self.rows(
            "select status, attempt_count, failure_reason, error_code from public.dynamics_sync_retry_queue "
            "order by created_at"
        )

    async def settled(self) -> None:
        """Until nothing waits."""
        await self.until(NOTHING_WAITS)

    async def until(self, condition: str) -> None:
        async with asyncio.timeout(15):
            while not (await self.rows(condition))[0][0]:
                await asyncio.sleep(0.02)

    async def until_requests(self, count: int) -> None:
        """Until so many have reached Dynamics."""
        async with asyncio.timeout(15):
            while len(await self.requests()) < count:
                await asyncio.sleep(0.02)


NOTHING_WAITS = """
select not exists (select from dynamics_sync.changes) and not exists (select from dynamics_sync.outbox)
"""


def engine_settings(database_url: str, simulator_url: str, **overrides: object) -> Settings:
    """Fast settings against a simulator. A record has a request of its own, for which faults are declared, unless a
    test wants many in one."""
    fast: dict[str, object] = {"base_delay_ms": 10, "cool_down_seconds": 0.4, "poll_seconds": 0.05, "bulk_size": 1}
    return sandbox.with_simulator(load_settings(database_url=database_url, **(fast | overrides)), simulator_url)


def trusting(ca_file: Path | None) -> aiohttp.TCPConnector:
    """Connections that trust the authority of that file, or the system's authorities."""
    return aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file))


@asynccontextmanager
async def stage(
    database_url: str,
    *,
    working: bool = True,
    simulated: Mapping[str, Any] | None = None,
    mapping: Path | None = None,
    change_tracking: bool = True,
    bulk_messages: bool = True,
    portal: bool = False,
    **overrides: object,
) -> AsyncIterator[Stage]:
    """Everything running; the worker too, unless a test wants to start it itself.

    Args:
        bulk_messages: Dynamics has them for the tables.
        portal: certifications go to the simulator's portal, too.
    """
    tables = sandbox.simulator_tables(app.read_mapping(mapping))
    tables = tuple(replace(table, change_tracking=change_tracking, bulk=bulk_messages) for table in tables)
    config = SimulatorConfig(tables, **(simulated or {}))
    async with (
        Simulator(config) as simulator,
        aiohttp.ClientSession(connector=trusting(simulator.ca_file)) as http,
        await connect(database_url) as user,
    ):
        overrides = {"ca_file": simulator.ca_file, "mapping": mapping} | overrides
        if portal:
            await user.execute("select dynamics_sync.watch('public.certifications', 'id', 'portal')")
            overrides = {"portal_url": simulator.url, "portal_secret": PORTAL_SECRET} | overrides
        address = for_engine(database_url)
        settings = engine_settings(address, simulator.url, **overrides)
        async with app.open_engine(settings, address) as engine:
            mentor, chapter = uuid4(), uuid4()
            if mapping is None:
                await _prepare_certifications(user, mentor, chapter)
            job = asyncio.create_task(app.run_worker(engine)) if working else None
            try:
                if working:
                    await until_known(engine)
                yield Stage(user, engine, http, simulator, mentor, chapter)
            finally:
                engine.stop()
                if job is not None:
                    await job


async def until_known(engine: app.Engine) -> None:
    """Until Dynamics was asked what it offers: what a test declares is for what comes then."""
    async with asyncio.timeout(15):
        while not engine.messages.known:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def working(settings: Settings, database_url: str) -> AsyncIterator[app.Engine]:
    """Another engine at work."""
    async with app.open_engine(settings, database_url) as engine:
        job = asyncio.create_task(app.run_worker(engine))
        try:
            yield engine
        finally:
            engine.stop()
            await job


async def _prepare_certifications(user: Connection, mentor: UUID, chapter: UUID) -> None:
    organisation = uuid4()
    await user.execute("insert into public.organisations values (%s, 'HLF')", [organisation])
    await user.execute("insert into public.chapters values (%s, %s, 'Oslo')", [chapter, organisation])
    await user.execute(
        "insert into public.peer_mentors (id, chapter_id, display_name) values (%s, %s, 'Kari Nordmann')",
        [mentor, chapter],
    )
