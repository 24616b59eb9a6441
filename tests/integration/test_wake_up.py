"""NOTIFY only wakes: what it misses, polling finds; and a lost listener comes back."""

import asyncio

import pytest

from dynamics_sync.postgres import listener
from support.engine import Stage, stage

LISTENER = """
select pid from pg_stat_activity
where datname = current_database() and query ~ 'insert into dynamics_sync.attention' and pid <> pg_backend_pid()
"""


async def listener_pid(on: Stage) -> int:
    """The listening connection's, once it listens."""
    await on.until(f"select exists ({LISTENER})")
    return int((await on.rows(LISTENER))[0][0])


async def test_without_a_listener_changes_are_found_by_polling(database: str) -> None:
    async with stage(database, working=False) as on:
        job = asyncio.create_task(on.engine.worker.run())
        for _ in range(3):
            key = await on.issue()
            await on.settled()
            assert await on.record(key) is not None
        on.engine.worker.stop()
        await job


@pytest.mark.direct
async def test_a_change_that_notifies_nobody_is_found_by_polling(database: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        await listener_pid(on)
        await on.user.execute("select dynamics_sync.send_again('dynamics', 'public.certifications', %s)", [key])
        await on.settled()
        assert len(await on.requests()) == 2


@pytest.mark.direct
async def test_a_notification_wakes_a_worker_that_hardly_ever_polls(database: str) -> None:
    async with stage(database, poll_seconds=600) as on:
        await listener_pid(on)
        for _ in range(3):
            await on.issue()
            await on.settled()


@pytest.mark.direct
async def test_a_lost_listener_comes_back_and_what_it_missed_is_found(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing polls here: without the listener nothing would be found."""
    monkeypatch.setattr(listener, "RECONNECT_SECONDS", 0.3)
    async with stage(database, poll_seconds=600) as on:
        key = await on.issue()
        await on.settled()
        lost = await listener_pid(on)
        await on.user.execute("select pg_terminate_backend(%s)", [lost])
        await on.user.execute("select dynamics_sync.send_again('dynamics', 'public.certifications', %s)", [key])
        await on.settled()
        assert len(await on.requests()) == 2
        assert await listener_pid(on) != lost
        woken = await on.issue()
        await on.settled()
        assert await on.record(woken) is not None
