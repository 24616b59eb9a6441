"""SIGTERM: what is under way ends in order, what is not yet sent is left to the other workers at once."""

from pathlib import Path

from support.commands import worker_process
from support.engine import stage

WAITING = "select record_key, lease_owner, lease_until from dynamics_sync.outbox"


async def test_the_request_in_flight_is_settled_and_a_back_off_is_not_waited_out(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, base_delay_ms="600000") as worker,
    ):
        slow, failing = await on.issue(), await on.issue()
        await on.settled()
        await on.fault(kind="delay", key=slow, seconds=1.5)
        await on.fault(kind="status", status=503, key=failing)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.until_requests(4)
        await worker.says("sync.attempt_failed")

        assert await worker.terminate() == 0

        assert await on.rows(WAITING) == [(failing, None, None)]
        assert [noted["status"] for noted in await on.requests() if slow in noted["keys"]] == [204, 204]
        assert (await on.record(slow) or {})["hlf_status"] == 100000003
        assert worker.events("worker.stopped")
        assert await on.queue() == []


async def test_what_was_claimed_and_not_sent_is_left_to_others_at_once(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, concurrency="40") as worker,
    ):
        for _ in range(300):
            await on.issue()
        await on.settled()
        before = len(await on.requests())
        await on.fault(kind="delay", seconds=1.0)
        await on.user.execute("update public.certifications set status = 'expired'")
        await on.until("select count(*) > 40 from dynamics_sync.outbox where lease_owner is not null")
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


async def test_with_sending_switched_off_changes_wait_nothing_is_asked_and_it_stops(
    database: str, tmp_path: Path
) -> None:
    """R26."""
    async with stage(database, working=False) as on:
        await on.credentials(client_secret="another")
        key = await on.issue()
        async with worker_process(on, database, tmp_path, enabled="off") as worker:
            ready = await worker.answers("ready", 200)
            assert "token" not in ready["checks"]
            assert (await worker.health("circuit"))[1]["state"] == "closed"
            assert worker.events("worker.disabled")
            assert await worker.terminate() == 0
        async with on.http.get(f"{on.simulator.url}/_simulator/requests") as response:
            assert await response.json() == []
        assert await on.rows(WAITING) == [(key, None, None)]
        await on.credentials(client_secret="demo")
        async with worker_process(on, database, tmp_path):
            await on.settled()
        assert await on.record(key) is not None


async def test_with_sending_switched_off_no_dynamics_need_be_named(database: str, tmp_path: Path) -> None:
    """R26."""
    async with stage(database, working=False) as on:
        nothing = {"dynamics_url": "", "tenant_id": "", "client_id": "", "client_secret": ""}
        async with worker_process(on, database, tmp_path, enabled="off", **nothing) as worker:
            await worker.answers("ready", 200)
            assert "SIMULATOR" not in worker.log.read_text()
            assert await worker.terminate() == 0
