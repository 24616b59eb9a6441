"""A certification's last day passes: the mentor leaves the listing, and Dynamics hears of it, once, if it can (R20)."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dynamics_sync.certifications import sweep
from support.commands import worker_processes
from support.database_clock import DatabaseClock
from support.engine import Stage, stage

SWEEP_OFTEN = "from dynamics_sync.certifications import sweep; sweep.EVERY_SECONDS = 0.05"
LAST_DAY = str((datetime.now(UTC) + timedelta(days=40)).date())
DAY = 86_400.0
ACTIVE, EXPIRING, EXPIRED = 100000001, 100000002, 100000003
IDS = "select last_value - (not is_called)::int from dynamics_sync.outbox_ids"
"""One for each change that a claim finds."""
ALL_ARE = "select bool_and(status = '{}') from public.certifications"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "EVERY_SECONDS", 0.05)


async def public_sees(on: Stage) -> list[str]:
    """The names that anybody sees."""
    async with on.user.transaction():
        await on.user.execute("set local role anon")
        return [name for (name,) in await on.rows("select display_name from public.public_peer_mentors")]


async def written(on: Stage) -> int:
    """Requests that write. Where a day passes, reconciliation reads, too."""
    return sum(noted["method"] == "PATCH" for noted in await on.requests())


async def status_in_dynamics(on: Stage, key: str) -> int | None:
    return (await on.record(key) or {}).get("hlf_status")


async def become(on: Stage, status: str) -> None:
    """Until the sweep has moved all certifications there, and all is sent."""
    await on.until(ALL_ARE.format(status))
    await on.settled()


async def test_it_expires_in_two_steps_and_dynamics_hears_of_both(database: str, database_clock: DatabaseClock) -> None:
    async with stage(database) as on:
        key = await on.issue(expires_on=LAST_DAY)
        await on.settled()
        assert await status_in_dynamics(on, key) == ACTIVE
        await database_clock.advance(20 * DAY)
        await become(on, "expiring")
        assert await status_in_dynamics(on, key) == EXPIRING
        assert await public_sees(on) == ["Kari Nordmann"]
        await database_clock.advance(30 * DAY)
        await become(on, "expired")
        assert await status_in_dynamics(on, key) == EXPIRED
        assert await public_sees(on) == []
        assert await written(on) == 3


async def test_with_dynamics_down_the_mentor_leaves_the_listing_all_the_same(
    database: str, database_clock: DatabaseClock
) -> None:
    async with stage(database, cool_down_seconds=3600) as on:
        key = await on.issue(expires_on=LAST_DAY)
        await on.settled()
        assert await public_sees(on) == ["Kari Nordmann"]
        await on.fault(kind="status", status=503)
        await database_clock.advance(50 * DAY)
        assert await public_sees(on) == []
        await on.until("select count(*) = 1 from dynamics_sync.circuit where state = 'open'")
        await on.until(ALL_ARE.format("expired"))
        await on.settled()  # what an open circuit has cost three requests waits for a person
        assert await status_in_dynamics(on, key) == ACTIVE
        assert await on.queue() == [("pending_manual_replay", 3, "circuit_open", "http_503")]
        await on.lift_faults()
        await database_clock.advance(3600)
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        assert await status_in_dynamics(on, key) == EXPIRED
        assert await public_sees(on) == []


async def test_after_days_of_downtime_it_expires_in_one_step(database: str, database_clock: DatabaseClock) -> None:
    async with stage(database) as on:
        key = await on.issue(expires_on=LAST_DAY)
        await on.settled()
    await database_clock.advance(100 * DAY)
    async with stage(database) as on:
        assert await public_sees(on) == []
        await become(on, "expired")
        assert await status_in_dynamics(on, key) == EXPIRED
        assert await written(on) == 1


async def test_with_several_processes_each_is_moved_once(
    database: str, database_clock: DatabaseClock, tmp_path: Path
) -> None:
    async with stage(database, working=False) as on, worker_processes(on, database, tmp_path, 2, first=SWEEP_OFTEN):
        ((before,),) = await on.rows(IDS)
        keys = [await on.issue(expires_on=LAST_DAY) for _ in range(30)]
        await on.settled()
        for days, status in ((20, "expiring"), (30, "expired")):
            await database_clock.advance(days * DAY)
            await become(on, status)
        assert await on.rows(IDS) == [(before + 3 * len(keys),)]
        requests = Counter(key for request in await on.requests() for key in request["keys"])
        assert requests == dict.fromkeys(keys, 3)
