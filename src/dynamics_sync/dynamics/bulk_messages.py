"""Which tables have the bulk message, asked of Dynamics once for each (Microsoft: "Use bulk operation messages")."""

from datetime import datetime

from dynamics_sync.core.errors import CredentialsError, DatabaseError
from dynamics_sync.core.mapping import TableMapping
from dynamics_sync.dynamics.bundling import Bundling
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import GentleReader, Patience, Reader, ReadingError, RefusedReadingError

AGAIN_SECONDS = 60.0
"""How long until the next question where there was no answer."""

UPSERT = ("UpsertMultiple",)
UPSERTS_PARTS = ("CreateMultiple", "UpdateMultiple")
"""Where a table has both, it has UpsertMultiple too, which need not be listed."""


class BulkMessages:
    """Asks until all is known; meanwhile records go one at a time."""

    def __init__(self, bundling: Bundling, reader: Reader, gentle: GentleReader, clock: Clock) -> None:
        self._bundling = bundling
        self._reader = reader
        self._gentle = gentle
        self._clock = clock

    @property
    def known(self) -> bool:
        """Whether there is nothing left to ask."""
        return not self._bundling.undecided

    async def run(self) -> None:
        """Until the last table is known."""
        while undecided := self._bundling.undecided:
            try:
                for table in undecided:
                    self._bundling.decide(table, has_bulk=await self._has_bulk(table))
            except (ReadingError, CredentialsError, DatabaseError) as error:
                emit("bulk.unknown", "warning", exception_type=type(error).__name__)
                await self._clock.sleep(AGAIN_SECONDS)

    async def _has_bulk(self, table: TableMapping) -> bool:
        try:
            return await self._has(table, UPSERT) or await self._has(table, UPSERTS_PARTS)
        except RefusedReadingError:
            return False  # who may not read it may write all the same

    async def _has(self, table: TableMapping, names: tuple[str, ...]) -> bool:
        return await self._gentle.ask(self._reader.has_messages(table.logical_name, names), _PATIENCE)


async def _keep() -> None:
    """There is nothing to keep."""


def _tell(until: datetime | None) -> None:
    """Nobody waits for it."""


_PATIENCE = Patience(_keep, _tell)
