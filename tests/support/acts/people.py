"""What users and operators do, and programs that have no outbox."""

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.core.operation import WAITING_STATUSES, FailureReason, OperationType, SyncOperation
from dynamics_sync.sync.ports import Failure
from simulation.stores import EPOCH, Database
from support.acts.cast import PLACES, Act, Cast, Choice, Pending
from support.orders import Step
from support.outbox import TABLE


@dataclass(frozen=True)
class Change(Choice):
    """A user changes records: that waits for nobody."""

    keys: tuple[str, ...]
    operation_type: OperationType = OperationType.UPSERT
    columns: tuple[str, ...] = ()

    def act(self, cast: Cast, alone: bool) -> Act | None:
        how = {"operation_type": self.operation_type, "columns": self.columns}
        step = Step(lambda model, _: model.note(*self.keys, **how))
        return Act(frozenset(self.keys), lambda: cast.real.note(*self.keys, **how), [[step]])


@dataclass(frozen=True)
class Mark(Choice):
    """Somebody wants a record sent again."""

    key: str
    operation_type: OperationType = OperationType.UPSERT
    columns: tuple[str, ...] = ()

    def act(self, cast: Cast, alone: bool) -> Act | None:
        if alone and cast.would_wait(self.key):
            return None
        change = (self.key, self.operation_type, self.columns)
        step = Step(lambda model, _: model.mark_dirty(*change), lambda model, _: self.key in model.locked)
        return Act(frozenset({self.key, PLACES}), lambda: cast.real.mark_dirty(*change), [[step]])


@dataclass(frozen=True)
class Lock(Choice):
    """Somebody marks a record dirty in a transaction that stays open."""

    user: int
    key: str
    operation_type: OperationType = OperationType.UPSERT
    columns: tuple[str, ...] = ()

    def act(self, cast: Cast, alone: bool) -> Act | None:
        pending = cast.users.get(self.user)
        is_own = pending is not None and self.key in pending.keeps
        if cast.would_wait(self.key) and not is_own:
            return None
        change = (self.key, self.operation_type, self.columns)

        async def lock() -> None:
            if self.user not in cast.users:
                cast.users[self.user] = Pending(await cast.real.begin())
            await cast.users[self.user].real.change(*change)

        kept = cast.model.together(self.key)

        def conclude(real: object, modelled: object) -> None:
            cast.users[self.user].changes.append((*change, cast.seconds))
            cast.users[self.user].keeps |= kept

        return Act(kept | {PLACES}, lock, [[Step(lambda model, _: model.locked.update(kept))]], conclude)


class Ending(StrEnum):
    """How a transaction ends."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    BREAK_OFF = "break off"
    """Its session dies."""


@dataclass(frozen=True)
class End(Choice):
    """A user's transaction ends."""

    user: int
    ending: Ending = Ending.COMMIT

    def act(self, cast: Cast, alone: bool) -> Act | None:
        pending = cast.users.pop(self.user, None)
        if pending is None:
            return None
        commits = self.ending is Ending.COMMIT

        async def really() -> None:
            if self.ending is Ending.BREAK_OFF:
                await pending.real.break_off()
            else:
                await pending.real.end(commits=commits)

        def end(model: Database, _: object) -> None:
            model.locked -= pending.keeps
            for change in pending.changes if commits else ():
                model.mark_dirty(*change)

        return Act(pending.keeps | {PLACES}, really, [[Step(end)]])


@dataclass(frozen=True)
class Queue(Choice):
    """A program without an outbox puts a record into the queue."""

    key: str
    reason: FailureReason = FailureReason.REJECTED

    def act(self, cast: Cast, alone: bool) -> Act:
        failure = Failure(SyncOperation(TABLE, self.key), self.reason, "0x80040203", 1)
        entry_id = cast.name()

        step = Step(lambda model, _: model.add(failure, entry_id))
        return Act(frozenset({self.key}), lambda: cast.real.queue.add(failure), [[step]], cast.find_entry)


@dataclass(frozen=True)
class Replay(Choice):
    """An operator sends a record again: the entry is read; the outbox's row is waited for and locked; by then the entry
    may have been closed."""

    pick: int

    def act(self, cast: Cast, alone: bool) -> Act | None:
        if not cast.entries:
            return None
        real_id, model_id = cast.entries[self.pick % len(cast.entries)]
        key = cast.model.queue[model_id].key
        if alone and cast.would_wait(key):
            return None

        async def replay() -> bool:
            return await cast.real.replay([real_id]) == [real_id]

        def read(model: Database, _: object) -> OperationType | None:
            entry = model.queue[model_id]
            return entry.failure.operation.operation_type if entry.status in WAITING_STATUSES else None

        def lock(model: Database, read: OperationType | None) -> OperationType | None:
            if read is not None:
                model.locked |= model.together(key)
            return read

        def finish(model: Database, read: OperationType | None) -> bool:
            if read is None:
                return False
            model.locked -= model.together(key)
            if not model.replay(model_id):
                return False
            model.outbox[key].operation_type = read
            return True

        waits = Step(lock, lambda model, read: read is not None and key in model.locked)
        return Act(frozenset({key, PLACES}), replay, [[Step(read), waits, Step(finish)]])


@dataclass(frozen=True)
class Discard(Choice):
    """An operator closes an entry."""

    pick: int

    def act(self, cast: Cast, alone: bool) -> Act | None:
        if not cast.entries:
            return None
        real_id, model_id = cast.entries[self.pick % len(cast.entries)]

        async def discard() -> bool:
            return await cast.real.discard([real_id]) == [real_id]

        keys = frozenset({cast.model.queue[model_id].key})
        return Act(keys, discard, [[Step(lambda model, _: model.discard(model_id))]])


@dataclass(frozen=True)
class SetCircuit(Choice):
    """Somebody changes the circuit, or would if he knew how it is."""

    state: CircuitState
    failure_count: int
    is_stale: bool = False

    def act(self, cast: Cast, alone: bool) -> Act:
        current = cast.model.circuit
        expected = replace(current, revision=current.revision - 1) if self.is_stale else current
        new = Circuit(
            state=self.state,
            failure_count=self.failure_count,
            opened_at=None if self.state is CircuitState.CLOSED else EPOCH + timedelta(seconds=cast.seconds),
            last_error_code="http_503" if self.failure_count else None,
            probe_owner=cast.name() if self.state is CircuitState.HALF_OPEN else None,
            generation=current.generation + (self.state is not current.state),
            revision=current.revision + 1,
        )
        step = Step(lambda model, _: model.compare_and_set_circuit(expected, new))
        return Act(frozenset(), lambda: cast.real.circuits.compare_and_set(expected, new), [[step]])
