"""What the inbox asks Dynamics, behind the breaker that all workers share: who we are, and how a record is now."""

from collections.abc import Mapping
from datetime import datetime

from dynamics_sync.core.conflicts import Incoming
from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import TableMapping
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import GentleReader, Held, Patience, Reader, View

MOST_SECONDS = 5.0
"""How long a delivery rests while Dynamics is to be left alone."""


class NotNowError(Exception):
    """Dynamics is to be left alone for a while."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__(wait_seconds)
        self.wait_seconds = wait_seconds


class InboxReader:
    """Asks Dynamics, or says that it must not be asked now. What does not change is asked once."""

    def __init__(self, reader: Reader, gentle: GentleReader, clock: Clock) -> None:
        self._reader = reader
        self._gentle = gentle
        self._clock = clock
        self._patience = Patience(_keep, self._leave)
        self._own_id: str | None = None
        self._lookups: dict[str, Mapping[str, str]] = {}
        self._primary_ids: dict[str, str] = {}

    async def own_id(self) -> str:
        """The id of the user that our own changes are made by (Microsoft: "WhoAmI Function")."""
        if self._own_id is None:
            self._own_id = await self._gentle.ask(self._reader.who_am_i(), self._patience)
        return self._own_id

    async def lookups(self, table: TableMapping) -> Mapping[str, str]:
        """The property that each lookup of a table reads back as, by navigation property; without a question for a
        table that has none.

        Raises:
            MappingError: Dynamics does not have one.
        """
        wanted = [column.to for column in table.columns.values() if column.lookup is not None]
        if not wanted:
            return {}
        if table.logical_name not in self._lookups:
            question = self._reader.lookups(table.logical_name)
            self._lookups[table.logical_name] = await self._gentle.ask(question, self._patience)
        known = self._lookups[table.logical_name]
        if any(name not in known for name in wanted):
            raise MappingError(f"A lookup of the mapping is not in the Dynamics table {table.logical_name}.")
        return known

    async def record(self, incoming: Incoming, record_id: str) -> Held | None:
        """A record as it is now; None if it is not there."""
        table = incoming.table
        view = View(table.entity_set, await self._primary_id(table), table.alternate_key, incoming.properties)
        page = await self._gentle.ask(self._reader.with_id(view, record_id), self._patience)
        return page.held[0] if page.held else None

    async def _primary_id(self, table: TableMapping) -> str:
        if table.entity_set not in self._primary_ids:
            definition = await self._gentle.ask(self._reader.definition(table.entity_set), self._patience)
            if definition is None:
                raise MappingError(f"Dynamics has no entity set {table.entity_set}. Correct the mapping.")
            self._primary_ids[table.entity_set] = definition.primary_id
        return self._primary_ids[table.entity_set]

    def _leave(self, until: datetime | None) -> None:
        """Let go instead of waiting: other deliveries may need nothing of Dynamics."""
        if until is not None:
            seconds = (until - self._clock.now()).total_seconds()
            raise NotNowError(min(max(seconds, 0.05), MOST_SECONDS))


async def _keep() -> None:
    """Nothing has to be kept: a lease that runs out meanwhile is noticed when the change is applied."""
