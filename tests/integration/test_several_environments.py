"""Several Dynamics environments share a database: each has its own worker, circuit and pace; none waits for another."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync.core.errors import ConfigurationError, MappingError
from dynamics_sync.settings import load_settings
from support.commands import refused, start, worker_processes
from support.engine import Stage, stage
from support.webhooks import option
from support.webhooks_room import STATUS, room

US = "dynamics_us"
WAITING = 20_000

FILL = """
insert into dynamics_sync.outbox (target, source_table, record_key, operation_type)
select 'dynamics', 'public.certifications', gen_random_uuid()::text, 'upsert' from generate_series(1, %s)
"""

Run = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture
def command(database: str, tmp_path: Path) -> Run:
    async def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return await start(*words, cwd=tmp_path, database_url=database, **settings)

    return run


async def watch(on: Stage) -> None:
    await on.user.execute("select dynamics_sync.watch('public.certifications', 'id', %s)", [US])


@asynccontextmanager
async def environments(database: str, **settings: Any) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two of them, on one database."""
    async with stage(database, **settings) as eu:
        await watch(eu)
        async with stage(database, target=US, **settings) as us:
            yield eu, us


async def status(on: Stage, key: str) -> int | None:
    return ((await on.record(key)) or {}).get("hlf_status")


async def test_every_change_reaches_each_environment(database: str, tmp_path: Path) -> None:
    for name in ("eu", "us"):
        (tmp_path / name).mkdir()
    async with (
        environments(database, working=False) as (eu, us),
        worker_processes(eu, database, tmp_path / "eu", 1),
        worker_processes(us, database, tmp_path / "us", 1, target=US),
    ):
        keys = [await eu.issue() for _ in range(10)]
        await eu.user.execute("update public.certifications set status = 'revoked' where id = %s", [keys[0]])
        await eu.settled()
        wanted = [STATUS["revoked"]] + [STATUS["active"]] * 9
        for on in (eu, us):
            assert [await status(on, key) for key in keys] == wanted
            assert {key for noted in await on.writes() for key in noted["keys"]} == {*keys}
        addresses = [on.simulator.url.removeprefix("http://") for on in (eu, us)]
        named = "select target, address from dynamics_sync.environments order by target"
        assert await eu.rows(named) == [("dynamics", addresses[0]), (US, addresses[1])]


async def test_one_that_is_down_with_thousands_waiting_keeps_no_other_from_its_ten(database: str) -> None:
    async with environments(database, cool_down_seconds=600) as (eu, us):
        await eu.fault(kind="status", status=503)
        await eu.issue()
        await eu.until("select count(*) = 1 from dynamics_sync.circuit where target = 'dynamics' and state = 'open'")
        await eu.user.execute(FILL, [WAITING])
        pace = "select * from dynamics_sync.pace where target = 'dynamics'"
        before = (await eu.rows(pace), len(await eu.requests()))

        keys = [await us.issue() for _ in range(10)]
        await us.until(
            f"select not exists (select from dynamics_sync.changes where target = '{US}') "
            f"and not exists (select from dynamics_sync.outbox where target = '{US}')"
        )
        assert [await status(us, key) for key in keys] == [STATUS["active"]] * 10
        assert (await us.engine.stores.breaker.state()).value == "closed"
        assert (await eu.engine.stores.breaker.state()).value == "open"
        assert (await eu.rows(pace), len(await eu.requests())) == before
        assert await us.rows("select count(*) from dynamics_sync.pace where target = %s", US) == [(1,)]
        of_eu = (
            "select (select count(*) from dynamics_sync.outbox) + (select count(*) from dynamics_sync.changes) "
            "+ (select count(*) from public.dynamics_sync_retry_queue)"
        )
        assert await eu.rows(of_eu) == [(WAITING + 11,)]


async def test_what_is_not_watched_for_an_environment_is_named_with_what_to_do(database: str) -> None:
    with pytest.raises(MappingError, match=f"not captured for {US}: run `select dynamics_sync.watch.*'{US}'"):
        async with stage(database, target=US):
            pass


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("portal", "portal is the portal's name"),
        ("Dynamics", "up to 30 small letters"),
        ("us'; drop table x", "up to 30 small letters"),
        ("2nd", "a letter first"),
        ("a" * 31, "up to 30"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"DYNAMICS_SYNC_TARGET: .*{why}"):
        load_settings(target=name)


async def test_commands_mean_the_environment_of_their_settings_and_show_the_others(database: str, command: Run) -> None:
    async with environments(database) as (eu, us):
        await eu.fault(kind="status", status=400, count=1)
        key = await eu.issue()
        await eu.settled()
        opened = await command("circuit", "open", "--yes", target=US)
        assert f"The circuit of {US} is open." in opened.stdout
        assert await eu.rows("select target from dynamics_sync.circuit where state = 'open'") == [(US,)]

        told, seen, listed = await asyncio.gather(
            command("status", "--json", target=US), command("status", target=US), command("queue", "list", target=US)
        )
        found = json.loads(told.stdout)
        assert (found["circuit"]["state"], found["not_in_settings"]) == ("open", ["dynamics"])
        assert {name: one["queue"] for name, one in found["targets"].items()} == {
            US: {},
            "dynamics": {"requires_investigation": 1},
        }
        assert "not in these settings" in seen.stdout
        assert "to dynamics" in listed.stdout
        refused(
            await command("queue", "list", "--target", "dynamics_asia", target=US),
            f"There is no target dynamics_asia in this database. There is {US} and dynamics.",
        )

        replayed = await command("queue", "replay", "--all", "--yes", "--json", target=US)
        assert json.loads(replayed.stdout)["arrived"] == 1
        assert await status(eu, key) == await status(us, key) == STATUS["active"]


async def test_a_name_stands_for_one_environment(database: str, command: Run) -> None:
    """Where a second one is given no name of its own, each change would reach one of the two."""
    async with environments(database, working=False) as (eu, us):

        def against(on: Stage, **settings: str) -> dict[str, str]:
            given = {"tenant_id": "demo", "client_id": "demo", "client_secret": "demo"}
            return given | {"dynamics_url": on.simulator.url, "authority_url": on.simulator.url} | settings

        assert (await command("reconcile", **against(eu))).returncode == 0
        wrong = f"the target dynamics is the Dynamics environment {eu.simulator.url.removeprefix('http://')}"
        refused(await command("reconcile", **against(us)), wrong, "DYNAMICS_SYNC_TARGET")
        refused(await command("run", "--no-web", **against(us)), wrong)
        refused(await command("run", "--no-web"), wrong, "DYNAMICS_SYNC_DYNAMICS_URL", "simulator")
        assert (await command("reconcile", **against(us, target=US))).returncode == 0
        assert await us.writes() == []

        await eu.user.execute("delete from dynamics_sync.environments where target = 'dynamics'")
        assert (await command("reconcile", **against(us))).returncode == 0


async def test_what_one_environment_tells_reaches_the_others_and_does_not_come_back(
    database: str, command: Run
) -> None:
    async with stage(database) as eu:
        await watch(eu)
        async with room(database, target=US) as us:
            key = await us.synchronised()
            before = len(await us.on.writes())
            await us.told(await us.event(key, hlf_status=option(STATUS["revoked"])))
            await eu.settled()
            assert await us.row(key) == ("revoked", "2099-01-31")
            assert await status(eu, key) == STATUS["revoked"]
            assert len(await us.on.writes()) == before
            assert await us.on.rows("select target, status from dynamics_sync.inbox") == [(US, "applied")]

            await us.told(await us.event(key, hlf_status="Kari Nordmann"))
            everywhere = json.loads((await command("inbox", "list", "--json")).stdout)
            assert [entry["target"] for entry in everywhere["deliveries"]] == [US]
            assert json.loads((await command("inbox", "replay", "--all", "--yes", "--json")).stdout)["deliveries"]
