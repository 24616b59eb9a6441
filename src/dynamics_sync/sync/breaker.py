"""DynamicsCircuitBreaker: a circuit, a store and a clock.

The decisions are `core.circuit`'s; here they are made atomic. Each change is a compare-and-set, tried again on the
newest state until it holds, so that two workers never both open, both probe, or lose a count (R11).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ParamSpec, TypeVar
from uuid import uuid4

from dynamics_sync.core import circuit as decide
from dynamics_sync.core.circuit import Blocked, Circuit, CircuitSettings, CircuitState, Permit
from dynamics_sync.core.errors import CircuitOpenError, DatabaseError
from dynamics_sync.core.operation import DYNAMICS
from dynamics_sync.sync.clock import SystemClock
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.memory import InMemoryCircuitStore
from dynamics_sync.sync.ports import CircuitReading, CircuitStore, Clock

ADMIT_TRIES = 5
"""How often leave is asked for where the store's answers come too late to be used."""

OPERATOR = "operator"
"""The error code of a circuit that a person opened."""

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
        clock: only for the default store, for `trust_seconds` and for the settings' `notice_seconds`.
        trust_seconds: how long a reading of a *healthy* circuit is believed without asking the store again. The
            worker's claims bring a reading along, so that a healthy circuit costs no round trip. 0 asks each time.
        target: whose circuit it is, for its events.

    Raises:
        ValueError: a reading would be believed for longer than an opening circuit gives notice.
    """

    def __init__(
        self,
        settings: CircuitSettings | None = None,
        store: CircuitStore | None = None,
        clock: Clock | None = None,
        trust_seconds: float = 0.0,
        target: str = DYNAMICS,
    ) -> None:
        self._settings = settings or CircuitSettings()
        if trust_seconds > self._settings.news_seconds > 0:
            raise ValueError("trust_seconds must not be longer than half of the settings' notice_seconds")
        self._clock = clock or SystemClock()
        self._store = store or InMemoryCircuitStore(self._clock)
        # A class derived from it may be shared by others, and have to be asked.
        self._at_hand = self._store if type(self._store) is InMemoryCircuitStore else None
        self._trust_seconds = trust_seconds
        self._target = target
        self._known = Circuit()
        self._known_at = float("-inf")
        self._healthy: Circuit | None = None
        self._healthy_permit = Permit("", 0, is_probe=False)

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function(...)` if the circuit lets it pass. An exception counts as a failure, a cancellation does
        not count, and a cancelled probe frees its place at once.

        Raises:
            CircuitOpenError: it was not called.
        """
        verdict: Permit | Blocked | None = self._permit_if_healthy()
        if verdict is None:
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
            if self._permit_if_healthy() is None:
                await self.record_success(verdict)
        except BaseException:
            await self.release(verdict)
            raise
        return result

    async def admit(self) -> Permit | Blocked:
        """Ask for leave to make one request. It must leave at once: nothing may be awaited before. A permit must come
        back by one of the three methods below.

        Raises:
            DatabaseError: the store is too slow to rely on what it says.
        """
        if (permit := self._permit_if_healthy()) is not None:
            return permit
        for _ in range(ADMIT_TRIES):
            asked_at = self._clock.monotonic()
            verdict = await self._ask()
            if isinstance(verdict, Blocked) or not self._is_too_old(asked_at):
                return verdict
            await self.release(verdict)
        raise DatabaseError(
            f"The circuit could not be read within {self._settings.news_seconds:g} s, so nothing is sent for now. "
            "Look for what slows the database, or the way to it, down."
        )

    def _is_too_old(self, asked_at: float) -> bool:
        news_seconds = self._settings.news_seconds
        return news_seconds > 0 and self._clock.monotonic() - asked_at >= news_seconds

    async def _ask(self) -> Permit | Blocked:
        owner = uuid4().hex
        while True:
            reading = await self.look()
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

    async def force_open(self) -> None:
        """A person wants silence, for one cool-down from now; then a probe decides."""
        await self._apply(lambda reading: decide.force_open(reading.circuit, reading.now, OPERATOR, self._settings))

    async def force_closed(self) -> None:
        """A person knows that Dynamics is well."""
        await self._apply(lambda reading: decide.force_closed(reading.circuit))

    async def state(self) -> CircuitState:
        """CLOSED, OPEN or HALF_OPEN, as a caller would meet it now (R9)."""
        return (await self.status()).state

    async def status(self) -> CircuitStatus:
        """The state with what a person needs to understand it."""
        reading = await self.look()
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
        """A healthy circuit was read less than `trust_seconds` ago, or is at hand: the store need not be asked."""
        return self._permit_if_healthy() is not None

    def was_healthy(self, within_seconds: float) -> bool:
        """What was read last is a healthy circuit, and not longer ago: reason enough to get ready, not to send."""
        return self._known.is_healthy and self._clock.monotonic() - self._known_at < within_seconds

    def _permit_if_healthy(self) -> Permit | None:
        """Leave without asking. Made once for each circuit, as this is all that a call costs while things are well."""
        circuit = self._known if self._at_hand is None else self._at_hand.circuit
        if circuit is not self._healthy:
            if not circuit.is_healthy:
                return None
            self._healthy, self._healthy_permit = circuit, Permit("", circuit.generation, is_probe=False)
        if self._at_hand is None and self._clock.monotonic() - self._known_at >= self._trust_seconds:
            return None
        return self._healthy_permit

    def seconds_until_admission(self, reading: CircuitReading) -> float:
        """How long a caller that has just seen `reading` need not ask; 0 where it may, or where it must, because the
        clock was set back and no silence would end without it."""
        if decide.needs_new_times(reading.circuit, reading.now, self._settings):
            return 0.0
        return (decide.retry_at(reading.circuit, reading.now, self._settings) - reading.now).total_seconds()

    def observe(self, reading: CircuitReading, asked_at: float) -> None:
        """Take note of a circuit that was read together with something else, asked for at that monotonic time."""
        self._remember(reading.circuit, asked_at)

    async def look(self) -> CircuitReading:
        """The circuit as it is stored now."""
        asked_at = self._clock.monotonic()
        reading = await self._store.load()
        self._remember(reading.circuit, asked_at)
        return reading

    async def _apply(self, decision: Callable[[CircuitReading], Circuit]) -> Circuit:
        tries = 0
        while True:
            reading = await self.look()
            new = decision(reading)
            not_after = self._latest_for(reading, new) if tries < ADMIT_TRIES else None  # late is better than never
            if await self._store_change(reading.circuit, new, not_after):
                return new
            tries += 1

    def _latest_for(self, reading: CircuitReading, new: Circuit) -> datetime | None:
        """An opening that is stored too late would promise a silence that others cannot know of yet."""
        opens = new.state is CircuitState.OPEN and reading.circuit.state is not CircuitState.OPEN
        if not opens or self._settings.news_seconds == 0:
            return None
        return reading.now + timedelta(seconds=self._settings.news_seconds)

    async def _store_change(self, old: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        if new is old:
            return True
        asked_at = self._clock.monotonic()
        if not await self._store.compare_and_set(old, new, not_after):
            return False
        self._remember(new, asked_at)
        _tell(old, new, self._target)
        return True

    def _remember(self, circuit: Circuit, asked_at: float) -> None:
        if (circuit.revision, asked_at) >= (self._known.revision, self._known_at):
            self._known, self._known_at = circuit, asked_at


def _tell(old: Circuit, new: Circuit, target: str) -> None:
    """One event for each transition, told by whoever's change was stored."""
    if new.paused_until is not None and new.paused_until != old.paused_until:
        emit("circuit.paused", "warning", target=target, retry_at=new.paused_until)
    if new.generation == old.generation:
        return
    match new.state:
        case CircuitState.OPEN:
            emit(
                "circuit.opened",
                "warning",
                target=target,
                opened_at=new.opened_at,
                failure_count=new.failure_count,
                last_error_code=new.last_error_code,
            )
        case CircuitState.HALF_OPEN:
            if new.probe_owner is not None:
                emit("circuit.probing", target=target, failure_count=new.failure_count)
            else:
                emit("circuit.probe_released", target=target)
        case CircuitState.CLOSED:
            emit("circuit.closed", target=target)
