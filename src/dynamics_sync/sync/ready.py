"""Claimed records that wait to be sent."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from dynamics_sync.core.operation import SyncOperation


class Ready:
    """Records in the order of their claims, by table: a request is for records of one table.

    Args:
        most_together: how many records of a table one request takes at present.
    """

    def __init__(self, most_together: Callable[[str], int]) -> None:
        self._most_together = most_together
        self._tables: dict[str, deque[SyncOperation]] = {}
        self._count = 0
        self._expected = 0
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def expect(self) -> None:
        """More may come in a moment: until as many `put`, only full requests leave."""
        self._expected += 1

    def put(self, operations: Sequence[SyncOperation]) -> None:
        """These wait from now on, as was expected."""
        for operation in operations:
            self._tables.setdefault(operation.source_table, deque()).append(operation)
        self._count += len(operations)
        self._expected = max(self._expected - 1, 0)
        self._changed.set()

    def waiting(self) -> Sequence[SyncOperation]:
        """All of them."""
        return [operation for waiting in self._tables.values() for operation in waiting]

    def remove(self, operations: Sequence[SyncOperation]) -> Sequence[SyncOperation]:
        """Let these go, as far as they still wait; give those that did."""
        gone = {id(operation) for operation in operations}
        removed = [operation for operation in self.waiting() if id(operation) in gone]
        kept = {
            table: deque(operation for operation in waiting if id(operation) not in gone)
            for table, waiting in self._tables.items()
        }
        self._tables = {table: waiting for table, waiting in kept.items() if waiting}
        self._count = sum(map(len, self._tables.values()))
        return removed

    async def filled(self) -> bool:
        """Wait until there is something to take; False once it is closed."""
        while self._next_table() is None and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return not self._closed

    def take(self) -> Sequence[SyncOperation]:
        """The next records for one request, if there are any."""
        table = self._next_table()
        if table is None:
            return ()
        waiting = self._tables.pop(table)
        taken = [waiting.popleft() for _ in range(min(self._most_together(table), len(waiting)))]
        self._count -= len(taken)
        if waiting:
            self._tables[table] = waiting  # behind the others
        return taken

    def close(self) -> Sequence[SyncOperation]:
        """Let nothing more be taken; give what is left."""
        self._closed = True
        left = self.waiting()
        self._tables, self._count = {}, 0
        self._changed.set()
        return left

    def _next_table(self) -> str | None:
        for table, waiting in self._tables.items():
            if not self._expected or len(waiting) >= self._most_together(table):
                return table
        return None
