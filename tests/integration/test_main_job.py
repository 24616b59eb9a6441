"""A changed certification reaches Dynamics, or a person knows why not: on a real server, over real sockets."""

import asyncio
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from dynamics_sync.postgres.connections import connect
from support.engine import LAST_DAY, stage

pytestmark = pytest.mark.pooled_too

ACTIVE, EXPIRED, REVOKED = 100000001, 100000003, 100000004


@pytest.mark.every_postgres
async def test_insert_update_and_delete_arrive(database: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        record = await on.record(key)
        assert record is not None
        assert (record["hlf_status"], record["hlf_expireson"], record["statecode"]) == (ACTIVE, LAST_DAY, 0)
        await on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
        await on.settled()
        assert (await on.record(key) or {})["hlf_status"] == EXPIRED
        await on.user.execute("delete from public.certifications where id = %s", [key])
        await on.settled()
        assert (await on.record(key) or {})["statecode"] == 1


async def test_three_503_open_the_circuit_and_queue_one_entry(database: str) -> None:
    """The seed's test (R10), end to end."""
    async with stage(database, cool_down_seconds=60) as on:
        await on.fault(kind="status", status=503)
        with capture_logs() as logs:
            await on.issue()
            await on.settled()
        assert await on.queue() == [("pending_manual_replay", 3, "circuit_open", "http_503")]
        assert len(await on.requests()) == 3
        assert (await on.engine.stores.breaker.state()).value == "open"
        opened = [log for log in logs if log["event"] == "circuit.opened"]
        assert [log["failure_count"] for log in opened] == [3]


async def test_no_request_leaves_while_open_and_one_probe_drains_the_backlog(database: str) -> None:
    async with stage(database, cool_down_seconds=1.5) as on:
        await on.fault(kind="status", status=503)
        await on.issue()
        await on.settled()
        keys = [await on.issue() for _ in range(20)]
        await asyncio.sleep(0.5)
        assert len(await on.requests()) == 3
        await on.lift_faults()
        await on.settled()
        assert all([await on.record(key) for key in keys])
        later = (await on.requests())[3:]
        assert later[0]["done_at"] <= min(noted["at"] for noted in later[1:])


async def test_a_refused_record_is_queued_at_once_fixed_and_replayed(database: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        await on.fault(kind="status", status=400, key=key)
        await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [key])
        await on.settled()
        assert await on.queue() == [("requires_investigation", 1, "rejected", (await on.queue())[0][3])]
        await on.lift_faults()
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        assert (await on.record(key) or {})["hlf_status"] == REVOKED
        assert [entry[0] for entry in await on.queue()] == ["replayed"]
        assert await on.rows("select actor, action from dynamics_sync.audit") == [("tester", "replay")]


async def test_a_newer_change_that_gets_through_supersedes_the_entry(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="status", status=400, count=1)
        key = await on.issue()
        await on.settled()
        await on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
        await on.settled()
        assert [entry[0] for entry in await on.queue()] == ["superseded"]


async def test_a_lost_answer_is_sent_again(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="reset_after_write", count=1)
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        assert await on.queue() == []


@pytest.mark.parametrize("status", [429, 503])
async def test_what_dynamics_asks_for_is_waited(database: str, status: int) -> None:
    async with stage(database) as on:
        await on.fault(kind="status", status=status, retry_after=1, count=1)
        key = await on.issue()
        await on.settled()
        first, second = await on.requests()
        assert second["at"] - first["done_at"] >= 0.95
        assert await on.record(key) is not None
        assert await on.queue() == []


async def test_a_login_page_is_no_success(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="garbled", count=1)
        await on.issue()
        await on.settled()
        assert await on.queue() == [("requires_investigation", 1, "contract_mismatch", "contract_mismatch")]


async def test_a_revoked_token_is_renewed(database: str) -> None:
    async with stage(database) as on:
        await on.issue()
        await on.settled()
        async with on.http.post(f"{on.simulator.url}/_simulator/credentials", json={"revoke": True}) as response:
            assert response.status < 300, await response.text()
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        assert await on.queue() == []


async def test_many_changes_of_a_waiting_record_cost_one_request(database: str) -> None:
    async with stage(database, working=False) as on:
        key = await on.issue()
        for status in ("expiring", "expired", "revoked"):
            await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])
        job = asyncio.create_task(on.engine.worker.run())
        await on.settled()
        assert len(await on.requests()) == 1
        on.engine.worker.stop()
        await job


async def test_a_record_under_change_never_has_two_requests_and_ends_newest(database: str) -> None:
    async with stage(database) as on:
        keys = [await on.issue() for _ in range(10)]
        for status in ("expiring", "expired", "active", "revoked", "expired") * 4:
            for key in keys:
                await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])
        await on.settled()
        assert [(await on.record(key) or {})["hlf_status"] for key in keys] == [EXPIRED] * 10
        for key in keys:
            spans = sorted((noted["at"], noted["done_at"]) for noted in await on.requests() if key in noted["keys"])
            assert all(left[1] <= right[0] for left, right in pairwise(spans))


async def test_a_locked_queue_leaves_the_change_in_the_outbox_with_an_event(database: str) -> None:
    """R13."""
    async with stage(database) as on:
        await on.fault(kind="status", status=400, count=2)
        with capture_logs() as logs:
            async with on.user.transaction():
                await on.user.execute("lock table public.dynamics_sync_retry_queue in access exclusive mode")
                async with await connect(database) as other:
                    await other.execute(
                        "insert into public.certifications (peer_mentor_id, chapter_id) values (%s, %s)",
                        [on.mentor, on.chapter],
                    )
                async with asyncio.timeout(10):
                    while not any(log["event"] == "queue.insert_failed" for log in logs):
                        await asyncio.sleep(0.05)
                assert (await on.rows("select count(*) from dynamics_sync.outbox"))[0][0] == 1
        await on.settled()


async def test_a_record_that_somebody_has_locked_while_it_is_given_up_waits_for_no_lease(database: str) -> None:
    async with stage(database, base_delay_ms=300) as on:
        await on.fault(kind="status", status=503)
        key = await on.issue()
        await on.until_requests(1)
        async with on.user.transaction():
            await on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
            await on.user.execute("select dynamics_sync.mark_dirty('dynamics', 'public.certifications', %s)", [key])
            async with await connect(database) as other, asyncio.timeout(10):
                while not await (await other.execute("select 1 from public.dynamics_sync_retry_queue")).fetchone():
                    await asyncio.sleep(0.05)
        await on.lift_faults()
        await on.engine.stores.breaker.force_closed()
        await on.settled()
        assert (await on.record(key) or {})["hlf_status"] == EXPIRED


async def test_what_the_mapping_cannot_send_is_queued_and_keeps_nobody_waiting(database: str) -> None:
    async with stage(database) as on:
        async with on.user.transaction():
            await on.user.execute("select dynamics_sync.mark_dirty('dynamics', 'public.unmapped', '1')")
            await on.user.execute("select dynamics_sync.mark_dirty('dynamics', 'public.certifications', 'no uuid')")
            key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        assert ("requires_investigation", 0, "unsendable", "mapping.unknown_table") in await on.queue()
