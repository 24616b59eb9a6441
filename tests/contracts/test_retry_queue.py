"""The contract of the retry queue, in memory and in PostgreSQL, and what only a stored one offers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import Applied, FailedAttempt, FailureReason, QueueStatus, SyncOperation
from dynamics_sync.postgres.connections import Connection, Pool, connect, make_pool
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue, QueueEntry
from dynamics_sync.sync.memory import InMemoryRetryQueue
from dynamics_sync.sync.ports import Failure, RetryQueue
from support.clock import FakeClock
from support.database_clock import DatabaseClock
from support.outbox import LEASE_SECONDS, TABLE, change, claim, claim_one, waiting

APPLIED = Applied(1)


def failure_of(operation: SyncOperation, attempt_count: int = 3) -> Failure:
    failed = FailedAttempt(attempt_count, FakeClock().now(), "http_503", 0)
    return Failure(operation, FailureReason.RETRIES_EXHAUSTED, "http_503", attempt_count, (failed,))


def of_record(key: str, target: str = "dynamics") -> SyncOperation:
    return SyncOperation(source_table=TABLE, record_key=key, target=target)


@dataclass(frozen=True)
class Kept:
    """A queue, and a look at what it keeps: key and attempt count by id."""

    queue: RetryQueue
    look: Callable[[], Awaitable[dict[str, tuple[str, int]]]]


@pytest.fixture
async def kept(place: str | None) -> AsyncIterator[Kept]:
    """A retry queue of each kind."""
    if place is None:
        in_memory = InMemoryRetryQueue()

        async def look() -> dict[str, tuple[str, int]]:
            return {id: (entry.operation.record_key, entry.attempt_count) for id, entry in in_memory.entries.items()}

        yield Kept(in_memory, look)
        return
    async with make_pool(place, 10) as pool:
        stored = PostgresRetryQueue(pool)

        async def look() -> dict[str, tuple[str, int]]:
            return {str(entry.id): (entry.record_key, entry.attempt_count) for entry in await stored.entries()}

        yield Kept(stored, look)


class TestEveryQueue:
    async def test_an_entry_can_be_found_by_the_id_that_was_given(self, kept: Kept) -> None:
        entry_id = await kept.queue.add(failure_of(of_record("a")))
        assert await kept.look() == {entry_id: ("a", 3)}

    async def test_a_record_that_fails_again_brings_its_entry_up_to_date(self, kept: Kept) -> None:
        first = await kept.queue.add(failure_of(of_record("a")))
        second = await kept.queue.add(failure_of(of_record("a"), attempt_count=4))
        assert first == second
        assert await kept.look() == {first: ("a", 4)}

    async def test_records_and_targets_have_entries_of_their_own(self, kept: Kept) -> None:
        records = [of_record("a"), of_record("b"), of_record("a", target="elsewhere")]
        assert len({await kept.queue.add(failure_of(record)) for record in records}) == 3

    async def test_many_failures_of_one_record_at_once_make_one_entry(self, kept: Kept) -> None:
        ids = await asyncio.gather(*(kept.queue.add(failure_of(of_record("a"))) for _ in range(10)))
        assert len(set(ids)) == 1
        assert len(await kept.look()) == 1


@pytest.fixture
def queue(pool: Pool) -> PostgresRetryQueue:
    return PostgresRetryQueue(pool)


async def the_entry(queue: PostgresRetryQueue) -> QueueEntry:
    (entry,) = await queue.entries()
    return entry


async def until_somebody_waits_for_a_lock(user: Connection) -> None:
    waits = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while not await (await user.execute(waits)).fetchall():
            await asyncio.sleep(0.01)


async def failed(user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue, *keys: str) -> list[UUID]:
    """Records that were changed, tried and given up; their entries."""
    await change(user, *keys)
    claimed = await claim(outbox)
    return [UUID(await queue.add(failure_of(claimed[key]))) for key in keys]


@pytest.mark.every_postgres
class TestGivingUp:
    """An operation claimed from an outbox leaves it in the same transaction. In memory nothing is claimed."""

    async def test_the_record_leaves_the_outbox_for_the_queue(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        await failed(user, outbox, queue, "a")
        assert await waiting(user) == {}
        entry = await the_entry(queue)
        assert entry.status == QueueStatus.PENDING_MANUAL_REPLAY
        assert [attempt.attempt_number for attempt in await queue.time_line(entry)] == [3]

    async def test_an_entry_that_cannot_be_written_leaves_the_record_in_the_outbox(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        with pytest.raises(DatabaseError):
            await queue.add(failure_of(operation, attempt_count=-1))
        assert await outbox.renew(operation)
        assert await queue.entries() == []

    async def test_a_record_changed_meanwhile_is_in_the_queue_and_waits_too(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        await change(user, "a")
        operation = await claim_one(outbox)
        await change(user, "a")
        await queue.add(failure_of(operation))
        assert (await the_entry(queue)).status == QueueStatus.PENDING_MANUAL_REPLAY
        assert (await claim_one(outbox)).version > operation.version

    async def test_a_lost_lease_takes_nothing_from_the_worker_that_has_it(
        self,
        user: Connection,
        outbox: PostgresOutbox,
        other_outbox: PostgresOutbox,
        queue: PostgresRetryQueue,
        database_clock: DatabaseClock,
    ) -> None:
        await change(user, "a")
        lost = await claim_one(outbox)
        await database_clock.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        await queue.add(failure_of(lost))
        assert await other_outbox.renew(held)
        await other_outbox.settle([(held, APPLIED)])
        assert (await the_entry(queue)).status == QueueStatus.SUPERSEDED


@pytest.mark.every_postgres
class TestClosing:
    async def test_a_newer_change_that_arrives_supersedes_the_entry(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        await failed(user, outbox, queue, "a", "b")
        await change(user, "a")
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        assert {entry.record_key: entry.status for entry in await queue.entries()} == {
            "a": QueueStatus.SUPERSEDED,
            "b": QueueStatus.PENDING_MANUAL_REPLAY,
        }

    async def test_an_older_change_that_arrives_does_not(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        """The record is dirty again: Dynamics has not its newest state yet."""
        await failed(user, outbox, queue, "a")
        await change(user, "a")
        older = await claim_one(outbox)
        await change(user, "a")
        await outbox.settle([(older, APPLIED)])
        assert (await the_entry(queue)).status == QueueStatus.PENDING_MANUAL_REPLAY

    async def test_after_a_closed_entry_a_failure_opens_a_new_one(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        (first,) = await failed(user, outbox, queue, "a")
        await queue.discard([first], "tester", None)
        (second,) = await failed(user, outbox, queue, "a")
        assert first != second
        assert await queue.counts() == {"discarded": 1, "pending_manual_replay": 1}


@pytest.mark.every_postgres
class TestReplay:
    async def test_the_record_goes_back_to_the_outbox_with_a_fresh_count(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        ids = await failed(user, outbox, queue, "a")
        await change(user, "a")
        await outbox.release(await claim_one(outbox), attempts=2)
        assert await queue.replay(ids, "tester") == ids
        assert (await waiting(user))["a"].attempts == 0
        assert (await the_entry(queue)).status == QueueStatus.REPLAYING

    async def test_one_that_arrives_is_replayed(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        await queue.replay(await failed(user, outbox, queue, "a"), "tester")
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        assert (await the_entry(queue)).status == QueueStatus.REPLAYED

    async def test_one_that_fails_again_is_the_same_entry_and_open_again(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        (entry_id,) = await failed(user, outbox, queue, "a")
        await queue.replay([entry_id], "tester")
        assert UUID(await queue.add(failure_of(await claim_one(outbox)))) == entry_id
        assert (await the_entry(queue)).status == QueueStatus.PENDING_MANUAL_REPLAY

    async def test_workers_are_woken(self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue) -> None:
        ids = await failed(user, outbox, queue, "a")
        await user.execute("listen dynamics_sync")
        await queue.replay(ids, "tester")
        notifications = [notification.payload async for notification in user.notifies(timeout=10, stop_after=1)]
        assert notifications == ["dynamics"]

    async def test_of_operators_who_act_at_once_one_wins(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        ids = await failed(user, outbox, queue, "a")
        acted = await asyncio.gather(
            *(queue.replay(ids, "replayer") for _ in range(4)),
            *(queue.discard(ids, "discarder", None) for _ in range(4)),
        )
        assert sorted(acted) == [[]] * 7 + [ids]
        audit = await (await user.execute("select action, entry_id from dynamics_sync.audit")).fetchall()
        assert audit == [("replay" if acted.index(ids) < 4 else "discard", ids[0])]
        assert (await waiting(user) == {}) is (acted.index(ids) >= 4)

    async def test_what_is_discarded_while_it_waits_for_a_users_transaction_is_not_sent(
        self, database: str, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        ids = await failed(user, outbox, queue, "a")
        async with await connect(database) as holder, asyncio.timeout(10):
            async with holder.transaction(force_rollback=True):
                await change(holder, "a")
                replay = asyncio.create_task(queue.replay(ids, "replayer"))
                await until_somebody_waits_for_a_lock(user)
                assert await queue.discard(ids, "discarder", None) == ids
            assert await replay == []
        assert await waiting(user) == {}

    async def test_workers_who_settle_the_same_records_do_not_get_in_its_way(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        keys = [str(number) for number in range(100)]
        for _ in range(5):
            ids = await failed(user, outbox, queue, *keys)
            await change(user, *keys)
            claimed = await claim(outbox)
            await asyncio.gather(
                queue.replay(ids, "tester"), outbox.settle([(claimed[key], APPLIED) for key in reversed(keys)])
            )
            await outbox.settle([(left, APPLIED) for left in (await claim(outbox)).values()])
            assert await waiting(user) == {}
            assert "pending_manual_replay" not in await queue.counts()


@pytest.mark.every_postgres
class TestDiscard:
    async def test_it_closes_the_entry_sends_nothing_and_notes_why(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        ids = await failed(user, outbox, queue, "a")
        assert await queue.discard(ids, "tester", "a duplicate") == ids
        assert (await the_entry(queue)).status == QueueStatus.DISCARDED
        assert await waiting(user) == {}
        audit = await user.execute("select actor, action, entry_id, reason from dynamics_sync.audit")
        assert await audit.fetchall() == [("tester", "discard", ids[0], "a duplicate")]

    async def test_what_is_on_its_way_cannot_be_discarded(
        self, user: Connection, outbox: PostgresOutbox, queue: PostgresRetryQueue
    ) -> None:
        ids = await failed(user, outbox, queue, "a")
        await queue.replay(ids, "tester")
        assert await queue.discard(ids, "tester", None) == []
        assert (await the_entry(queue)).status == QueueStatus.REPLAYING
