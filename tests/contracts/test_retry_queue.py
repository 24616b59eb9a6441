"""The contract of the retry queue, in memory, in the simulation's model and in PostgreSQL, and what only one beside an
outbox offers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import Applied, FailedAttempt, FailureReason, QueueStatus, SyncOperation
from dynamics_sync.postgres.connections import make_pool
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.sync.memory import InMemoryRetryQueue
from dynamics_sync.sync.ports import Failure, Outbox, RetryQueue
from support.clock import FakeClock
from support.model_stores import ModelStores
from support.outbox import LEASE_SECONDS, TABLE, claim, claim_one
from support.postgres_stores import PostgresStores
from support.stores import Entry, Stores, change, transaction, until_somebody_waits

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
async def kept(place: str) -> AsyncIterator[Kept]:
    """A retry queue of each kind."""
    if place == "memory":
        in_memory = InMemoryRetryQueue()

        async def look() -> dict[str, tuple[str, int]]:
            return {id: (entry.operation.record_key, entry.attempt_count) for id, entry in in_memory.entries.items()}

        yield Kept(in_memory, look)
    elif place == "model":
        model = ModelStores()

        async def look() -> dict[str, tuple[str, int]]:
            return {entry.id: (entry.key, entry.attempt_count) for entry in (await model.look()).entries}

        yield Kept(model.queue, look)
    else:
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

    async def test_records_have_entries_of_their_own(self, kept: Kept) -> None:
        assert len({await kept.queue.add(failure_of(of_record(key))) for key in "ab"}) == 2

    async def test_many_failures_of_one_record_at_once_make_one_entry(self, kept: Kept) -> None:
        ids = await asyncio.gather(*(kept.queue.add(failure_of(of_record("a"))) for _ in range(10)))
        assert len(set(ids)) == 1
        assert len(await kept.look()) == 1


async def test_targets_have_entries_of_their_own_in_memory() -> None:
    queue = InMemoryRetryQueue()
    assert await queue.add(failure_of(of_record("a"))) != await queue.add(failure_of(of_record("a", "elsewhere")))


@pytest.mark.every_postgres
async def test_targets_have_entries_of_their_own(postgres: PostgresStores) -> None:
    queue = postgres.queue
    assert await queue.add(failure_of(of_record("a"))) != await queue.add(failure_of(of_record("a", "elsewhere")))


async def entries(stores: Stores) -> list[Entry]:
    return (await stores.look()).entries


async def the_entry(stores: Stores) -> Entry:
    (entry,) = await entries(stores)
    return entry


async def waiting(stores: Stores) -> dict[str, int]:
    """How often each record in the outbox was tried."""
    return {key: row.attempts for key, row in (await stores.look()).waiting.items()}


async def failed(stores: Stores, outbox: Outbox, *keys: str) -> list[str]:
    """Records that were changed, tried and given up; their entries."""
    await change(stores, *keys)
    claimed = await claim(outbox)
    return [await stores.queue.add(failure_of(claimed[key])) for key in keys]


class TestGivingUp:
    """An operation claimed from an outbox leaves it in the same transaction."""

    async def test_the_record_leaves_the_outbox_for_the_queue(self, stores: Stores, outbox: Outbox) -> None:
        await failed(stores, outbox, "a")
        picture = await stores.look()
        assert picture.waiting == {}
        assert [(entry.key, entry.status) for entry in picture.entries] == [("a", QueueStatus.PENDING_MANUAL_REPLAY)]
        assert [(attempt.key, attempt.attempt_number) for attempt in picture.attempts] == [("a", 3)]

    async def test_a_refusal_is_for_a_person_to_look_at(self, stores: Stores) -> None:
        await stores.queue.add(Failure(of_record("a"), FailureReason.REJECTED, "0x80040203", 1))
        assert (await the_entry(stores)).status == QueueStatus.REQUIRES_INVESTIGATION

    async def test_a_record_changed_meanwhile_is_in_the_queue_and_waits_too(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await change(stores, "a")
        await stores.queue.add(failure_of(operation))
        assert (await the_entry(stores)).status == QueueStatus.PENDING_MANUAL_REPLAY
        assert (await claim_one(outbox)).version > operation.version

    async def test_a_record_that_a_user_has_locked_is_in_the_queue_and_waits_for_its_lease(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        async with transaction(stores, "a", commits=False), asyncio.timeout(10):
            await stores.queue.add(failure_of(operation))
        assert (await the_entry(stores)).status == QueueStatus.PENDING_MANUAL_REPLAY
        assert await claim(outbox) == {}
        await stores.advance(LEASE_SECONDS + 1)
        assert set(await claim(outbox)) == {"a"}

    async def test_a_lost_lease_takes_nothing_from_the_worker_that_has_it(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        lost = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        await stores.queue.add(failure_of(lost))
        assert await other_outbox.renew([held])
        await other_outbox.settle([(held, APPLIED)])
        assert (await the_entry(stores)).status == QueueStatus.SUPERSEDED

    @pytest.mark.every_postgres
    async def test_an_entry_that_cannot_be_written_leaves_the_record_in_the_outbox(
        self, postgres: PostgresStores
    ) -> None:
        outbox = postgres.outbox()
        await change(postgres, "a")
        operation = await claim_one(outbox)
        with pytest.raises(DatabaseError):
            await postgres.queue.add(failure_of(operation, attempt_count=-1))
        assert await outbox.renew([operation])
        assert await entries(postgres) == []


class TestClosing:
    async def test_a_newer_change_that_arrives_supersedes_the_entry(self, stores: Stores, outbox: Outbox) -> None:
        await failed(stores, outbox, "a", "b")
        await change(stores, "a")
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        assert {entry.key: entry.status for entry in await entries(stores)} == {
            "a": QueueStatus.SUPERSEDED,
            "b": QueueStatus.PENDING_MANUAL_REPLAY,
        }

    async def test_an_older_change_that_arrives_does_not(self, stores: Stores, outbox: Outbox) -> None:
        """The record is dirty again: Dynamics has not its newest state yet."""
        await failed(stores, outbox, "a")
        await change(stores, "a")
        older = await claim_one(outbox)
        await change(stores, "a")
        await outbox.settle([(older, APPLIED)])
        assert (await the_entry(stores)).status == QueueStatus.PENDING_MANUAL_REPLAY

    async def test_after_a_closed_entry_a_failure_opens_a_new_one(self, stores: Stores, outbox: Outbox) -> None:
        (first,) = await failed(stores, outbox, "a")
        await stores.discard([first])
        await stores.advance(1)
        (second,) = await failed(stores, outbox, "a")
        assert [(entry.id, entry.status) for entry in await entries(stores)] == [
            (first, QueueStatus.DISCARDED),
            (second, QueueStatus.PENDING_MANUAL_REPLAY),
        ]


class TestReplay:
    async def test_the_record_goes_back_to_the_outbox_with_a_fresh_count(self, stores: Stores, outbox: Outbox) -> None:
        ids = await failed(stores, outbox, "a")
        await change(stores, "a")
        await outbox.release(await claim_one(outbox), attempts=2)
        assert await stores.replay(ids) == ids
        assert await waiting(stores) == {"a": 0}
        assert (await the_entry(stores)).status == QueueStatus.REPLAYING

    async def test_one_that_arrives_is_replayed(self, stores: Stores, outbox: Outbox) -> None:
        await stores.replay(await failed(stores, outbox, "a"))
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        assert (await the_entry(stores)).status == QueueStatus.REPLAYED

    async def test_one_that_fails_again_is_the_same_entry_and_open_again(self, stores: Stores, outbox: Outbox) -> None:
        (entry_id,) = await failed(stores, outbox, "a")
        await stores.replay([entry_id])
        assert await stores.queue.add(failure_of(await claim_one(outbox))) == entry_id
        assert (await the_entry(stores)).status == QueueStatus.PENDING_MANUAL_REPLAY

    async def test_what_is_closed_or_on_its_way_is_not_sent_again(self, stores: Stores, outbox: Outbox) -> None:
        discarded, on_its_way = await failed(stores, outbox, "a", "b")
        await stores.discard([discarded])
        await stores.replay([on_its_way])
        before = await stores.look()
        assert await stores.replay([discarded, on_its_way]) == []
        assert await stores.look() == before

    async def test_of_operators_who_act_at_once_one_wins(self, stores: Stores, outbox: Outbox) -> None:
        ids = await failed(stores, outbox, "a")
        acted = await asyncio.gather(*(stores.replay(ids) for _ in range(4)), *(stores.discard(ids) for _ in range(4)))
        assert sorted(acted) == [[]] * 7 + [ids]
        assert (await waiting(stores) == {}) is (acted.index(ids) >= 4)

    async def test_what_is_discarded_while_it_waits_for_a_users_transaction_is_not_sent(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        ids = await failed(stores, outbox, "a")
        async with asyncio.timeout(10):
            async with transaction(stores, "a", commits=False):
                replay = asyncio.create_task(stores.replay(ids))
                await until_somebody_waits(stores)
                assert await stores.discard(ids) == ids
            assert await replay == []
        assert await waiting(stores) == {}


@pytest.mark.every_postgres
class TestReplayInPostgres:
    async def test_workers_are_woken(self, postgres: PostgresStores) -> None:
        ids = await failed(postgres, postgres.outbox(), "a")
        await postgres.user.execute("listen dynamics_sync")
        await postgres.replay(ids)
        notifications = [one.payload async for one in postgres.user.notifies(timeout=10, stop_after=1)]
        assert notifications == ["dynamics"]

    async def test_it_is_audited_by_whoever_wins(self, postgres: PostgresStores) -> None:
        ids = await failed(postgres, postgres.outbox(), "a")
        acted = await asyncio.gather(
            *(postgres.replay(ids) for _ in range(4)), *(postgres.discard(ids) for _ in range(4))
        )
        audit = await postgres.user.execute("select actor, action, entry_id from dynamics_sync.audit")
        action = "replay" if acted.index(ids) < 4 else "discard"
        assert await audit.fetchall() == [("tester", action, UUID(ids[0]))]

    async def test_workers_who_settle_the_same_records_do_not_get_in_its_way(self, postgres: PostgresStores) -> None:
        outbox = postgres.outbox()
        keys = [str(number) for number in range(100)]
        for _ in range(3):
            ids = await failed(postgres, outbox, *keys)
            await change(postgres, *keys)
            claimed = await claim(outbox)
            await asyncio.gather(
                postgres.replay(ids), outbox.settle([(claimed[key], APPLIED) for key in reversed(keys)])
            )
            await outbox.settle([(left, APPLIED) for left in (await claim(outbox)).values()])
            assert await waiting(postgres) == {}
            assert all(entry.status != QueueStatus.PENDING_MANUAL_REPLAY for entry in await entries(postgres))


class TestDiscard:
    async def test_it_closes_the_entry_and_sends_nothing(self, stores: Stores, outbox: Outbox) -> None:
        ids = await failed(stores, outbox, "a")
        assert await stores.discard(ids) == ids
        assert (await the_entry(stores)).status == QueueStatus.DISCARDED
        assert await waiting(stores) == {}
        assert await stores.discard(ids) == []

    async def test_what_is_on_its_way_cannot_be_discarded(self, stores: Stores, outbox: Outbox) -> None:
        ids = await failed(stores, outbox, "a")
        await stores.replay(ids)
        assert await stores.discard(ids) == []
        assert (await the_entry(stores)).status == QueueStatus.REPLAYING

    @pytest.mark.every_postgres
    async def test_who_did_it_and_why_is_noted(self, postgres: PostgresStores) -> None:
        ids = [UUID(id) for id in await failed(postgres, postgres.outbox(), "a")]
        queue = PostgresRetryQueue(postgres.pool)
        assert await queue.discard(ids, "tester", "a duplicate") == ids
        audit = await postgres.user.execute("select actor, action, entry_id, reason from dynamics_sync.audit")
        assert await audit.fetchall() == [("tester", "discard", ids[0], "a duplicate")]
