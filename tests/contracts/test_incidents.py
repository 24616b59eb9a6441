"""Outages are incidents: begun and ended together with the circuit, with the queue entries made meanwhile. A store in
memory has none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from dynamics_sync.core.circuit import Circuit, CircuitSettings, CircuitState, Permit
from dynamics_sync.core.operation import FailureReason, SyncOperation
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Connection, Pool, make_pool
from dynamics_sync.postgres.incidents import Incident, PostgresIncidents
from dynamics_sync.postgres.retry_queue import PostgresRetryQueue
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.ports import Failure
from support.callers import shared_breaker
from support.outbox import TABLE

pytestmark = pytest.mark.every_postgres

AT_ONCE = CircuitSettings(cool_down_seconds=0.001)
"""A cool-down that is over as soon as anybody asks."""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with make_pool(database, 10) as opened:
        yield opened


@pytest.fixture
def breaker(pool: Pool) -> DynamicsCircuitBreaker:
    return DynamicsCircuitBreaker(AT_ONCE, PostgresCircuitStore(pool, "dynamics"))


@pytest.fixture
def incidents(pool: Pool) -> PostgresIncidents:
    return PostgresIncidents(pool, "dynamics")


@pytest.fixture
def queue(pool: Pool) -> PostgresRetryQueue:
    return PostgresRetryQueue(pool)


async def fail(breaker: DynamicsCircuitBreaker, times: int = 1, error_code: str = "http_503") -> None:
    """So many requests in a row that fail; of an open circuit, probes."""
    for _ in range(times):
        await breaker.record_failure(await let_through(breaker), error_code)


async def succeed(breaker: DynamicsCircuitBreaker) -> None:
    await breaker.record_success(await let_through(breaker))


async def let_through(breaker: DynamicsCircuitBreaker) -> Permit:
    async with asyncio.timeout(10):
        while not isinstance(verdict := await breaker.admit(), Permit):
            await asyncio.sleep(0.001)
    return verdict


async def give_up(queue: PostgresRetryQueue, key: str, target: str = "dynamics") -> None:
    operation = SyncOperation(source_table=TABLE, record_key=key, target=target)
    await queue.add(Failure(operation, FailureReason.RETRIES_EXHAUSTED, "http_503", 4))


async def belonging(queue: PostgresRetryQueue) -> dict[str, int | None]:
    """The incident of each entry, by key."""
    return {entry.record_key: entry.incident_id for entry in await queue.entries()}


async def numbers(incidents: PostgresIncidents) -> list[int]:
    return [incident.id for incident in await incidents.recent(100)]


class TestBeginAndEnd:
    async def test_while_nothing_opens_there_is_none(
        self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 2)
        await succeed(breaker)
        await fail(breaker, 2)
        assert await incidents.recent(100) == []
        assert await incidents.current() is None

    async def test_it_begins_when_the_circuit_opens_and_ends_when_it_closes(
        self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 3)
        begun = await incidents.current()
        assert begun is not None
        assert (begun.id, begun.error_code, begun.failure_count, begun.closed_at) == (1, "http_503", 3, None)
        assert begun.failing_since < begun.opened_at
        await succeed(breaker)
        (ended,) = await incidents.recent(100)
        assert ended.closed_at is not None
        assert ended.duration == ended.closed_at - ended.opened_at
        assert await incidents.current() is None

    async def test_probes_that_fail_belong_to_the_same(
        self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 3)
        await fail(breaker, 4, "timeout")
        (incident,) = await incidents.recent(100)
        assert (incident.error_code, incident.failure_count) == ("http_503", 7)

    async def test_each_outage_is_one(self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents) -> None:
        for _ in range(3):
            await fail(breaker, 3)
            await succeed(breaker)
        assert await numbers(incidents) == [3, 2, 1]
        assert [incident.id for incident in await incidents.recent(1)] == [3]
        found = await incidents.find(2)
        assert found is not None
        assert found.id == 2
        assert await incidents.find(4) is None

    async def test_however_many_open_it_at_once_it_is_one(self, database: str, incidents: PostgresIncidents) -> None:
        async with AsyncExitStack() as stack:
            breakers = [await stack.enter_async_context(shared_breaker(database, connections=2)) for _ in range(8)]
            for _ in range(5):
                permits = await asyncio.gather(*(let_through(breaker) for breaker in breakers * 3))
                fates = zip(breakers * 3, permits, strict=True)
                await asyncio.gather(*(breaker.record_failure(permit, "http_503") for breaker, permit in fates))
                await breakers[0].force_closed()
        assert await numbers(incidents) == [5, 4, 3, 2, 1]

    async def test_whoever_loses_the_race_begins_none(self, pool: Pool, incidents: PostgresIncidents) -> None:
        circuits = PostgresCircuitStore(pool, "dynamics")
        opened = Circuit(CircuitState.OPEN, failure_count=3, last_error_code="x", generation=1, revision=1)
        won = await asyncio.gather(*(circuits.compare_and_set(Circuit(), opened) for _ in range(20)))
        assert sum(won) == 1
        assert await numbers(incidents) == [1]

    async def test_targets_have_their_own(
        self, pool: Pool, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 3)
        elsewhere = DynamicsCircuitBreaker(AT_ONCE, PostgresCircuitStore(pool, "elsewhere"))
        await fail(elsewhere, 3)
        await succeed(elsewhere)
        assert (await the_current(incidents)).target == "dynamics"
        assert await PostgresIncidents(pool, "elsewhere").current() is None


async def the_current(incidents: PostgresIncidents) -> Incident:
    current = await incidents.current()
    assert current is not None
    return current


class TestEntries:
    async def test_what_is_made_from_the_first_failure_in_a_row_until_it_closes_belongs_to_it(
        self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 2)
        await give_up(queue, "before a success")
        await succeed(breaker)
        await give_up(queue, "before the failures in a row")
        await fail(breaker)
        await give_up(queue, "at the first of them")
        await fail(breaker, 2)
        await give_up(queue, "while open")
        permit = await let_through(breaker)
        await give_up(queue, "while half-open")
        await breaker.record_failure(permit, "http_503")
        await give_up(queue, "after a failed probe")
        await succeed(breaker)
        await give_up(queue, "after it closed")
        assert await belonging(queue) == {
            "before a success": None,
            "before the failures in a row": None,
            "at the first of them": 1,
            "while open": 1,
            "while half-open": 1,
            "after a failed probe": 1,
            "after it closed": None,
        }
        (incident,) = await incidents.recent(100)
        assert (incident.entries, incident.open_entries) == ({"pending_manual_replay": 4}, 4)

    async def test_another_targets_do_not(self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue) -> None:
        await fail(breaker)
        await give_up(queue, "a", target="elsewhere")
        await fail(breaker, 2)
        await give_up(queue, "b", target="elsewhere")
        assert await belonging(queue) == {"a": None, "b": None}

    async def test_one_that_fails_again_belongs_to_the_latest_outage_in_which_it_did(
        self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue
    ) -> None:
        await give_up(queue, "a")
        for number in (1, 2):
            await fail(breaker, 3)
            await give_up(queue, "a")
            assert await belonging(queue) == {"a": number}
            await succeed(breaker)
            await give_up(queue, "a")
            assert await belonging(queue) == {"a": number}

    async def test_what_was_closed_before_stays_as_it_was(
        self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue
    ) -> None:
        await fail(breaker)
        await give_up(queue, "a")
        await queue.discard([entry.id for entry in await queue.entries()], "tester", None)
        await fail(breaker, 2)
        assert await belonging(queue) == {"a": None}

    @pytest.mark.parametrize(
        "lock",
        [
            "lock table public.dynamics_sync_retry_queue in access exclusive mode",
            "update public.dynamics_sync_retry_queue set failure_reason = failure_reason",
        ],
    )
    async def test_a_lock_on_the_queue_keeps_no_circuit_from_opening(
        self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue, user: Connection, lock: str
    ) -> None:
        """What could not join then joins when the circuit changes next."""
        await fail(breaker)
        await give_up(queue, "a")
        async with user.transaction(), asyncio.timeout(10):
            await user.execute("set local role service_role")
            await user.execute(lock.encode())
            await fail(breaker, 2)
            assert await breaker.state() is not CircuitState.CLOSED
        assert await belonging(queue) == {"a": None}
        await succeed(breaker)
        assert await belonging(queue) == {"a": 1}

    async def test_many_made_while_it_opens_all_belong_to_it_in_the_end(
        self, breaker: DynamicsCircuitBreaker, queue: PostgresRetryQueue
    ) -> None:
        await fail(breaker)
        await asyncio.gather(fail(breaker, 2), *(give_up(queue, str(number)) for number in range(50)))
        await succeed(breaker)
        assert set((await belonging(queue)).values()) == {1}


class TestOperators:
    async def test_what_they_do_is_audited_with_the_incident(
        self, pool: Pool, breaker: DynamicsCircuitBreaker, user: Connection
    ) -> None:
        operator = Operator("tester", "maintenance")
        by_hand = DynamicsCircuitBreaker(AT_ONCE, PostgresCircuitStore(pool, "dynamics", operator))
        await by_hand.force_open()
        await by_hand.force_closed()
        await fail(breaker, 3)
        await by_hand.force_closed()
        await fail(breaker)
        await by_hand.force_closed()
        await by_hand.force_closed()
        audit = await user.execute("select actor, action, target, incident_id, reason from dynamics_sync.audit")
        assert await audit.fetchall() == [
            ("tester", "circuit_open", "dynamics", 1, "maintenance"),
            ("tester", "circuit_close", "dynamics", 1, "maintenance"),
            ("tester", "circuit_close", "dynamics", 2, "maintenance"),
            ("tester", "circuit_close", "dynamics", None, "maintenance"),
        ]

    async def test_opening_begins_an_incident_of_its_own_kind_and_closing_ends_it(
        self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents, queue: PostgresRetryQueue
    ) -> None:
        await breaker.force_open()
        assert (await the_current(incidents)).error_code == "operator"
        await give_up(queue, "a")
        await breaker.force_closed()
        assert await incidents.current() is None
        assert await belonging(queue) == {"a": 1}

    async def test_opening_during_an_outage_goes_on_with_it(
        self, breaker: DynamicsCircuitBreaker, incidents: PostgresIncidents
    ) -> None:
        await fail(breaker, 3)
        await breaker.force_open()
        (incident,) = await incidents.recent(100)
        assert (incident.error_code, incident.closed_at) == ("http_503", None)
