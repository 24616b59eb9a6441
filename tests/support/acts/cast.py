"""Who acts on the stores in PostgreSQL and in the model, and what they hold of both."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from dynamics_sync.core.operation import OperationType, SyncOperation
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.sync.ports import Outbox
from simulation.stores import Database
from support.orders import Thread
from support.postgres_stores import PostgresStores
from support.stores import MOMENT, Transaction

PLACES = "places"
"""What those share who put records into the outbox: a lock that keeps others from taking any past it."""


@dataclass(frozen=True, slots=True)
class Held:
    """A record that a worker claimed, as PostgreSQL and as the model knows it."""

    worker: int
    real: SyncOperation
    modelled: SyncOperation

    @property
    def key(self) -> str:
        return self.real.record_key

    def is_ours(self, model: Database) -> bool:
        """Whether the lease under which it was claimed has not passed to somebody else."""
        row = model.outbox.get(self.key)
        return row is not None and (row.id, row.lease_owner) == (self.modelled.outbox_id, self.modelled.claim_id)

    def may_be_lost(self, model: Database) -> bool:
        """Whether the lease has passed to somebody else, or may do so now."""
        return not self.is_ours(model) or model.outbox[self.key].lease_until < model.clock()

    def skips(self, model: Database) -> frozenset[str]:
        """What is left out where its row is locked: the row of the outbox of which we have the lease."""
        is_there = self.is_ours(model) and not model.outbox[self.key].is_taken
        return frozenset({self.key}) if is_there else frozenset()

    def waits(self, model: Database, _: object = None) -> bool:
        """Whether it is taken, and an open transaction is unfolding it."""
        return self.is_ours(model) and model.outbox[self.key].is_taken and self.key in model.locked


@dataclass(slots=True)
class Pending:
    """A user's open transaction: key, type, columns and time of each change, and what it keeps from others."""

    real: Transaction
    changes: list[tuple[str, OperationType, tuple[str, ...], float]] = field(default_factory=list)
    keeps: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Act:
    """Something that one session does.

    Args:
        keys: the records that it has to do with, and `PLACES` if it puts some into the outbox.
        real: does it in PostgreSQL.
        threads: do it in the model. The first one's last result is the act's.
        conclude: notes for later what both gave.
    """

    keys: frozenset[str]
    real: Callable[[], Awaitable[Any]]
    threads: list[Thread]
    conclude: Callable[[Any, Any], None] = lambda real, modelled: None


@dataclass(slots=True)
class Cast:
    """All of them, and the time."""

    real: PostgresStores
    model: Database = field(init=False)
    held: list[Held] = field(default_factory=list)
    users: dict[int, Pending] = field(default_factory=dict)
    entries: list[tuple[str, str]] = field(default_factory=list)
    """Ids of queue entries, in PostgreSQL and in the model."""
    taken: list[Held] = field(default_factory=list)
    """What somebody already does something with."""
    _outboxes: dict[int, Outbox] = field(default_factory=dict)
    _moments: int = 0
    _names: int = 0

    def __post_init__(self) -> None:
        self.model = Database(lambda: self.seconds, LATE_SECONDS)

    @property
    def seconds(self) -> float:
        return self._moments * MOMENT

    async def advance(self, seconds: float) -> None:
        self._moments += round(seconds / MOMENT)
        await self.real.advance(seconds)

    def name(self) -> str:
        """A new one."""
        self._names += 1
        return f"name {self._names}"

    def outbox(self, worker: int) -> Outbox:
        return self._outboxes.setdefault(worker, self.real.outbox())

    def take(self, pick: int, worker: int | None = None) -> Held | None:
        """One of the records that workers hold, or one worker. Nobody does two things with one at the same time."""
        free = [held for held in self.held if held not in self.taken and worker in (None, held.worker)]
        if not free:
            return None
        self.taken.append(free[pick % len(free)])
        return self.taken[-1]

    def find_entry(self, real_id: str, model_id: str) -> None:
        """An entry that was made, or brought up to date."""
        if (real_id, model_id) not in self.entries:
            self.entries.append((real_id, model_id))

    def let_go(self, *gone: Held) -> None:
        self.held = [held for held in self.held if held not in gone]

    def would_wait(self, key: str) -> bool:
        """Whether a transaction that stays open has the record locked."""
        return key in self.model.locked


class Choice(ABC):
    """What a test draws; a `pick` is a number among what there is."""

    @abstractmethod
    def act(self, cast: Cast, alone: bool) -> Act | None:
        """What it comes to; None if there is nothing to do it with, or if it would wait for ever.

        Args:
            alone: nobody else does anything meanwhile.
        """
