"""DynamicsCircuitBreaker: a circuit, a store and a clock.

The decisions are `core.circuit`'s; here they are made atomic. Each change is a compare-and-set, tried again on the
newest state until it holds, so that two workers never both open, both probe, or lose a count (R11).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ParamSpec, TypeVar
from uuid import uuid4

from dynamics_sync.core import circuit as decide
from dynamics_sync.core.circuit import Blocked, Circuit, CircuitSettings, CircuitState, Permit
from dynamics_sync.core.errors import CircuitOpenError
from dynamics_sync.sync.clock import SystemClock
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.memory import InMemoryCircuitStore
from dynamics_sync.sync.ports import CircuitReading, CircuitStore, Clock

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """The circuit as a health check shows it (R9)."""

    state: CircuitState
    failure_count: int
    opened_at: datetime | None
    last_error_code: str | None
    retry_at: datetime | None
    """When a call may pass again; None where one may pass now."""


class DynamicsCircuitBreaker:
    """A circuit breaker that all callers of one target share.

    Args:
        settings: threshold (3), cool-down (60 s), probe lease (90 s), longest pause (15 min).
        store: where the circuit lives; in memory by default. With `postgres.PostgresCircuitStore` all workers of all
            machines share it, judged by the database's clock.
        clock: only for the default store and for `trust_seconds`.
        trust_seconds: how long a reading of a *healthy* circuit is believed without asking the store again. The
            worker's claims bring a reading along, so that a healthy circuit costs no round trip. 0 asks each time.
    """

    def __init__(
        self,
        settings: CircuitSettings | None = None,
        store: CircuitStore | None = None,
        clock: Clock | None = None,
        trust_seconds: float = 0.0,
    ) -> None:
        self._settings = settings or CircuitSettings()
        self._clock = clock or SystemClock()
        self._store = store or InMemoryCircuitStore(self._clock)
        self._trust_seconds = trust_seconds
        self._known = Circuit()
        self._known_at = float("-inf")

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function(...)` if the circuit lets it pass. An exception counts as a failure, a cancellation does
        not count, and a cancelled probe frees its place at once.

        Raises:
            CircuitOpenError: it was not called.
        """
        verdict = await self.admit()
        if isinstance(verdict, Blocked):
            raise CircuitOpenError(
                f"The call was not made: the circuit is {verdict.reason or 'paused'}. "
                f"It may be made from {verdict.retry_at.isoformat()} on."
            )
        try:
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                await self.record_failure(verdict, type(error).__name__)
                raise
            await self.record_success(verdict)
        except BaseException:
            await self.release(verdict)
            raise
        return result

    async def admit(self) -> Permit | Blocked:
        """Ask for leave to make one request. A permit must come back by one of the three methods below."""
        if self.believes_healthy:
            return Permit("", self._known.generation, is_probe=False)
        owner = uuid4().hex
        while True:
            reading = await self._load()
            admission = decide.admit(reading.circuit, reading.now, owner, self._settings)
            try:
                stored = await self._store_change(reading.circuit, admission.circuit)
            except asyncio.CancelledError:
                if isinstance(admission.verdict, Permit):
                    await self.release(admission.verdict)  # it may be stored all the same: the commit was under way
                raise
            if stored:
                return admission.verdict

    async def record_success(self, permit: Permit) -> None:
        """The request was answered by a Dynamics that works."""
        if self.believes_healthy:
            return
        await self._apply(lambda reading: decide.on_success(reading.circuit, permit))

    async def record_failure(self, permit: Permit, error_code: str) -> CircuitState:
        """The request failed as it does when Dynamics is not well. Gives the state that follows."""
        circuit = await self._apply(
            lambda reading: decide.on_failure(reading.circuit, permit, reading.now, error_code, self._settings)
        )
        return circuit.state

    async def release(self, permit: Permit) -> None:
        """The call ended without a verdict; a probe frees its place. Without effect once a verdict is recorded."""
        if permit.is_probe:
            await self._apply(lambda reading: decide.on_release(reading.circuit, permit))

    async def pause(self, seconds: float) -> None:
        """Let nobody send for a while (`Retry-After`), at most as long as the settings allow."""
        await self._apply(lambda reading: decide.on_pause(reading.circuit, reading.now, seconds, self._settings))

    async def state(self) -> CircuitState:
        """CLOSED, OPEN or HALF_OPEN, as a caller would meet it now (R9)."""
        return (await self.status()).state

    async def status(self) -> CircuitStatus:
        """The state with what a person needs to understand it."""
        reading = await self._load()
        circuit = reading.circuit
        retry_at = decide.retry_at(circuit, reading.now, self._settings)
        return CircuitStatus(
            state=decide.state_at(circuit, reading.now, self._settings),
            failure_count=circuit.failure_count,
            opened_at=circuit.opened_at,
            last_error_code=circuit.last_error_code,
            retry_at=retry_at if retry_at > reading.now else None,
        )

    @property
    def believes_healthy(self) -> bool:
        """A healthy circuit was read less than `trust_seconds` ago: the store need not be asked."""
        return self._known.is_healthy and self._clock.monotonic() - self._known_at < self._trust_seconds

    def seconds_until_admission(self, reading: CircuitReading) -> float:
        """How long a caller that has just seen `reading` need not ask; 0 where it may, or where it must, because the
        clock was set back and no silence would end without it."""
        if decide.needs_new_times(reading.circuit, reading.now, self._settings):
            return 0.0
        return (decide.retry_at(reading.circuit, reading.now, self._settings) - reading.now).total_seconds()

    def observe(self, reading: CircuitReading) -> None:
        """Take note of a circuit that was read together with something else."""
        self._remember(reading.circuit)

    async def _load(self) -> CircuitReading:
        reading = await self._store.load()
        self._remember(reading.circuit)
        return reading

    async def _apply(self, decision: Callable[[CircuitReading], Circuit]) -> Circuit:
        while True:
            reading = await self._load()
            new = decision(reading)
            if await self._store_change(reading.circuit, new):
                return new

    async def _store_change(self, old: Circuit, new: Circuit) -> bool:
        if new is old:
            return True
        if not await self._store.compare_and_set(old, new):
            return False
        self._remember(new)
        _tell(old, new)
        return True

    def _remember(self, circuit: Circuit) -> None:
        if circuit.revision >= self._known.revision:
            self._known = circuit
            self._known_at = self._clock.monotonic()


def _tell(old: Circuit, new: Circuit) -> None:
    """One event for each transition, told by whoever's change was stored."""
    if new.paused_until is not None and new.paused_until != old.paused_until:
        emit("circuit.paused", "warning", retry_at=new.paused_until)
    if new.generation == old.generation:
        return
    match new.state:
        case CircuitState.OPEN:
            emit(
                "circuit.opened",
                "warning",
                opened_at=new.opened_at,
                failure_count=new.failure_count,
                last_error_code=new.last_error_code,
            )
        case CircuitState.HALF_OPEN:
            if new.probe_owner is not None:
                emit("circuit.probing", failure_count=new.failure_count)
            else:
                emit("circuit.probe_released")
        case CircuitState.CLOSED:
            emit("circuit.closed")
