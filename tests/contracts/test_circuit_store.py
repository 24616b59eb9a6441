"""The contract of a circuit store, in memory and in PostgreSQL, and what only a shared one has."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import Connection, Pool
from dynamics_sync.sync.ports import CircuitStore
from support.database_clock import DatabaseClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def changed(circuit: Circuit, **fields: object) -> Circuit:
    return replace(circuit, revision=circuit.revision + 1, **fields)  # type: ignore[arg-type]


class TestEveryStore:
    async def test_it_begins_closed(self, circuits: CircuitStore) -> None:
        assert (await circuits.load()).circuit == Circuit()

    async def test_it_gives_back_every_field(self, circuits: CircuitStore) -> None:
        stored = Circuit(
            state=CircuitState.HALF_OPEN,
            failure_count=7,
            opened_at=NOON,
            last_error_code="http_503",
            probe_owner="somebody",
            probe_until=NOON + timedelta(seconds=90, microseconds=1),
            paused_until=NOON + timedelta(seconds=5),
            generation=4,
            revision=1,
        )
        assert await circuits.compare_and_set(Circuit(), stored)
        assert (await circuits.load()).circuit == stored

    async def test_its_time_has_a_zone_and_does_not_go_back(self, circuits: CircuitStore) -> None:
        first, second = (await circuits.load()).now, (await circuits.load()).now
        assert first.utcoffset() is not None
        assert first <= second

    async def test_a_change_that_comes_too_late_is_refused(self, circuits: CircuitStore) -> None:
        now = (await circuits.load()).now
        counted = changed(Circuit(), failure_count=1)
        assert not await circuits.compare_and_set(Circuit(), counted, now - timedelta(seconds=1))
        assert (await circuits.load()).circuit == Circuit()
        assert await circuits.compare_and_set(Circuit(), counted, now + timedelta(hours=1))

    @pytest.mark.parametrize("history", [0, 3])
    async def test_of_many_writers_with_one_expectation_exactly_one_wins(
        self, circuits: CircuitStore, history: int
    ) -> None:
        circuit = Circuit()
        for _ in range(history):
            circuit, expected = changed(circuit), circuit
            assert await circuits.compare_and_set(expected, circuit)
        offers = [changed(circuit, probe_owner=f"writer {number}") for number in range(40)]
        won = await asyncio.gather(*(circuits.compare_and_set(circuit, offer) for offer in offers))
        assert sum(won) == 1
        assert (await circuits.load()).circuit == offers[won.index(True)]

    async def test_an_old_expectation_changes_nothing(self, circuits: CircuitStore) -> None:
        newer = changed(Circuit(), failure_count=1)
        assert await circuits.compare_and_set(Circuit(), newer)
        assert not await circuits.compare_and_set(Circuit(), changed(Circuit(), failure_count=2))
        assert (await circuits.load()).circuit == newer

    async def test_writers_who_try_again_lose_no_count(self, circuits: CircuitStore) -> None:
        async def count_one() -> None:
            while True:
                known = (await circuits.load()).circuit
                if await circuits.compare_and_set(known, changed(known, failure_count=known.failure_count + 1)):
                    return

        await asyncio.gather(*(count_one() for _ in range(25)))
        circuit = (await circuits.load()).circuit
        assert (circuit.failure_count, circuit.revision) == (25, 25)


@pytest.mark.every_postgres
class TestSharedStores:
    """A store in memory has one target, one clock and nobody to wake."""

    async def test_two_stores_of_one_target_are_one_circuit(self, pool: Pool) -> None:
        one, other = PostgresCircuitStore(pool, "dynamics"), PostgresCircuitStore(pool, "dynamics")
        stored = changed(Circuit(), failure_count=2)
        assert await one.compare_and_set(Circuit(), stored)
        assert (await other.load()).circuit == stored

    async def test_targets_have_circuits_of_their_own(self, pool: Pool) -> None:
        stored = changed(Circuit(), failure_count=2)
        assert await PostgresCircuitStore(pool, "dynamics").compare_and_set(Circuit(), stored)
        assert (await PostgresCircuitStore(pool, "elsewhere").load()).circuit == Circuit()

    @pytest.mark.parametrize("days", [-400, 400])
    async def test_the_time_is_the_databases(self, pool: Pool, database_clock: DatabaseClock, days: int) -> None:
        await database_clock.advance(days * 86400)
        ahead = (await PostgresCircuitStore(pool, "dynamics").load()).now - datetime.now(UTC)
        assert round(ahead / timedelta(days=1)) == days

    async def test_a_transition_wakes_the_workers_and_a_mere_count_does_not(self, pool: Pool, user: Connection) -> None:
        circuits = PostgresCircuitStore(pool, "dynamics")
        counted = changed(Circuit(), failure_count=1)
        opened = changed(counted, state=CircuitState.OPEN, generation=1)
        await user.execute("listen dynamics_sync")
        assert await circuits.compare_and_set(Circuit(), counted)
        assert await circuits.compare_and_set(counted, opened)
        await user.execute("notify dynamics_sync, 'the end'")
        assert await payloads_until(user, "the end") == ["dynamics"]

    async def test_a_writer_who_lost_wakes_nobody(self, pool: Pool, user: Connection) -> None:
        circuits = PostgresCircuitStore(pool, "dynamics")
        opened = changed(Circuit(), state=CircuitState.OPEN, generation=1)
        assert await circuits.compare_and_set(Circuit(), opened)
        await user.execute("listen dynamics_sync")
        assert not await circuits.compare_and_set(Circuit(), opened)
        await user.execute("notify dynamics_sync, 'the end'")
        assert await payloads_until(user, "the end") == []


async def payloads_until(connection: psycopg.AsyncConnection[tuple[object, ...]], last: str) -> list[str]:
    payloads: list[str] = []
    async for notification in connection.notifies(timeout=10):
        if notification.payload == last:
            return payloads
        payloads.append(notification.payload)
    raise AssertionError(f"no notification {last!r} came")
