"""The commands where there are two targets: each is seen by itself, and what is done to one leaves the other alone."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync.simulator import PORTAL_SECRET
from support.commands import refused, start, worker_process
from support.engine import Stage, stage

Run = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture
async def on(database: str) -> AsyncIterator[Stage]:
    """A portal that refuses two records, in the queue by now; a third one arrived."""
    async with stage(database, portal=True) as staged:
        await staged.issue()
        await staged.settled()
        await staged.fault(kind="status", status=422, path="portal", count=2)
        for _ in range(2):
            await staged.issue()
        await staged.settled()
        yield staged


@pytest.fixture
def command(database: str, tmp_path: Path) -> Run:
    async def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return await start(*words, cwd=tmp_path, database_url=database, **settings)

    return run


PORTAL = {"portal_url": "https://portal.example.org", "portal_secret": PORTAL_SECRET}


async def test_status_tells_of_each_target_whether_or_not_the_settings_name_it(on: Stage, command: Run) -> None:
    alone, both, portal = await asyncio.gather(
        command("status", "--json"),
        command("status", "--json", **PORTAL),
        command("status", "--json", "--target", "portal", **PORTAL),
    )
    document, found, one = (json.loads(done.stdout) for done in (alone, both, portal))
    assert (document.pop("not_in_settings"), found.pop("not_in_settings")) == (["portal"], [])
    assert document == found
    assert (found["queue"], found["circuit"]["state"]) == ({"requires_investigation": 2}, "closed")
    assert found["targets"]["dynamics"]["queue"] == {}
    assert found["targets"]["portal"] == {name: one[name] for name in found["targets"]["portal"]}
    assert one["queue"] == {"requires_investigation": 2}


async def test_opening_one_circuit_leaves_the_other_closed(on: Stage, command: Run) -> None:
    opened = await command("circuit", "open", "--target", "portal", "--yes", "--json", **PORTAL)
    assert json.loads(opened.stdout)["state"] == "open"
    shown, said = await asyncio.gather(
        command("circuit", "show", "--json", **PORTAL), command("circuit", "show", **PORTAL)
    )
    document = json.loads(shown.stdout)
    assert {name: one["state"] for name, one in document["targets"].items()} == {"dynamics": "closed", "portal": "open"}
    assert document["state"] == "closed"
    assert "The circuit is closed." in said.stdout
    assert "The circuit of portal is open." in said.stdout
    assert await on.rows("select target from dynamics_sync.audit") == [("portal",)]


async def test_entries_of_the_portal_are_listed_and_explained_as_such(on: Stage, command: Run) -> None:
    await on.fault(kind="status", status=400, count=1)
    await on.issue()
    await on.settled()
    listed = json.loads((await command("queue", "list", "--json", "--target", "portal", **PORTAL)).stdout)
    assert [entry["target"] for entry in listed] == ["portal", "portal"]
    shown, unknown = await asyncio.gather(
        command("queue", "show", listed[0]["id"]), command("queue", "replay", "--all", "--yes", "--target", "portals")
    )
    assert "The portal refused the record." in " ".join(shown.stdout.split())
    refused(unknown, "There is no target portals in this database. There is dynamics and portal.")
    assert {entry[0] for entry in await on.queue()} == {"requires_investigation"}
    replayed = await command("queue", "replay", "--all", "--yes", "--json")
    assert json.loads(replayed.stdout)["arrived"] == 3


async def test_entries_of_both_are_replayed_together_unless_one_target_is_named(on: Stage, command: Run) -> None:
    await on.fault(kind="status", status=400, count=1)
    await on.issue()
    await on.settled()
    of_dynamics = await command("queue", "replay", "--all", "--target", "dynamics", "--yes", "--json", **PORTAL)
    assert json.loads(of_dynamics.stdout)["arrived"] == 1
    await on.fault(kind="status", status=400, count=1)
    await on.issue()
    await on.settled()
    of_both = json.loads((await command("queue", "replay", "--all", "--yes", "--json", **PORTAL)).stdout)
    assert (of_both["result"], of_both["arrived"], len(of_both["entries"])) == ("replayed", 3, 3)


async def test_the_worker_process_serves_both_and_its_health_page_shows_both(database: str, tmp_path: Path) -> None:
    async with stage(database, portal=True, working=False) as on:
        settings = PORTAL | {"portal_url": on.simulator.url}
        async with worker_process(on, database, tmp_path, **settings) as worker:
            await on.fault(kind="status", status=422, path="portal", count=1)
            await on.issue()
            await on.settled()
            _, circuit = await worker.health("circuit")
            assert circuit["state"] == "closed"
            assert set(circuit["targets"]) == {"dynamics", "portal"}
            assert await worker.terminate() == 0
            assert PORTAL_SECRET.removeprefix("whsec_") not in worker.log.read_text()
