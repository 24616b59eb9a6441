"""Histories that outgrow their column are told, while there is time to do something about it (R22)."""

from uuid import UUID

from dynamics_sync.certifications.history_store import HistoryStore
from dynamics_sync.certifications.jobs import repeat
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock

EVERY_SECONDS = 300.0
MOST_TOLD = 1000
"""Certifications that are told one by one; the metric counts all."""


class HistoryWatch:
    """Tells each certification once when its history has more than 500 entries."""

    def __init__(self, store: HistoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._told: frozenset[UUID] = frozenset()

    async def run(self) -> None:
        """Until cancelled. Whatever goes wrong is told, and tried again later."""
        await repeat(self.look, EVERY_SECONDS, self._clock, "history.watch_failed")

    async def look(self) -> None:
        """Tell those that were not oversized at the last look, or all at the first one."""
        found = await self._store.oversized(MOST_TOLD)
        for certification_id in found.keys() - self._told:
            emit("history.oversized", "warning", certification_id=str(certification_id), count=found[certification_id])
        self._told = frozenset(found)
