"""Claimed records that wait for a sender."""

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
        self._more_comes = False
        self._closed = False
        self._takers: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return self._count

    @property
    def full_request(self) -> int:
        """How many records the largest request takes, of those tables that wait."""
        return max(map(self._most_together, self._tables), default=1)

    def expect(self) -> None:
        """More may come in a moment: until `put`, only full requests leave."""
        self._more_comes = True

    def put(self, operations: Sequence[SyncOperation]) -> None:
        """These wait from now on."""
        for operation in operations:
            self._tables.setdefault(operation.source_table, deque()).append(operation)
        self._count += len(operations)
        self._more_comes = False
        self._wake()

    async def take(self) -> Sequence[SyncOperation]:
        """The next records for one request; none once it is closed."""
        while not self._closed:
            if taken := self._next():
                if self._count:
                    self._wake(1)
                return taken
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
        return ()

    def close(self) -> Sequence[SyncOperation]:
        """Let nothing more be taken; give what is left."""
        self._closed = True
        left = [operation for waiting in self._tables.values() for operation in waiting]
        self._tables, self._count = {}, 0
        self._wake()
        return left

    def _next(self) -> Sequence[SyncOperation]:
        for table, waiting in self._tables.items():
            most = self._most_together(table)
            if self._more_comes and len(waiting) < most:
                continue
            taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
            self._count -= len(taken)
            del self._tables[table]
            if waiting:
                self._tables[table] = waiting  # behind the others
            return taken
        return ()

    def _wake(self, count: int | None = None) -> None:
        """Let takers look, as many or all."""
        for _ in range(len(self._takers) if count is None else count):
            while self._takers:
                taker = self._takers.popleft()
                if not taker.done():
                    taker.set_result(None)
                    break
