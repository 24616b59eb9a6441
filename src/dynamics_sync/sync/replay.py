"""Replay: entries of the retry queue go back into the outbox, few enough at a time that Dynamics bears it.

What is put back goes the one road that every change goes, so this only decides how much of it is under way, and when
to wait. Nothing is kept here that could be lost: what was not put back is still an open entry, and the same replay
asked for again goes on with it.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.operation import WAITING_STATUSES, QueueStatus
from dynamics_sync.sync.breaker import CircuitStatus, DynamicsCircuitBreaker
from dynamics_sync.sync.ports import Clock


class ReplayQueue(Protocol):
    """What a replay needs of the retry queue."""

    async def replay(self, ids: Sequence[UUID], actor: str) -> list[UUID]:
        """Put records back into the outbox; give the entries that were open and are being replayed now."""
        ...

    async def standing(self, ids: Collection[UUID]) -> Mapping[UUID, QueueStatus]:
        """Where entries stand now."""
        ...

    async def replaying(self) -> int:
        """Entries that are on their way, whoever sent them again."""
        ...


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How fast a replay goes, and how long it waits for something to happen."""

    window: int = 50
    """Entries on their way at once, those of other replays included."""
    per_second: float = 20.0
    """Entries put back in a second: what Dataverse allows one user in the long run (6,000 requests in five minutes)."""
    look_seconds: float = 0.2
    """How often it looks where its entries are."""
    patience_seconds: float = 15.0
    """How long nothing may move, and nobody send, while calls may pass."""
    blocked_patience_seconds: float = 195.0
    """How long the circuit, or a pause, may let no call pass."""


class ReplayEnd(StrEnum):
    """Why a replay ended."""

    ALL_TOLD = "all_told"
    """It is known of each entry how it ended."""
    NOBODY_SENDS = "nobody_sends"
    BLOCKED = "blocked"
    """The circuit stayed open, or Dynamics asked for a long silence."""


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Where a replay stands."""

    circuit: CircuitStatus
    chosen: int
    left: int
    """Not put back yet: they are still open."""
    on_the_way: int = 0
    arrived: int = 0
    failed_again: tuple[UUID, ...] = ()
    no_longer_open: int = 0
    """Others closed them, or sent them again, before their turn came."""

    @property
    def put_back(self) -> int:
        return self.on_the_way + self.arrived + len(self.failed_again)

    @property
    def calls_pass(self) -> bool:
        """The circuit is closed, and Dynamics did not ask for silence."""
        return self.circuit.state is CircuitState.CLOSED and self.circuit.retry_at is None

    def room(self, window: int) -> int:
        """How many may be on their way now. A half-open circuit gets one: there may be no other to be its probe."""
        if self.calls_pass:
            return window
        wants_probe = self.circuit.state is CircuitState.HALF_OPEN and self.circuit.retry_at is None
        return 1 if wants_probe else 0


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """How a replay ended."""

    end: ReplayEnd
    progress: ReplayProgress


class Replay:
    """Replays entries at the pace of its settings.

    Args:
        is_sending: whether any worker holds a record: then slow is not the same as dead.
    """

    def __init__(
        self,
        *,
        queue: ReplayQueue,
        breaker: DynamicsCircuitBreaker,
        is_sending: Callable[[], Awaitable[bool]],
        clock: Clock,
        settings: ReplaySettings,
    ) -> None:
        self._queue = queue
        self._breaker = breaker
        self._is_sending = is_sending
        self._clock = clock
        self._settings = settings

    async def run(
        self, ids: Sequence[UUID], actor: str, tell: Callable[[ReplayProgress], None] = lambda progress: None
    ) -> ReplayReport:
        """Put back all that are still open, and wait until it is known of each how it ended, or nothing moves.

        Args:
            tell: is called after each look.
        """
        course = _Course(ids, await self._breaker.status(), self._settings, self._clock.monotonic())
        while True:
            course.go_on(await self._queue.standing(course.on_the_way), await self._breaker.status())
            if room := course.progress.room(self._settings.window):
                batch = course.next_batch(room - await self._queue.replaying())
                course.note_put_back(batch, await self._queue.replay(batch, actor))
            tell(course.progress)
            end = course.end_at(self._clock.monotonic())
            if end is ReplayEnd.NOBODY_SENDS and await self._is_sending():
                end = None
            if end is not None:
                return ReplayReport(end, course.progress)
            await self._clock.sleep(self._settings.look_seconds)
            course.earn(self._clock.monotonic())


class _Course:
    """The entries of one replay: those whose turn has not come, those on their way, and what became of the rest.

    Times are those of a monotonic clock.
    """

    def __init__(self, ids: Sequence[UUID], circuit: CircuitStatus, settings: ReplaySettings, now: float) -> None:
        self._settings = settings
        self._left = deque(ids)
        self.on_the_way: set[UUID] = set()
        self.progress = ReplayProgress(circuit, len(ids), len(ids))
        self._allowance = 1.0
        self._earned_at = now
        self._known = self.progress
        self._moved_at = now
        self._passing_at = now

    def earn(self, now: float) -> None:
        """Each moment allows a little more, up to what one second allows: a late look makes good no more than that."""
        earned = (now - self._earned_at) * self._settings.per_second
        self._allowance = min(self._allowance + earned, max(self._settings.per_second, 1.0))
        self._earned_at = now

    def next_batch(self, room: int) -> list[UUID]:
        count = max(min(room, int(self._allowance), len(self._left)), 0)
        self._allowance -= count
        return [self._left.popleft() for _ in range(count)]

    def note_put_back(self, batch: Sequence[UUID], put_back: Collection[UUID]) -> None:
        self.on_the_way.update(put_back)
        self._note(no_longer_open=self.progress.no_longer_open + len(batch) - len(put_back))

    def go_on(self, standing: Mapping[UUID, QueueStatus], circuit: CircuitStatus) -> None:
        """Take note of what became of those on their way."""
        told = [entry for entry in self.on_the_way if standing.get(entry) is not QueueStatus.REPLAYING]
        arrived = [entry for entry in told if standing.get(entry) in _ARRIVED]
        failed = [entry for entry in told if standing.get(entry) in WAITING_STATUSES]
        self.on_the_way.difference_update(told)
        self._note(
            circuit=circuit,
            arrived=self.progress.arrived + len(arrived),
            failed_again=(*self.progress.failed_again, *failed),
            no_longer_open=self.progress.no_longer_open + len(told) - len(arrived) - len(failed),
        )

    def end_at(self, now: float) -> ReplayEnd | None:
        """Whether this is the end. Time during which no call may pass is not held against the workers."""
        before, self._known = self._known, self.progress
        if not self.progress.left and not self.on_the_way:
            return ReplayEnd.ALL_TOLD
        if not self.progress.calls_pass:
            self._moved_at = now
            return ReplayEnd.BLOCKED if now - self._passing_at >= self._settings.blocked_patience_seconds else None
        self._passing_at = now
        if (before.left, before.on_the_way) != (self.progress.left, self.progress.on_the_way):
            self._moved_at = now
        return ReplayEnd.NOBODY_SENDS if now - self._moved_at >= self._settings.patience_seconds else None

    def _note(self, **fields: object) -> None:
        counts = {"left": len(self._left), "on_the_way": len(self.on_the_way)}
        self.progress = replace(self.progress, **counts | fields)  # type: ignore[arg-type]


_ARRIVED = (QueueStatus.REPLAYED, QueueStatus.SUPERSEDED)
