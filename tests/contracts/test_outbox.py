"""The contract of the outbox, in PostgreSQL and in the simulation's model. A program without a database gives its
operations to the service itself, and nothing is claimed."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.core.operation import Applied, FailedAttempt, FailureReason, OperationType
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.sync.ports import Failure, Outbox
from support.clock import FakeClock
from support.outbox import LEASE_SECONDS, claim, claim_one
from support.postgres_stores import PostgresStores
from support.stores import Stores, Waiting, change, transaction, until_somebody_waits

APPLIED = Applied(1, etag="W/1", payload_hash=b"1")


async def waiting(stores: Stores) -> dict[str, Waiting]:
    return (await stores.look()).waiting


class TestClaim:
    async def test_least_tried_first_then_oldest(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "oldest", "older", "newest")
        await outbox.release(await claim_one(outbox), attempts=1)
        assert set(await claim(outbox, 2)) == {"older", "newest"}
        assert set(await claim(outbox)) == {"oldest"}

    async def test_it_says_what_changed_and_how_often_it_was_tried(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a", columns=("status",))
        await change(stores, "a", columns=("kind",))
        await outbox.release(await claim_one(outbox), attempts=2)
        operation = await claim_one(outbox)
        assert (operation.changed_columns, operation.attempts) == (("kind", "status"), 2)
        assert operation.version == (await waiting(stores))["a"].version

    async def test_no_record_is_claimed_twice_by_many_at_once(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, *(str(number) for number in range(100)))
        claims = await asyncio.gather(*(claim(outbox, 7) for _ in range(30)))
        claimed = [key for keys in claims for key in keys]
        assert len(claimed) == len(set(claimed))
        rest = await claim(outbox)
        assert len(claimed) + len(rest) == 100

    async def test_a_users_open_transaction_keeps_back_its_own_records_only(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "locked", "free")
        async with transaction(stores, "locked"), asyncio.timeout(10):
            assert set(await claim(outbox)) == {"free"}
        assert set(await claim(outbox)) == {"locked"}

    @pytest.mark.parametrize("commits", [True, False])
    async def test_a_new_record_can_be_claimed_once_it_is_committed(
        self, stores: Stores, outbox: Outbox, commits: bool
    ) -> None:
        async with transaction(stores, "a", commits=commits), asyncio.timeout(10):
            assert await claim(outbox) == {}
        assert set(await claim(outbox)) == ({"a"} if commits else set())

    async def test_it_brings_the_circuit_along(self, stores: Stores, outbox: Outbox) -> None:
        assert await stores.circuits.compare_and_set(Circuit(), Circuit(failure_count=2, revision=1))
        assert (await outbox.claim(1)).reading.circuit.failure_count == 2

    @pytest.mark.every_postgres
    async def test_targets_do_not_see_each_other(self, postgres: PostgresStores) -> None:
        await change(postgres, "a")
        assert await claim(PostgresOutbox(postgres.pool, "elsewhere", LEASE_SECONDS)) == {}


class TestLease:
    async def test_it_keeps_others_away_until_it_ends(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        await claim_one(outbox)
        await stores.advance(LEASE_SECONDS - 10)
        assert await claim(other_outbox) == {}
        await stores.advance(11)
        assert set(await claim(other_outbox)) == {"a"}

    async def test_renewed_it_lasts_as_long_again(self, stores: Stores, outbox: Outbox, other_outbox: Outbox) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS - 10)
        assert await outbox.renew([operation])
        await stores.advance(LEASE_SECONDS - 10)
        assert await claim(other_outbox) == {}

    async def test_lost_it_cannot_be_renewed_nor_released(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        lost = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        assert not await outbox.renew([lost])
        await outbox.release(lost, attempts=3)
        assert (await waiting(stores))["a"].is_leased
        assert await other_outbox.renew([held])
        assert (await waiting(stores))["a"].attempts == 0

    async def test_of_a_record_that_a_user_has_locked_it_cannot_be_renewed(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        """Nobody waits for a user. The record will be sent once more in any case."""
        await change(stores, "a")
        operation = await claim_one(outbox)
        async with transaction(stores, "a"), asyncio.timeout(10):
            assert not await outbox.renew([operation])


class TestSettle:
    async def test_an_unchanged_record_leaves_the_outbox(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await outbox.settle([(operation, APPLIED)])
        picture = await stores.look()
        assert picture.waiting == {}
        assert picture.applied == {"a": (operation.version, "W/1", b"1")}

    async def test_what_dynamics_holds_is_not_known_once_the_record_changed_or_an_answer_is_missing(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "changed", "unanswered")
        claimed = await claim(outbox)
        await change(stores, "changed")
        unanswered = replace(APPLIED, unanswered=True)
        await outbox.settle([(claimed["changed"], APPLIED), (claimed["unanswered"], unanswered)])
        assert {key: known[2] for key, known in (await stores.look()).applied.items()} == {
            "changed": None,
            "unanswered": None,
        }

    @pytest.mark.parametrize("forgetting", ["release", "queue", "lost"])
    async def test_what_dynamics_holds_is_forgotten_where_it_may_be_another_state(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox, forgetting: str
    ) -> None:
        await change(stores, "a")
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        await change(stores, "a")
        operation = await claim_one(outbox)
        match forgetting:
            case "release":
                await outbox.release(operation, attempts=1)
            case "queue":
                await stores.queue.add(Failure(operation, FailureReason.REJECTED, "http_400", 1))
            case "lost":
                await stores.advance(LEASE_SECONDS + 1)
                await claim(other_outbox)
        assert (await stores.look()).applied["a"][1:] == ("W/1", None)

    async def test_what_needed_no_request_leaves_what_is_known_as_it_is(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        first = await claim_one(outbox)
        await outbox.settle([(first, APPLIED)])
        await change(stores, "a")
        await outbox.settle([(await claim_one(outbox), Applied(0, is_sent=False))])
        picture = await stores.look()
        assert picture.waiting == {}
        assert picture.applied == {"a": (first.version, "W/1", b"1")}

    async def test_a_record_changed_meanwhile_stays_and_is_free_at_once(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await change(stores, "a")
        await outbox.settle([(operation, APPLIED)])
        newer = await claim_one(outbox)
        assert newer.version > operation.version
        await outbox.settle([(newer, APPLIED)])
        assert await waiting(stores) == {}

    async def test_a_record_that_another_worker_has_by_now_is_sent_once_more(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        """What came late may have overwritten what the other one wrote, or is about to."""
        await change(stores, "a")
        late = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        await outbox.settle([(late, APPLIED)])
        assert (await waiting(stores))["a"].is_leased
        await other_outbox.settle([(held, APPLIED)])
        assert (await claim_one(outbox)).version > held.version

    async def test_two_requests_for_one_record_may_come_home_together(self, stores: Stores, outbox: Outbox) -> None:
        """The worker was asleep for longer than its lease, and has claimed the record a second time."""
        await change(stores, "a", "b")
        late = await claim(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim(outbox)
        await outbox.settle([(claims["a"], APPLIED) for claims in (late, held)] + [(held["b"], APPLIED)])
        assert [*await waiting(stores)] == ["a"]
        assert (await claim_one(outbox)).version > held["a"].version

    async def test_a_record_that_another_worker_has_settled_is_sent_once_more(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        late = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        await other_outbox.settle([(await claim_one(other_outbox), APPLIED)])
        assert await waiting(stores) == {}
        await outbox.settle([(late, APPLIED)])
        assert (await claim_one(outbox)).version > late.version

    async def test_many_at_once_each_by_its_own_fate(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "lost")
        claimed = await claim(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        await claim_one(other_outbox)
        await change(stores, "unchanged", "changed")
        claimed |= await claim(outbox)
        await change(stores, "changed")
        await outbox.settle([(operation, APPLIED) for operation in claimed.values()])
        left = await waiting(stores)
        assert set(left) == {"lost", "changed"}
        assert (left["lost"].is_leased, left["changed"].is_leased) == (True, False)
        assert all(left[key].version > claimed[key].version for key in left)

    @pytest.mark.parametrize("commits", [True, False])
    async def test_it_waits_for_a_users_transaction_on_the_same_record(
        self, stores: Stores, outbox: Outbox, commits: bool
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        async with transaction(stores, "a", commits=commits):
            settling = asyncio.create_task(outbox.settle([(operation, replace(APPLIED, unanswered=True))]))
            await until_noted(stores)
            assert not settling.done()
        await settling
        left = await waiting(stores)
        assert {key: row.is_leased for key, row in left.items()} == ({"a": False} if commits else {})

    async def test_a_lost_record_that_a_user_has_locked_is_marked_after_the_users_change(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        late = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        async with transaction(stores, "a", commits=False):
            settling = asyncio.create_task(outbox.settle([(late, APPLIED)]))
            await until_somebody_waits(stores)
        await settling
        assert (await waiting(stores))["a"].version > held.version

    @pytest.mark.every_postgres
    async def test_a_lost_lease_is_told(self, postgres: PostgresStores) -> None:
        await change(postgres, "a")
        outbox, other_outbox = postgres.outbox(), postgres.outbox()
        late = await claim_one(outbox)
        await postgres.advance(LEASE_SECONDS + 1)
        await claim_one(other_outbox)
        with capture_logs() as logs:
            await outbox.settle([(late, APPLIED)])
        assert [log["event"] for log in logs] == ["lease.lost"]


class TestRelease:
    async def test_it_keeps_the_count_and_the_time_line(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await outbox.release(operation, attempts=2, failures=[FailedAttempt(2, FakeClock().now(), "http_503", 4000)])
        picture = await stores.look()
        row = picture.waiting["a"]
        assert (row.version, row.attempts, row.is_leased) == (operation.version, 2, False)
        (failed,) = picture.attempts
        assert (failed.key, failed.attempt_number, failed.error_code, failed.delay_ms) == ("a", 2, "http_503", 4000)

    async def test_of_a_record_changed_meanwhile_it_keeps_the_newer_version(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        await change(stores, "a")
        await outbox.release(operation, attempts=1)
        newer = await claim_one(outbox)
        assert newer.version > operation.version
        assert newer.attempts == 1

    @pytest.mark.parametrize("commits", [True, False])
    async def test_it_waits_for_a_users_transaction_on_the_same_record(
        self, stores: Stores, outbox: Outbox, commits: bool
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        failure = FailedAttempt(1, FakeClock().now(), "http_503", 4000)
        async with transaction(stores, "a", commits=commits):
            releasing = asyncio.create_task(outbox.release(operation, 1, [failure], unanswered=True))
            await until_noted(stores)
            assert not releasing.done()
        await releasing
        picture = await stores.look()
        assert (picture.waiting["a"].is_leased, picture.waiting["a"].attempts) == (False, 1)
        assert (len(picture.attempts), set(picture.unanswered)) == (1, {"a"})

    async def test_after_a_moment_a_record_that_a_user_has_locked_is_left_to_its_lease(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        async with transaction(stores, "a"), asyncio.timeout(10):
            await outbox.release(operation, attempts=1)
        assert (await waiting(stores))["a"].is_leased
        await stores.advance(LEASE_SECONDS + 1)
        assert set(await claim(outbox)) == {"a"}


class TestUnanswered:
    """A request that was never answered may take effect late, over a newer state: then the record is sent once more."""

    async def test_a_record_is_sent_once_more_when_no_late_effect_is_possible_any_more(
        self, stores: Stores, outbox: Outbox
    ) -> None:
        await change(stores, "a")
        await outbox.release(await claim_one(outbox), attempts=1, unanswered=True)
        await outbox.settle([(await claim_one(outbox), APPLIED)])
        await stores.advance(LATE_SECONDS - 1)
        await outbox.resend_unanswered()
        assert await waiting(stores) == {}
        await stores.advance(2)
        await outbox.resend_unanswered()
        assert set(await claim(outbox)) == {"a"}
        assert (await stores.look()).unanswered == {}

    async def test_the_latest_one_counts(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        await outbox.release(await claim_one(outbox), attempts=1, unanswered=True)
        await stores.advance(100)
        await outbox.settle([(await claim_one(outbox), Applied(2, unanswered=True))])
        await stores.advance(LATE_SECONDS - 100)
        await outbox.resend_unanswered()
        assert await waiting(stores) == {}
        await stores.advance(101)
        await outbox.resend_unanswered()
        assert set(await waiting(stores)) == {"a"}

    async def test_a_lease_that_ran_out_may_have_left_a_request(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        assert (await stores.look()).unanswered == {}
        await other_outbox.settle([(await claim_one(other_outbox), APPLIED)])
        assert set((await stores.look()).unanswered) == {"a"}

    async def test_it_is_noted_even_if_the_lease_was_lost(
        self, stores: Stores, outbox: Outbox, other_outbox: Outbox
    ) -> None:
        await change(stores, "a")
        late = await claim_one(outbox)
        await stores.advance(LEASE_SECONDS + 1)
        held = await claim_one(other_outbox)
        (noted_by_claim,) = (await stores.look()).unanswered.values()
        await stores.advance(10)
        await outbox.release(late, attempts=1, unanswered=True)
        (noted_by_release,) = (await stores.look()).unanswered.values()
        assert noted_by_release > noted_by_claim
        assert await other_outbox.renew([held])

    @pytest.mark.parametrize(("is_replayed", "is_sent"), [(False, False), (True, True)])
    async def test_a_record_in_the_queue_is_left_to_the_person_who_replays_it(
        self, stores: Stores, outbox: Outbox, is_replayed: bool, is_sent: bool
    ) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        entry = await stores.queue.add(
            Failure(operation, FailureReason.RETRIES_EXHAUSTED, "timeout", 4, unanswered=True)
        )
        assert set((await stores.look()).unanswered) == {"a"}
        if is_replayed:
            await stores.replay([entry])
            await outbox.settle([(await claim_one(outbox), APPLIED)])
        await stores.advance(LATE_SECONDS + 1)
        await outbox.resend_unanswered()
        picture = await stores.look()
        assert picture.unanswered == {}
        assert (set(picture.waiting) == {"a"}) is is_sent

    async def test_one_that_is_being_replayed_is_sent_again_too(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        operation = await claim_one(outbox)
        failure = Failure(operation, FailureReason.RETRIES_EXHAUSTED, "timeout", 4, unanswered=True)
        await stores.replay([await stores.queue.add(failure)])
        replayed = await claim_one(outbox)
        await stores.advance(LATE_SECONDS + 1)
        await outbox.resend_unanswered()
        assert (await waiting(stores))["a"].version > replayed.version

    async def test_one_that_a_user_has_locked_is_left_for_later(self, stores: Stores, outbox: Outbox) -> None:
        await change(stores, "a")
        await outbox.release(await claim_one(outbox), attempts=1, unanswered=True)
        operation = await claim_one(outbox)
        await stores.advance(LATE_SECONDS + 1)
        async with transaction(stores, "a", commits=False), asyncio.timeout(10):
            await outbox.resend_unanswered()
        assert set((await stores.look()).unanswered) == {"a"}
        await outbox.resend_unanswered()
        assert (await waiting(stores))["a"].version > operation.version

    async def test_what_is_sent_once_more_is_an_upsert(self, stores: Stores, outbox: Outbox) -> None:
        """The row decides what is sent."""
        await stores.mark_dirty("a", OperationType.DELETE)
        await outbox.release(await claim_one(outbox), attempts=1, unanswered=True)
        await stores.advance(LATE_SECONDS + 1)
        await outbox.resend_unanswered()
        assert (await claim_one(outbox)).operation_type is OperationType.UPSERT


async def until_noted(stores: Stores) -> None:
    """Until the settlement or release of something unanswered was tried: it is noted even where the row is locked."""
    async with asyncio.timeout(10):
        while not (await stores.look()).unanswered:
            await asyncio.sleep(0.01)
