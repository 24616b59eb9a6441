"""Lookups of a mapping of one's own: to a table that nothing of ours writes, by its id and by an alternate key."""

from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from support.engine import Stage, stage

TABLE = "create table public.visits (id uuid primary key, team uuid, chapter text)"

MAPPING = """
[[tables]]
source = "public.visits"
key = "id"
entity_set = "hlf_visits"
logical_name = "hlf_visit"
alternate_key = "hlf_externalid"
[tables.columns]
team = { to = "hlf_Team", lookup = { entity_set = "teams" } }
chapter = { to = "hlf_Chapter", lookup = { entity_set = "hlf_chapters", alternate_key = "hlf_number" } }
"""


@pytest.fixture
def mapping(database: str, tmp_path: Path) -> Path:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(TABLE)
        owner.execute("select dynamics_sync.watch('public.visits')")
    path = tmp_path / "mapping.toml"
    path.write_text(MAPPING)
    return path


async def put(on: Stage, entity_set: str, **attributes: str) -> None:
    """An ordinary POST, as anybody may make one to the simulator."""
    form = {"grant_type": "client_credentials", "client_id": "demo", "client_secret": "demo"}
    form["scope"] = f"{on.simulator.url}/.default"
    async with on.http.post(f"{on.simulator.url}/demo/oauth2/v2.0/token", data=form) as response:
        token = (await response.json())["access_token"]
    address = f"{on.simulator.url}/api/data/v9.2/{entity_set}"
    async with on.http.post(address, json=attributes, headers={"Authorization": f"Bearer {token}"}) as response:
        assert response.status == 204, await response.text()


async def test_a_reference_arrives_once_its_target_is_there(database: str, mapping: Path) -> None:
    team, visit = uuid4(), uuid4()
    async with stage(database, mapping=mapping) as on:
        insert = "insert into public.visits values (%s, %s, 'Oslo 1')"
        await on.user.execute(insert, [visit, team])
        await on.settled()
        ((status, attempts, reason, _),) = await on.queue()
        assert (status, attempts, reason) == ("requires_investigation", 1, "rejected")
        assert await on.records("hlf_visits") == {}

        await put(on, "teams", teamid=str(team))
        await put(on, "hlf_chapters", hlf_number="Oslo 1")
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        held = (await on.records("hlf_visits"))[str(visit)]
        assert held["_hlf_team_value"] == str(team)
        assert held["_hlf_chapter_value"] is not None

        await on.user.execute("update public.visits set team = null, chapter = null")
        await on.settled()
        held = (await on.records("hlf_visits"))[str(visit)]
        assert (held["_hlf_team_value"], held["_hlf_chapter_value"]) == (None, None)
