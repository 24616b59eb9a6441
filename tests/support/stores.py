"""Outbox, retry queue and circuit of one target, acted on and looked at alike wherever they are. Their clock stands
still unless the test moves it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.core.operation import OperationType
from dynamics_sync.sync.ports import CircuitStore, Outbox, PaceStore, RetryQueue
from simulation.stores import EPOCH

MOMENT = 1e-6
"""The least by which a clock can go on."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record in the outbox, or taken past it. Times are seconds since `EPOCH`."""

    id: int
    version: int
    operation_type: str
    changed_columns: tuple[str, ...]
    enqueued_at: float
    attempts: int
    lease_owner: str | None
    lease_until: float | None
    is_taken: bool
    """Not in the outbox itself: in a row of `changes`, with those of the same version."""

    @property
    def is_leased(self) -> bool:
        return self.lease_owner is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the retry queue."""

    id: str
    key: str
    operation_type: str
    status: str
    reason: str
    error_code: str
    attempt_count: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed request in the time line of a record."""

    key: str
    attempt_number: int
    at: float
    error_code: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Picture:
    """All that can be seen."""

    changes: list[tuple[tuple[str, ...], str, tuple[str, ...], float]]
    """Keys, operation type, columns and time of what is not gathered yet."""
    waiting: dict[str, Waiting]
    entries: list[Entry]
    """Oldest first."""
    unanswered: dict[str, float]
    """Until when requests may take effect late."""
    applied: dict[str, tuple[int, str | None, bytes | None]]
    """Version, ETag and payload hash of what Dynamics was last known to hold."""
    attempts: list[Failed]
    circuit: Circuit
    is_sending: bool


class Transaction(Protocol):
    """An open transaction in which records are marked dirty."""

    async def change(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """Waits for other transactions that have changed the same record."""
        ...

    async def end(self, *, commits: bool) -> None: ...

    async def break_off(self) -> None:
        """Its session dies."""
        ...


class Stores(Protocol):
    """All stores of one target."""

    queue: RetryQueue
    circuits: CircuitStore
    paces: PaceStore

    def outbox(self) -> Outbox:
        """Another worker's."""
        ...

    async def mark_dirty(
        self, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """Somebody wants it sent again; committed at once."""
        ...

    async def note(
        self, *keys: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
    ) -> None:
        """What a statement of a user's changed, committed at once."""
        ...

    async def begin(self) -> Transaction: ...

    async def replay(self, ids: Sequence[str]) -> list[str]: ...

    async def discard(self, ids: Sequence[str]) -> list[str]: ...

    async def advance(self, seconds: float) -> None:
        """Move the clock, forward or back."""
        ...

    async def look(self) -> Picture: ...

    async def somebody_waits(self) -> bool:
        """Whether somebody waits for a user's transaction to end."""
        ...


async def change(stores: Stores, *keys: str, columns: Sequence[str] = ()) -> None:
    """Users change records, one after the other, and what they did is gathered."""
    for key in keys:
        await stores.note(key, columns=columns)
    await stores.outbox().gather()


@asynccontextmanager
async def transaction(stores: Stores, *keys: str, commits: bool = True) -> AsyncIterator[None]:
    """A transaction that has marked these records dirty and is still open."""
    user = await stores.begin()
    try:
        for key in keys:
            await user.change(key)
        yield
    finally:
        await user.end(commits=commits)


async def until_somebody_waits(stores: Stores) -> None:
    async with asyncio.timeout(10):
        while not await stores.somebody_waits():
            await asyncio.sleep(0.01)


def seconds_since(moment: datetime) -> float:
    """Since `EPOCH`, when all clocks begin."""
    return (moment - EPOCH) / timedelta(seconds=1)
