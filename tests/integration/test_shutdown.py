"""SIGTERM: what is under way ends in order, what is not yet sent is left to the other workers at once."""

from pathlib import Path

import pytest

from dynamics_sync.simulator.limits import Limits
from support.commands import worker_process
from support.engine import stage

WAITING = """
select record_key, lease_owner, lease_until from dynamics_sync.outbox
union all
select key, lease_owner, lease_until from dynamics_sync.changes, unnest(record_keys) as key
"""
MANY_ARE_CLAIMED = """
select (select count(*) from dynamics_sync.outbox where lease_owner is not null)
  + (select coalesce(sum(records), 0) from dynamics_sync.changes where is_taken) > 40
"""


@pytest.mark.pooled_too
async def test_the_request_in_flight_is_settled_and_a_back_off_is_not_waited_out(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, base_delay_ms="600000") as worker,
    ):
        slow, failing, *_ = [await on.issue() for _ in range(20)]  # enough for a pace of several at once
        await on.settled()
        await on.fault(kind="delay", key=slow, seconds=1.5)
        await on.fault(kind="status", status=503, key=failing)
        await on.user.execute(
            "update public.certifications set status = 'expired' where id = any(%s::uuid[])", [[slow, failing]]
        )
        await on.until_requests(22)
        await worker.says("sync.attempt_failed")

        assert await worker.terminate() == 0

        assert await on.rows(WAITING) == [(failing, None, None)]
        assert [noted["status"] for noted in await on.requests() if slow in noted["keys"]] == [204, 204]
        assert (await on.record(slow) or {})["hlf_status"] == 100000003
        assert worker.events("worker.stopped")
        assert await on.queue() == []


async def test_what_was_claimed_and_not_sent_is_left_to_others_at_once(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False, simulated={"limits": Limits(dop_hint=50)}) as on,
        worker_process(on, database, tmp_path, concurrency="40") as worker,
    ):
        for _ in range(300):
            await on.issue()
        await on.settled()
        before = len(await on.requests())
        await on.fault(kind="delay", seconds=1.0)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.until(MANY_ARE_CLAIMED)
        await on.until_requests(before + 40)

        assert await worker.terminate() == 0

        waiting = await on.rows(WAITING)
        assert {(owner, until) for _, owner, until in waiting} == {(None, None)}
        assert len(waiting) == 300 - (len(await on.requests()) - before)


async def test_an_idle_worker_stops(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, poll_seconds="600") as worker,
    ):
        assert await worker.terminate() == 0
        assert worker.events("worker.stopped")


async def test_a_worker_that_waits_for_an_open_circuit_stops(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, base_delay_ms="10", poll_seconds="600") as worker,
    ):
        await on.fault(kind="status", status=503)
        await on.issue()
        await worker.says("circuit.opened")
        assert (await worker.health("circuit"))[1]["state"] == "open"
        assert await worker.terminate() == 0
