"""What Dynamics has already costs no request, as long as it is certain that it has it."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

import pytest

from support.by_hand import hand
from support.engine import Stage, engine_settings, stage, working
from support.webhooks_room import room

ACTIVE, EXPIRING = 100000001, 100000002
SHIPPED = files("dynamics_sync.certifications").joinpath("mapping.toml")


async def change(on: Stage, key: str, status: str) -> None:
    await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])


async def touch(on: Stage, key: str) -> None:
    """A change that is taken back before anybody sees it."""
    async with on.user.transaction():
        await change(on, key, "revoked")
        await change(on, key, "active")


async def synchronised(on: Stage) -> str:
    key = await on.issue()
    await on.settled()
    return key


async def status(on: Stage, key: str) -> object:
    return (await on.record(key) or {}).get("hlf_status")


@pytest.mark.every_postgres
async def test_a_change_that_was_taken_back_costs_no_request(database: str) -> None:
    async with stage(database) as on:
        key = await synchronised(on)
        state = "select applied_version, etag, payload_hash, applied_at from dynamics_sync.record_state"
        before = await on.rows(state)
        await touch(on, key)
        await on.settled()
        assert len(await on.writes()) == 1
        assert await on.rows(state) == before


async def test_a_hundred_changes_while_it_waits_cost_one_request(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="delay", seconds=0.5, count=1)
        key = await on.issue()
        await on.until_requests(1)
        for number in range(100):
            await change(on, key, "expired" if number % 2 == 0 else "expiring")
        await on.settled()
        assert len(await on.writes()) == 2
        assert await status(on, key) == EXPIRING


async def resynced(on: Stage, key: str) -> None:
    await on.user.execute("select dynamics_sync.resync('public.certifications')")


async def refused(on: Stage, key: str) -> None:
    """Nobody knows what a plug-in did before it refused."""
    await on.fault(kind="status", status=400, count=1)
    await change(on, key, "expiring")
    await on.settled()
    await change(on, key, "active")


async def replayed(on: Stage, key: str) -> None:
    """Refused again and again, and taken back past the triggers: whoever replays it means it."""
    await on.fault(kind="status", status=400, count=1)
    await change(on, key, "expiring")
    await on.settled()
    await on.user.execute("set session_replication_role = replica")
    await change(on, key, "active")
    await on.user.execute("set session_replication_role = origin")
    queue = on.engine.stores.queue
    assert len(await queue.replay([entry.id for entry in await queue.entries()], "tester")) == 1


async def unanswered(on: Stage, key: str) -> None:
    """It was sent again at once, and the lost request may still take effect."""
    await on.fault(kind="reset_after_write", count=1)
    await on.user.execute("select dynamics_sync.resync('public.certifications')")
    await on.settled()
    await touch(on, key)


async def repaired(on: Stage, key: str) -> None:
    """Somebody changed it there."""
    await (await hand(on)).edit(key, hlf_status=EXPIRING)
    (report,) = await on.engine.reconciliation.reconciler.run(repair=True)
    assert report.repaired == 1


@pytest.mark.parametrize("doubt", [resynced, refused, replayed, unanswered, repaired])
async def test_where_it_is_not_certain_the_record_is_sent(
    database: str, doubt: Callable[[Stage, str], Awaitable[None]]
) -> None:
    """Its row is as it was when it was sent last."""
    async with stage(database) as on:
        key = await synchronised(on)
        await doubt(on, key)
        await on.settled()
        last = (await on.writes())[-1]
        assert (last["method"], last["keys"], last["status"]) == ("PATCH", [key], 204)
        assert await status(on, key) == ACTIVE
        count = len(await on.writes())
        if doubt is not unanswered:
            await touch(on, key)
            await on.settled()
            assert len(await on.writes()) == count, "now it is certain"


async def test_what_somebody_changed_there_is_changed_back(database: str) -> None:
    """A webhook told of it, so Dynamics no longer holds what we sent last."""
    async with room(database) as told:
        key = await told.synchronised()
        await (await hand(told.on)).edit(key, hlf_status=EXPIRING)
        await told.told(await told.event(key, hlf_status=EXPIRING))
        assert (await told.row(key))[0] == "expiring"
        await change(told.on, key, "active")
        await told.on.settled()
        assert await status(told.on, key) == ACTIVE


async def test_another_environment_has_nothing_yet(database: str) -> None:
    """The digest says what was written, and where."""
    async with stage(database) as on:
        key = await synchronised(on)
    async with stage(database) as elsewhere:
        await touch(elsewhere, key)
        await elsewhere.settled()
        assert await status(elsewhere, key) == ACTIVE


async def test_with_another_mapping_another_body_is_sent(database: str, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(SHIPPED.read_text().replace(f"active = {ACTIVE}", f"active = {EXPIRING}"))
    async with stage(database) as on:
        key = await synchronised(on)
        on.engine.stop()
        async with working(engine_settings(database, on.simulator.url, mapping=mapping), database):
            await touch(on, key)
            await on.settled()
        assert await status(on, key) == EXPIRING
