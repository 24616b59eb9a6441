"""One circuit for all workers (R9 to R12): tasks, connections and processes, on a real database with a clock that the
test sets. Nothing here waits for a cool-down or a lease."""

import asyncio
import itertools
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from dynamics_sync.core.circuit import Blocked, CircuitSettings, CircuitState, Permit
from dynamics_sync.core.errors import CircuitOpenError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, Outcome, Throttled, Transient
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.memory import InMemoryRetryQueue
from dynamics_sync.sync.service import HLFDynamicsSyncService
from support.callers import (
    CALLED,
    DONE,
    FAILED,
    REFUSED,
    News,
    call,
    hear,
    make_calls,
    make_failures,
    processes,
    shared_breaker,
    tell_state,
)
from support.clock import FakeClock
from support.database_clock import DatabaseClock
from support.gateway import ScriptedGateway
from support.processes import READY

COOL_DOWN = CircuitSettings().cool_down_seconds
PROBE_LEASE = CircuitSettings().probe_lease_seconds

T = TypeVar("T")

MANY = 2
"""Suspensions: each change of the circuit is one round trip, and each trip suspends once at least."""


async def fails() -> None:
    raise ConnectionError


async def works() -> str:
    return "done"


async def open_circuit(breaker: DynamicsCircuitBreaker) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.call(fails)


async def permit(breaker: DynamicsCircuitBreaker) -> Permit:
    verdict = await breaker.admit()
    assert isinstance(verdict, Permit)
    return verdict


@pytest.fixture
async def breakers(database: str, database_clock: DatabaseClock) -> AsyncIterator[list[DynamicsCircuitBreaker]]:
    """Two workers' breakers, with connections of their own."""
    async with shared_breaker(database) as one, shared_breaker(database) as other:
        yield [one, other]


@pytest.mark.every_postgres
class TestOneProbe:
    async def test_of_a_hundred_calls_over_many_connections(self, database: str, database_clock: DatabaseClock) -> None:
        told: list[str] = []
        go = asyncio.Event()
        async with AsyncExitStack() as stack:
            breakers = [await stack.enter_async_context(shared_breaker(database)) for _ in range(5)]
            await open_circuit(breakers[0])
            await database_clock.advance(COOL_DOWN)
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(call(breakers[number % 5], told.append, go))
                await until(lambda: len(told) == 100)
                go.set()
            assert sorted(told) == [CALLED, DONE] + [REFUSED] * 99
            assert await breakers[0].state() is CircuitState.CLOSED

    async def test_of_a_hundred_calls_from_four_processes(self, database: str, database_clock: DatabaseClock) -> None:
        async with shared_breaker(database) as breaker:
            await open_circuit(breaker)
            await database_clock.advance(COOL_DOWN)
            start, go, news = READY.Barrier(4), READY.Event(), READY.Queue()
            with processes(*[partial(make_calls, database, 25, start, go, news)] * 4):
                assert sorted(await hear(news, 100)) == [CALLED] + [REFUSED] * 99
                assert await breaker.state() is CircuitState.HALF_OPEN
                go.set()
                assert await hear(news, 1) == [DONE]
            assert await breaker.state() is CircuitState.CLOSED

    async def test_a_killed_process_frees_its_place_after_its_lease(
        self, database: str, database_clock: DatabaseClock
    ) -> None:
        async with shared_breaker(database) as breaker:
            await open_circuit(breaker)
            await database_clock.advance(COOL_DOWN)
            news: News = READY.Queue()
            with processes(partial(make_calls, database, 1, READY.Barrier(1), READY.Event(), news)) as (prober,):
                assert await hear(news, 1) == [CALLED]
                prober.kill()
                await asyncio.to_thread(prober.join, 30)
                assert prober.exitcode == -9
            await database_clock.advance(PROBE_LEASE - 10)
            assert isinstance(await breaker.admit(), Blocked)
            await database_clock.advance(11)
            assert await breaker.call(works) == "done"
            assert await breaker.state() is CircuitState.CLOSED

    async def test_a_cancelled_one_frees_its_place_at_once(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock
    ) -> None:
        one, other = breakers
        await open_circuit(one)
        await database_clock.advance(COOL_DOWN)
        told: list[str] = []
        probe = asyncio.create_task(call(one, told.append, asyncio.Event()))
        await until(lambda: told == [CALLED])
        with pytest.raises(CircuitOpenError):
            await other.call(works)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert await other.call(works) == "done"

    async def test_it_makes_no_difference_when_it_is_cancelled(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock
    ) -> None:
        """While it asks, while it runs, while it reports: wherever a task can be suspended."""
        one, other = breakers
        for suspension in itertools.count(1):
            await open_circuit(other)
            await database_clock.advance(COOL_DOWN)
            probe = asyncio.create_task(cancelled_at(suspension, one.call(works)))
            await asyncio.wait({probe})
            assert await other.call(works) == "done", f"cancelled at suspension {suspension}"
            if not probe.cancelling():
                break
        assert suspension > MANY


@pytest.mark.parametrize(
    "outcome",
    [Accepted(), Transient("http_503"), Throttled("http_429", 5)],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_an_operation_that_is_cancelled_anywhere_keeps_no_place(
    breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock, outcome: Outcome
) -> None:
    one, other = breakers
    operation = SyncOperation("public.things", "a", claim_id="a claim")
    for suspension in itertools.count(1):
        await open_circuit(other)
        await database_clock.advance(COOL_DOWN)
        service = HLFDynamicsSyncService(
            breaker=one,
            policy=RetryPolicy(),
            gateway=ScriptedGateway(outcome),
            queue=InMemoryRetryQueue(),
            clock=FakeClock(),
        )
        sync = asyncio.create_task(cancelled_at(suspension, service.sync(operation)))
        await asyncio.wait({sync})
        await database_clock.advance(COOL_DOWN)  # if it failed; a place that is kept is kept for longer
        assert await other.call(works) == "done", f"cancelled at suspension {suspension}"
        if not sync.cancelling():
            break
    assert suspension > MANY


@pytest.mark.every_postgres
class TestSharedState:
    async def test_failures_of_several_workers_add_up(self, breakers: list[DynamicsCircuitBreaker]) -> None:
        one, other = breakers
        with capture_logs() as logs:
            for breaker in (one, other, one):
                with pytest.raises(ConnectionError):
                    await breaker.call(fails)
        assert [log["failure_count"] for log in logs if log["event"] == "circuit.opened"] == [3]
        with pytest.raises(CircuitOpenError):
            await other.call(works)

    async def test_a_success_of_any_worker_starts_the_count_anew(self, breakers: list[DynamicsCircuitBreaker]) -> None:
        one, other = breakers
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await one.call(fails)
        await other.call(works)
        assert (await one.status()).failure_count == 0

    @pytest.mark.parametrize(
        ("threshold", "state"), [(20, CircuitState.OPEN), (21, CircuitState.CLOSED)], ids=["enough", "one_too_few"]
    )
    async def test_no_failure_of_four_processes_at_once_is_lost(
        self, database: str, threshold: int, state: CircuitState
    ) -> None:
        start, news = READY.Barrier(4), READY.Queue()
        with processes(*[partial(make_failures, database, 5, threshold, start, news)] * 4):
            outcomes = await hear(news, 20)
        async with shared_breaker(database) as breaker:
            status = await breaker.status()
        assert (status.state, status.failure_count) == (state, outcomes.count(FAILED))
        assert status.failure_count == 20

    async def test_what_one_process_opened_is_open_in_the_next(self, database: str) -> None:
        news: News = READY.Queue()
        with processes(partial(make_failures, database, 3, 3, READY.Barrier(1), news)) as (opener,):
            await hear(news, 3)
            await asyncio.to_thread(opener.join, 30)
            assert opener.exitcode == 0
        with processes(partial(tell_state, database, news)):
            assert await hear(news, 1) == [CircuitState.OPEN]

    async def test_a_pause_holds_for_all(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock
    ) -> None:
        one, other = breakers
        await one.pause(30)
        with pytest.raises(CircuitOpenError, match="paused"):
            await other.call(works)
        await database_clock.advance(30)
        assert await other.call(works) == "done"


class TestLateAnswers:
    async def test_a_success_from_before_does_not_close_it(self, breakers: list[DynamicsCircuitBreaker]) -> None:
        one, other = breakers
        early = await permit(other)
        await open_circuit(one)
        await other.record_success(early)
        assert await one.state() is CircuitState.OPEN

    async def test_failures_from_before_do_not_prolong_it(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock
    ) -> None:
        one, other = breakers
        early = await permit(other)
        await open_circuit(one)
        opened_at = (await one.status()).opened_at
        await database_clock.advance(COOL_DOWN - 10)
        await other.record_failure(early, "late")
        status = await one.status()
        assert (status.opened_at, status.failure_count, status.last_error_code) == (opened_at, 3, "ConnectionError")

    @pytest.mark.parametrize("answer", ["success", "failure", "release"])
    async def test_a_probe_whose_lease_ended_decides_nothing(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock, answer: str
    ) -> None:
        one, other = breakers
        await open_circuit(one)
        await database_clock.advance(COOL_DOWN)
        late = await permit(one)
        await database_clock.advance(PROBE_LEASE)
        probe = await permit(other)
        match answer:
            case "success":
                await one.record_success(late)
            case "failure":
                await one.record_failure(late, "late")
            case "release":
                await one.release(late)
        assert isinstance(await one.admit(), Blocked)
        await other.record_success(probe)
        assert await one.state() is CircuitState.CLOSED


class TestTime:
    @pytest.mark.parametrize("days", [-400, 400])
    async def test_a_machines_wrong_clock_plays_no_part(
        self, database: str, database_clock: DatabaseClock, days: int
    ) -> None:
        wrong = FakeClock()
        wrong.time += timedelta(days=days)
        async with shared_breaker(database) as right, shared_breaker(database, clock=wrong) as skewed:
            await open_circuit(skewed)
            for breaker in (right, skewed):
                assert await breaker.state() is CircuitState.OPEN
            await database_clock.advance(COOL_DOWN - 10)
            wrong.time -= timedelta(days=2 * days)
            for breaker in (right, skewed):
                assert isinstance(await breaker.admit(), Blocked)
            await database_clock.advance(10)
            probe = await permit(skewed)
            assert isinstance(await right.admit(), Blocked)
            await skewed.record_success(probe)
            assert await right.state() is CircuitState.CLOSED

    async def test_a_database_clock_set_back_prolongs_silence_by_one_cool_down_at_most(
        self, breakers: list[DynamicsCircuitBreaker], database_clock: DatabaseClock
    ) -> None:
        one, other = breakers
        await open_circuit(one)
        await database_clock.advance(-86400)
        assert isinstance(await other.admit(), Blocked)
        await database_clock.advance(COOL_DOWN)
        assert await one.call(works) == "done"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def cancelled_at(suspension: int, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await something in a task that is cancelled where it is suspended for the n-th time."""
    return await _cancelled_at(suspension, coroutine)


@types.coroutine
def _cancelled_at(suspension: int, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    task = asyncio.current_task()
    assert task is not None
    resume: Callable[[], Any] = partial(coroutine.send, None)
    for number in itertools.count(1):
        try:
            waits_for = resume()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if number == suspension:
            task.cancel()
        try:
            yield waits_for
            resume = partial(coroutine.send, None)
        except BaseException as error:
            resume = partial(coroutine.throw, error)
    raise AssertionError("counting has no end")
