"""The breaker: what the state machine decides, made atomic."""

import asyncio
from datetime import datetime

import pytest
from structlog.testing import capture_logs

from dynamics_sync import CircuitOpenError, CircuitState, DynamicsCircuitBreaker
from dynamics_sync.core.circuit import Blocked, Circuit, Permit
from dynamics_sync.sync.memory import InMemoryCircuitStore
from support.clock import FakeClock


async def fails() -> None:
    raise ConnectionError


async def works() -> str:
    return "done"


async def opened(clock: FakeClock) -> DynamicsCircuitBreaker:
    breaker = DynamicsCircuitBreaker(clock=clock)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.call(fails)
    return breaker


async def test_open_means_that_nothing_is_called() -> None:
    breaker = await opened(FakeClock())
    assert await breaker.state() is CircuitState.OPEN
    with pytest.raises(CircuitOpenError, match="was not made"):
        await breaker.call(works)
    status = await breaker.status()
    assert (status.failure_count, status.last_error_code) == (3, "ConnectionError")
    assert status.retry_at is not None


async def test_the_event_says_when_how_often_and_why() -> None:
    with capture_logs() as logs:
        await opened(FakeClock())
    (event,) = [log for log in logs if log["event"] == "circuit.opened"]
    assert (event["failure_count"], event["last_error_code"]) == (3, "ConnectionError")
    assert event["opened_at"].startswith("2026-01-01T00:00:00")


async def test_a_hundred_calls_in_half_open_let_exactly_one_through() -> None:
    clock = FakeClock()
    breaker = await opened(clock)
    clock.advance(60)
    called = 0
    go = asyncio.Event()

    async def probe() -> None:
        nonlocal called
        called += 1
        await go.wait()

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(refused(breaker, probe)) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
    assert called == 1
    assert sum(call.result() for call in calls) == 99
    assert await breaker.state() is CircuitState.CLOSED


async def refused(breaker: DynamicsCircuitBreaker, function: object) -> bool:
    try:
        await breaker.call(function)  # type: ignore[arg-type]
    except CircuitOpenError:
        return True
    return False


async def test_a_cancelled_probe_frees_its_place_at_once() -> None:
    clock = FakeClock()
    breaker = await opened(clock)
    clock.advance(60)
    probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    assert await breaker.state() is CircuitState.HALF_OPEN
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert await breaker.call(works) == "done"
    assert await breaker.state() is CircuitState.CLOSED


async def test_a_failed_probe_opens_it_again() -> None:
    clock = FakeClock()
    breaker = await opened(clock)
    clock.advance(60)
    with pytest.raises(ConnectionError):
        await breaker.call(fails)
    assert await breaker.state() is CircuitState.OPEN


async def test_a_pause_blocks_everybody_and_ends() -> None:
    clock = FakeClock()
    breaker = DynamicsCircuitBreaker(clock=clock)
    await breaker.pause(30)
    assert isinstance(await breaker.admit(), Blocked)
    with pytest.raises(CircuitOpenError, match="paused"):
        await breaker.call(works)
    clock.advance(30)
    assert await breaker.call(works) == "done"


class CountingStore(InMemoryCircuitStore):
    loads = 0

    async def load(self):  # type: ignore[no-untyped-def]
        self.loads += 1
        return await super().load()


async def test_a_healthy_circuit_is_believed_for_a_while() -> None:
    clock = FakeClock()
    store = CountingStore(clock)
    breaker = DynamicsCircuitBreaker(store=store, clock=clock, trust_seconds=1)
    for _ in range(10):
        assert await breaker.call(works) == "done"
    assert store.loads == 1
    clock.advance(1)
    await breaker.call(works)
    assert store.loads == 2


class RacingStore(InMemoryCircuitStore):
    """Somebody else is always a little faster, once."""

    raced = False

    async def compare_and_set(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        if not self.raced:
            self.raced = True
            await super().compare_and_set(expected, new, not_after)
            return False
        return await super().compare_and_set(expected, new, not_after)


async def test_no_count_is_lost_to_a_race() -> None:
    clock = FakeClock()
    breaker = DynamicsCircuitBreaker(store=RacingStore(clock), clock=clock)
    permit = await breaker.admit()
    assert isinstance(permit, Permit)
    await breaker.record_failure(permit, "x")
    assert (await breaker.status()).failure_count == 2
