"""The contract of the outbox. There is one kind: a program without a database gives its operations to the service
itself, and nothing is claimed."""

import asyncio

import pytest
from structlog.testing import capture_logs

from dynamics_sync.core.operation import Applied, FailedAttempt
from dynamics_sync.postgres.connections import Connection, Pool, connect
from dynamics_sync.postgres.outbox import PostgresOutbox
from support.clock import FakeClock
from support.database_clock import DatabaseClock
from support.outbox import LEASE_SECONDS, change, claim, claim_one, waiting

pytestmark = pytest.mark.every_postgres

APPLIED = Applied(1, etag="W/1")


class TestClaim:
    async def test_least_tried_first_then_oldest(self, user: Connection, outbox: PostgresOutbox) -> None:
        await change(user, "oldest", "older", "newest")
        await outbox.release(await claim_one(outbox), attempts=1)
        assert list(await claim(outbox, 2)) == ["older", "newest"]
        assert list(await claim(outbox)) == ["oldest"]

    async def test_it_says_what_changed_and_how_often_it_was_tried(
        self, user: Connection, outbox: PostgresOutbox
    ) -> None:
        await change(user, "a", columns=("status",))
        await change(user, "a", columns=("kind",))
        await outbox.release(await claim_one(outbox), attempts=2)
        operation = await claim_one(outbox)
        assert (operation.changed_columns, operation.attempts) == (("kind", "status"), 2)
        assert operation.version == (await waiting(user))["a"].version

    async def test_no_record_is_claimed_twice_by_many_at_once(self, user: Connection, outbox: PostgresOutbox) -> None:
        await change(user, *(str(number) for number in range(100)))
        claims = await asyncio.gather(*(claim(outbox, 7) for _ in range(30)))
        claimed = [key for keys in claims for key in keys]
        assert len(claimed) == len(set(claimed))
        rest = await claim(outbox)
        assert len(claimed) + len(rest) == 100

    async def test_a_users_open_transaction_keeps_back_its_own_records_only(
        self, user: Connection, outbox: PostgresOutbox
    ) -> None:
        await change(user, "locked", "free")
        async with user.transaction(), asyncio.timeout(10):
            await change(user, "locked")
            assert list(await claim(outbox)) == ["free"]
        assert list(await claim(outbox)) == ["locked"]

    async def test_targets_do_not_see_each_other(self, user: Connection, pool: Pool) -> None:
        await change(user, "a")
        assert await claim(PostgresOutbox(pool, "elsewhere", LEASE_SECONDS)) == {}

    async def test_it_brings_the_circuit_along(self, user: Connection, outbox: PostgresOutbox) -> None:
        await user.execute("insert into dynamics_sync.circuit (target, failure_count) values ('dynamics', 2)")
        assert (await outbox.claim(1)).reading.circuit.failure_count == 2


class TestLease:
    async def test_it_keeps_others_away_until_it_ends(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        await change(user, "a")
        await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS - 10)
        assert await claim(other_outbox) == {}
        await database_clock.advance(11)
        assert list(await claim(other_outbox)) == ["a"]

    async def test_renewed_it_lasts_as_long_again(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS - 10)
        assert await outbox.renew(operation)
        await database_clock.advance(LEASE_SECONDS - 10)
        assert await claim(other_outbox) == {}

    async def test_lost_it_cannot_be_renewed_nor_released(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        await change(user, "a")
        lost = await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        assert not await outbox.renew(lost)
        await outbox.release(lost, attempts=3)
        assert (await waiting(user))["a"].is_leased
        assert await other_outbox.renew(held)
        assert (await waiting(user))["a"].attempts == 0


class TestSettle:
    async def test_an_unchanged_record_leaves_the_outbox(self, user: Connection, outbox: PostgresOutbox) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await outbox.settle([(operation, APPLIED)])
        assert await waiting(user) == {}
        known = await user.execute("select record_key, applied_version, etag from dynamics_sync.record_state")
        assert await known.fetchall() == [("a", operation.version, "W/1")]

    async def test_a_record_changed_meanwhile_stays_and_is_free_at_once(
        self, user: Connection, outbox: PostgresOutbox
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await change(user, "a")
        await outbox.settle([(operation, APPLIED)])
        newer = await claim_one(outbox)
        assert newer.version > operation.version
        await outbox.settle([(newer, APPLIED)])
        assert await waiting(user) == {}

    async def test_a_record_that_another_worker_has_by_now_is_sent_once_more(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        """What came late may have overwritten what the other one wrote, or is about to."""
        await change(user, "a")
        late = await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        with capture_logs() as logs:
            await outbox.settle([(late, APPLIED)])
        assert [log["event"] for log in logs] == ["lease.lost"]
        assert (await waiting(user))["a"].is_leased
        await other_outbox.settle([(held, APPLIED)])
        assert (await claim_one(outbox)).version > held.version

    async def test_a_record_that_another_worker_has_settled_is_sent_once_more(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        await change(user, "a")
        late = await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS + 1)
        await other_outbox.settle([(await claim_one(other_outbox), APPLIED)])
        assert await waiting(user) == {}
        await outbox.settle([(late, APPLIED)])
        assert (await claim_one(outbox)).version > late.version

    async def test_many_at_once_each_by_its_own_fate(
        self, user: Connection, outbox: PostgresOutbox, other_outbox: PostgresOutbox, database_clock: DatabaseClock
    ) -> None:
        await change(user, "lost")
        claimed = await claim(outbox)
        await database_clock.advance(LEASE_SECONDS + 1)
        await claim_one(other_outbox)
        await change(user, "unchanged", "changed")
        claimed |= await claim(outbox)
        await change(user, "changed")
        await outbox.settle([(operation, APPLIED) for operation in claimed.values()])
        left = await waiting(user)
        assert set(left) == {"lost", "changed"}
        assert (left["lost"].is_leased, left["changed"].is_leased) == (True, False)
        assert all(left[key].version > claimed[key].version for key in left)

    async def test_it_waits_for_a_users_transaction_on_the_same_record(
        self, database: str, user: Connection, outbox: PostgresOutbox
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        async with await connect(database) as holder, holder.transaction():
            await change(holder, "a")
            settling = asyncio.create_task(outbox.settle([(operation, APPLIED)]))
            await until_noted(user)
            assert not settling.done()
        await settling
        assert not (await waiting(user))["a"].is_leased


class TestRelease:
    async def test_it_keeps_the_count_and_the_time_line(self, user: Connection, outbox: PostgresOutbox) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await outbox.release(operation, attempts=2, failures=[FailedAttempt(2, FakeClock().now(), "http_503", 4000)])
        row = (await waiting(user))["a"]
        assert (row.version, row.attempts, row.is_leased) == (operation.version, 2, False)
        attempts = await user.execute(
            "select attempt_number, error_code, delay_ms, version from dynamics_sync.attempts"
        )
        assert await attempts.fetchall() == [(2, "http_503", 4000, operation.version)]

    async def test_of_a_record_changed_meanwhile_it_keeps_the_newer_version(
        self, user: Connection, outbox: PostgresOutbox
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await change(user, "a")
        await outbox.release(operation, attempts=1)
        newer = await claim_one(outbox)
        assert newer.version > operation.version
        assert newer.attempts == 1


async def until_noted(user: Connection) -> None:
    """Until a settlement was tried: it notes the state even where it finds the row locked."""
    async with asyncio.timeout(10):
        while not await (await user.execute("select from dynamics_sync.record_state")).fetchall():
            await asyncio.sleep(0.01)
