"""Stores in memory, for programs that use the service or the breaker by themselves, in one process."""

from datetime import datetime
from uuid import uuid4

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.sync.clock import SystemClock
from dynamics_sync.sync.ports import CircuitReading, Clock, Failure


class InMemoryCircuitStore:
    """A circuit shared by the tasks of one event loop. Compare-and-set is atomic because it never awaits."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.circuit = Circuit()
        """As it is now: nobody else has another."""

    async def load(self) -> CircuitReading:
        return CircuitReading(self.circuit, self._clock.now())

    async def compare_and_set(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        if self.circuit.revision != expected.revision or (not_after is not None and self._clock.now() > not_after):
            return False
        self.circuit = new
        return True


class InMemoryRetryQueue:
    """Entries by id. They are gone when the process ends: for trials and for programs that store them elsewhere."""

    def __init__(self) -> None:
        self.entries: dict[str, Failure] = {}

    async def add(self, failure: Failure) -> str:
        for entry_id, known in self.entries.items():
            if known.operation.record == failure.operation.record:
                self.entries[entry_id] = failure
                return entry_id
        entry_id = str(uuid4())
        self.entries[entry_id] = failure
        return entry_id
