"""The inbox: what Dynamics told by webhooks is applied to the rows here, in order for each record (R19).

A delivery is claimed under a lease, and applied and settled in one transaction: a process that dies in between leaves
it to the next one. What cannot be done for now waits, and keeps what came later of the same record waiting; what needs
a person steps aside.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamics_sync.core.conflicts import Incoming, RecordNeededError
from dynamics_sync.core.decoding import UndecodableError
from dynamics_sync.core.errors import CredentialsError, DatabaseError, MappingError
from dynamics_sync.core.incoming import InboxStatus, Message, RecordChange
from dynamics_sync.core.mapping import Mapping as TablesMapping
from dynamics_sync.core.mapping import TableMapping
from dynamics_sync.sync.events import Level, emit
from dynamics_sync.sync.inbox_ports import (
    Application,
    BusyError,
    ClaimedDelivery,
    Contract,
    InboxStore,
    LeaseLost,
    NoSuchRow,
    NotApplicableError,
    Rows,
    Settled,
)
from dynamics_sync.sync.inbox_reading import InboxReader, NotNowError
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import ReadingError, RefusedReadingError

AT_ONCE = 8
"""Records whose changes are applied at once."""

BUSY_SECONDS = 0.2
"""How long a delivery rests whose row somebody holds."""

READING_SECONDS = 5.0
"""How long one rests that needs a record which Dynamics does not give for now."""

TOKEN_SECONDS = 30.0

MOST_FAILURES = 5
"""Tries after which a delivery waits for a person. Only faults of our own count."""

FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class InboxSettings:
    """How long things take."""

    poll_seconds: float = 1.0
    lease_seconds: float = 30.0
    """After which somebody else applies the delivery of a process that died. One that is only slow notices."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A delivery that a contract understands."""

    claimed: ClaimedDelivery
    contract: str
    change: RecordChange


class Inbox:
    """One of any number of appliers on one database."""

    def __init__(
        self,
        *,
        store: InboxStore,
        rows: Rows,
        reader: InboxReader,
        contracts: Sequence[Contract],
        mapping: TablesMapping,
        types: Mapping[str, Mapping[str, str]],
        clock: Clock,
        settings: InboxSettings,
    ) -> None:
        self._store = store
        self._rows = rows
        self._reader = reader
        self.contracts = contracts
        """The first that understands a delivery reads it."""
        self._mapping = mapping
        self._types = types
        self._clock = clock
        self._settings = settings
        self._forget_at = clock.monotonic()
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. A lost database is waited for, never died of."""
        while True:
            self.wake.clear()
            try:
                found = await self.step()
            except DatabaseError as error:
                emit("database.unavailable", "error", exception_type=type(error).__name__)
                found = 0
            if not found:
                await self._rest()

    async def step(self) -> int:
        """Look once; how many deliveries were there to be applied."""
        if self._clock.monotonic() >= self._forget_at:
            self._forget_at = self._clock.monotonic() + FORGET_SECONDS
            await self._store.forget_old()
        claimed = await self._store.claim(AT_ONCE, self._settings.lease_seconds)
        await asyncio.gather(*(self._handle(each) for each in claimed))
        return len(claimed)

    async def _rest(self) -> None:
        waits = [
            asyncio.ensure_future(wait) for wait in (self._clock.sleep(self._settings.poll_seconds), self.wake.wait())
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _handle(self, claimed: ClaimedDelivery) -> None:
        """Whatever goes wrong here, the delivery is still stored."""
        try:
            await self._apply_or_wait(claimed)
        except DatabaseError as error:
            emit("database.unavailable", "error", exception_type=type(error).__name__)
            with contextlib.suppress(DatabaseError):  # then the lease ends by itself
                await self._store.release(claimed, self._settings.poll_seconds)
        except Exception as error:
            emit("inbox.interrupted", "error", exception_type=type(error).__name__, inbox_id=claimed.id)
            await self._failed(claimed, "internal_error")

    async def _apply_or_wait(self, claimed: ClaimedDelivery) -> None:
        read = self._read(claimed)
        if read is None:
            await self._settle(claimed, InboxStatus.UNRECOGNISED, "inbox.unrecognised")
            return
        try:
            code = await self._apply(read)
            if code is not None:
                await self._settle(claimed, InboxStatus.IGNORED, code, contract=read.contract)
        except (UndecodableError, NotApplicableError) as error:
            await self._settle(
                claimed, InboxStatus.REQUIRES_INVESTIGATION, error.code, place=error.name, contract=read.contract
            )
        except (RefusedReadingError, MappingError):
            await self._settle(
                claimed, InboxStatus.REQUIRES_INVESTIGATION, "inbox.reading_refused", contract=read.contract
            )
        except BusyError:
            await self._store.release(claimed, BUSY_SECONDS)
        except NotNowError as error:
            await self._store.release(claimed, error.wait_seconds)
        except CredentialsError:
            await self._store.release(claimed, TOKEN_SECONDS)
        except ReadingError:
            await self._store.release(claimed, READING_SECONDS)

    def _read(self, claimed: ClaimedDelivery) -> _Read | None:
        for contract in self.contracts:
            if (change := contract.read(claimed.headers, claimed.body)) is not None:
                return _Read(claimed, contract.name, change)
        return None

    async def _apply(self, read: _Read) -> str | None:
        """Apply it and settle it; or say why it is none of ours."""
        tables = [table for table in self._mapping.tables if table.logical_name.lower() == read.change.entity]
        if not tables:
            return "inbox.unmapped_table"
        if read.change.caused_by is not None and read.change.caused_by == await self._reader.own_id():
            return "inbox.own_change"
        code = "inbox.no_such_row"
        for table in tables:
            match await self._apply_to(read, table):
                case Settled() as settled:
                    self._tell(read, table, settled)
                    return None
                case LeaseLost():
                    return None
                case NoSuchRow(code):
                    pass
        return code

    async def _apply_to(self, read: _Read, table: TableMapping) -> Application:
        change, held = read.change, None
        incoming = Incoming(table, self._types[table.source], await self._reader.lookups(table))
        key = change.key(table.alternate_key)
        if key is None:
            key = await self._store.known_key(change.entity, change.record_id, table.source)
        if change.message is Message.DELETE:
            if key is None:
                return NoSuchRow("inbox.unknown_record")
            return await self._rows.restore(read.claimed, read.contract, change, incoming, key)
        if key is None or change.attributes is None:
            held = await self._reader.record(incoming, change.record_id)
            if held is None:
                return NoSuchRow("inbox.record_gone")
            key = held.key
        if key is None:
            return NoSuchRow("inbox.without_key")
        try:
            return await self._rows.apply(read.claimed, read.contract, change, incoming, key, held)
        except RecordNeededError:
            return await self._apply_held(read, incoming, key)

    async def _apply_held(self, read: _Read, incoming: Incoming, key: str) -> Application:
        held = await self._reader.record(incoming, read.change.record_id)
        if held is None:
            return NoSuchRow("inbox.record_gone")
        return await self._rows.apply(read.claimed, read.contract, read.change, incoming, key, held)

    async def _settle(
        self,
        claimed: ClaimedDelivery,
        status: InboxStatus,
        code: str,
        *,
        place: str | None = None,
        contract: str | None = None,
    ) -> None:
        await self._store.settle(claimed, status, code, place=place, contract=contract)
        level: Level = "info" if status is InboxStatus.IGNORED else "warning"
        emit(f"inbox.{status}", level, inbox_id=claimed.id, error_code=code)

    async def _failed(self, claimed: ClaimedDelivery, code: str) -> None:
        """Try again later, and not for ever."""
        if claimed.attempts + 1 < MOST_FAILURES:
            await self._store.release(claimed, 2.0**claimed.attempts, failures=1)
            return
        await self._settle(claimed, InboxStatus.REQUIRES_INVESTIGATION, code)

    def _tell(self, read: _Read, table: TableMapping, settled: Settled) -> None:
        emit(f"inbox.{settled.status}", inbox_id=read.claimed.id, source_table=table.source, error_code=settled.code)
        for clash in settled.clashes:
            emit(
                "inbox.conflict",
                "warning",
                inbox_id=read.claimed.id,
                source_table=table.source,
                column_name=clash.name or None,
                winner=str(clash.winner),
            )
