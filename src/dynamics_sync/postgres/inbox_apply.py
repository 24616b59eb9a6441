"""A change from Dynamics is applied to a row, in one transaction, without an echo (R19).

Locks are taken as the user's own transactions take them, first the row, then its place in the outbox, and none is
waited for longer than half a second. While they are held nobody changes the row, and whoever marks the record dirty
waits. So what the trigger captures in between is the change that we make, which Dynamics has already.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import psycopg

from dynamics_sync.core.conflicts import Clash, Incoming, Resolution, Sides, resolve
from dynamics_sync.core.incoming import InboxStatus, RecordChange
from dynamics_sync.core.mapping import Owner
from dynamics_sync.postgres.connections import Connection, Pool, translated
from dynamics_sync.postgres.inbox import SETTLE, settlement
from dynamics_sync.postgres.inbox_place import NOTIFY, take_place
from dynamics_sync.postgres.inbox_row import InboxRow
from dynamics_sync.postgres.outbox import SEND_AGAIN
from dynamics_sync.postgres.records import KEY, is_possible
from dynamics_sync.sync.inbox_ports import (
    Application,
    BusyError,
    ClaimedDelivery,
    LeaseLost,
    NoSuchRow,
    Settled,
)
from dynamics_sync.sync.reading import Held

BOUNDED = "select set_config('lock_timeout', '500ms', true), set_config('statement_timeout', '5s', true)"

HELD = """
select from dynamics_sync.inbox where id = %(id)s and lease_owner = %(claim_id)s and status = 'received' for update
"""

KNOW = """
insert into dynamics_sync.inbox_records as known (target, entity_name, record_id, source_table, record_key)
values (%(target)s, %(entity_name)s, %(record_id)s, %(source_table)s, %(record_key)s)
on conflict (target, entity_name, record_id) do update
set source_table = excluded.source_table, record_key = excluded.record_key
returning newest, taken_version, written_at, taken
"""

WRITTEN = """
select s.applied_version, s.applied_at, u.until is not null
from (values (%(target)s, %(source_table)s, %(record_key)s)) as this (target, source_table, record_key)
left join dynamics_sync.record_state s using (target, source_table, record_key)
left join dynamics_sync.unanswered u using (target, source_table, record_key)
"""

REMEMBER = """
update dynamics_sync.inbox_records
set newest = newest || %(newest)s::jsonb, taken_version = coalesce(%(version)s, taken_version),
  written_at = %(written_at)s, taken = %(taken)s
where (target, entity_name, record_id) = (%(target)s, %(entity_name)s, %(record_id)s)
"""

CLASHED = """
insert into dynamics_sync.conflicts (target, source_table, record_key, column_name, winner, inbox_id)
values (%s, %s, %s, %s, %s, %s)
"""

NOTE_RECORD = """
update dynamics_sync.inbox set source_table = %(source_table)s, record_key = %(record_key)s where id = %(id)s
"""

RECORD = ("target", "source_table", "record_key")

WAITED_TOO_LONG = ("40001", "40P01", "55P03", "57014")
"""SQLSTATE of what comes of waiting: serialization, deadlock, lock_not_available, query_canceled."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was noted of the record when changes of it were applied before."""

    newest: Mapping[str, datetime]
    taken_version: int | None
    written_at: datetime | None
    taken: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Written:
    """What we sent of the record."""

    at: datetime | None
    """When Dynamics was last given a state of ours."""
    unanswered: bool


@dataclass(frozen=True, slots=True)
class _Work:
    """One delivery on its way into one row."""

    claimed: ClaimedDelivery
    contract: str
    change: RecordChange
    incoming: Incoming
    record: dict[str, Any] = field(repr=False)
    """What statements know target, table, key and record by."""

    def for_row(self, row: Mapping[str, object]) -> "_Work":
        """With the key as the table writes it, and the trigger with it."""
        return replace(self, record=self.record | {"record_key": str(row[KEY])})


class PostgresInboxRows:
    """Applies changes to the user's rows."""

    def __init__(self, pool: Pool, target: str) -> None:
        self._pool = pool
        self._target = target

    async def apply(
        self,
        claimed: ClaimedDelivery,
        contract: str,
        change: RecordChange,
        incoming: Incoming,
        record_key: str,
        held: Held | None,
    ) -> Application:
        work = self._work(claimed, contract, change, incoming, record_key)
        if not is_possible(record_key, incoming.types[incoming.table.key]):
            return NoSuchRow()
        async with self._transaction() as connection:
            return await _apply(connection, work, held)

    async def restore(
        self, claimed: ClaimedDelivery, contract: str, change: RecordChange, incoming: Incoming, record_key: str
    ) -> Application:
        work = self._work(claimed, contract, change, incoming, record_key)
        if not is_possible(record_key, incoming.types[incoming.table.key]):
            return NoSuchRow()
        async with self._transaction() as connection:
            return await _restore(connection, work)

    def _work(
        self, claimed: ClaimedDelivery, contract: str, change: RecordChange, incoming: Incoming, record_key: str
    ) -> "_Work":
        record = {
            "target": self._target,
            "source_table": incoming.table.source,
            "record_key": record_key,
            "entity_name": change.entity,
            "record_id": change.record_id,
        }
        return _Work(claimed, contract, change, incoming, record)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        """Everything or nothing. BusyError where a lock could not be had."""
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(BOUNDED)
                yield connection
        except psycopg.Error as error:
            if error.sqlstate in WAITED_TOO_LONG:
                raise BusyError from None
            raise translated(error) from None


async def _apply(connection: Connection, work: _Work, held: Held | None) -> Application:
    if not await _is_held(connection, work.claimed):
        return LeaseLost()
    row = InboxRow(connection, work.incoming, work.record["record_key"])
    before = await row.read(lock=True)
    if before is None:
        return NoSuchRow()
    work = work.for_row(before)
    place = await take_place(connection, work.record)
    known = await _know(connection, work)
    written = await _written(connection, work, known)
    if held is not None and written.at is not None and written.at >= work.claimed.claimed_at:
        raise BusyError  # what was read may be older than what we wrote meanwhile
    waiting = place.waiting(work.incoming.table.columns)
    sides = Sides(before, waiting, written.at, known.newest, known.taken, unanswered=written.unanswered)
    resolution = resolve(work.incoming, work.change, held.attributes if held else None, sides)
    altered: set[str] = set()
    if resolution.writes:
        await row.write(resolution.writes)
        altered = await row.altered(before, resolution.writes)
    version = await place.leave(connection, work.record, resolution, altered, work.incoming.table.key)
    remembered = {
        "newest": json.dumps({name: at.isoformat() for name, at in resolution.newest.items()}),
        "version": version,
        "written_at": written.at,
        "taken": sorted({*known.taken, *resolution.writes} - resolution.kept - altered),
    }
    await connection.execute(REMEMBER, work.record | remembered)
    return await _settle(connection, work, _verdict(resolution))


async def _restore(connection: Connection, work: _Work) -> Application:
    if not await _is_held(connection, work.claimed):
        return LeaseLost()
    row = await InboxRow(connection, work.incoming, work.record["record_key"]).read(lock=False)
    if row is None:
        return NoSuchRow()
    work = work.for_row(row)
    await connection.execute(SEND_AGAIN, [work.record[name] for name in RECORD] + ["upsert"])
    await connection.execute(NOTIFY, work.record)
    return await _settle(connection, work, Settled(InboxStatus.APPLIED, clashes=(Clash("", Owner.POSTGRES),)))


def _verdict(resolution: Resolution) -> Settled:
    if resolution.is_superseded:
        return Settled(InboxStatus.SUPERSEDED)
    if resolution.is_about_nothing:
        return Settled(InboxStatus.IGNORED, "inbox.nothing_mapped")
    return Settled(InboxStatus.APPLIED, clashes=tuple(resolution.clashes))


async def _is_held(connection: Connection, claimed: ClaimedDelivery) -> bool:
    cursor = await connection.execute(HELD, {"id": claimed.id, "claim_id": claimed.claim_id})
    return await cursor.fetchone() is not None


async def _know(connection: Connection, work: _Work) -> _Known:
    row = await (await connection.execute(KNOW, work.record)).fetchone()
    if row is None:
        raise AssertionError("the insert always gives one row")
    newest, taken_version, written_at, taken = row
    times = {name: datetime.fromisoformat(at) for name, at in newest.items()}
    return _Known(times, taken_version, written_at, frozenset(taken))


async def _written(connection: Connection, work: _Work, known: _Known) -> _Written:
    row = await (await connection.execute(WRITTEN, work.record)).fetchone()
    if row is None:
        raise AssertionError("there is always one row")
    version, at, unanswered = row
    return _Written(known.written_at if version == known.taken_version else at, unanswered)


async def _settle(connection: Connection, work: _Work, settled: Settled) -> Settled:
    record = [work.record[name] for name in RECORD]
    for clash in settled.clashes:
        await connection.execute(CLASHED, [*record, clash.name or None, str(clash.winner), work.claimed.id])
    await connection.execute(NOTE_RECORD, {**work.record, "id": work.claimed.id})
    await connection.execute(SETTLE, settlement(work.claimed, settled.status, settled.code, None, work.contract))
    return settled
