"""The record's place in the outbox while a change from Dynamics is applied. It keeps everybody else waiting, and what
the trigger notes in between is the change that Dynamics has already."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dynamics_sync.core.conflicts import Resolution
from dynamics_sync.postgres.connections import AS_OURSELVES, AS_SERVICE_ROLE, Connection

# What was changed here before, and is committed, waits in the outbox from here on. The row is locked: nothing follows.
GATHER = "select dynamics_sync.gather_record(%(target)s, %(source_table)s, %(record_key)s)"

# What the trigger noted of our change, in this transaction. A doubt is a resync's, and needs no row's lock.
FORGET_CHANGE = """
delete from dynamics_sync.changes
where (target, source_table, record_keys) = (%(target)s, %(source_table)s, array[%(record_key)s]) and not is_doubt
returning id
"""

# Our place in the outbox: from here on whoever marks the record dirty waits for us.
RESERVE = """
insert into dynamics_sync.outbox (target, source_table, record_key, operation_type)
values (%(target)s, %(source_table)s, %(record_key)s, 'upsert')
on conflict (target, source_table, record_key) do nothing
returning id
"""

WAITING = """
select id, changed_columns from dynamics_sync.outbox
where (target, source_table, record_key) = (%(target)s, %(source_table)s, %(record_key)s)
for update
"""

QUEUED = """
select payload_json -> 'changed_columns' from public.dynamics_sync_retry_queue
where (target, source_table, record_key) = (%(target)s, %(source_table)s, %(record_key)s)
  and status in ('pending_manual_replay', 'requires_investigation', 'replaying')
"""

# What Dynamics told is no change made here. Where the record has to be sent, or was changed now, what is under way does
# not do.
KEEP_WAITING = """
update dynamics_sync.outbox
set changed_columns = %(changed_columns)s,
  version = case when %(send)s then nextval('dynamics_sync.change_version') else version end
where id = %(outbox_id)s
"""

GIVE_UP_PLACE = "delete from dynamics_sync.outbox where id = %(outbox_id)s returning version"

TAKE_OVER = """
insert into dynamics_sync.record_state as known (target, source_table, record_key, applied_version)
values (%(target)s, %(source_table)s, %(record_key)s, %(version)s)
on conflict (target, source_table, record_key) do update
set applied_version = excluded.applied_version, etag = null, payload_hash = null, applied_at = excluded.applied_at
"""

# Dynamics was changed there.
FORGET_PAYLOAD = "select dynamics_sync.forget_payload(%(target)s, %(source_table)s, %(record_key)s)"

NOTIFY = "select pg_notify('dynamics_sync', %(target)s)"


@dataclass(frozen=True, slots=True)
class Place:
    """What the outbox and the queue say of the record."""

    outbox_id: int
    is_ours: bool
    """The row of the outbox is the one that we made: nothing waited there."""
    outbox_columns: tuple[str, ...] = ()
    queued_columns: tuple[str, ...] | None = None
    """None where the queue has no open entry; empty where it does not know which columns."""

    def waiting(self, columns: Mapping[str, object]) -> frozenset[str]:
        """The columns of which Dynamics lacks a change made here; all of them where it is not known which."""
        told = [] if self.is_ours else [self.outbox_columns]
        if self.queued_columns is not None:
            told.append(self.queued_columns)
        return frozenset(columns) if () in told else frozenset(name for names in told for name in names)

    async def leave(
        self,
        connection: Connection,
        record: Mapping[str, Any],
        resolution: Resolution,
        altered: Collection[str],
        key_column: str,
    ) -> int | None:
        """Leave the outbox as it was, unless the record has to be sent; give the version that was taken over, if one
        was: that of a change that Dynamics has already."""
        where = {**record, "outbox_id": self.outbox_id}
        noted = await (await connection.execute(FORGET_CHANGE, where)).fetchall()
        await connection.execute(FORGET_PAYLOAD, where)
        if self.is_ours and not resolution.send and not altered:
            row = await (await connection.execute(GIVE_UP_PLACE, where)).fetchone()
            if not resolution.writes or row is None:
                return None
            await connection.execute(TAKE_OVER, where | {"version": row[0]})
            return int(row[0])
        changed = self._changed_here(resolution, altered, key_column)
        send = resolution.send or bool(noted)
        await connection.execute(KEEP_WAITING, where | {"changed_columns": changed, "send": send})
        await connection.execute(NOTIFY, where)
        return None

    def _changed_here(self, resolution: Resolution, altered: Collection[str], key_column: str) -> list[str]:
        """Columns to be said to have changed here; none would mean that it is not known which, so the key stands for
        none of them. What Dynamics told is not among them, though it may have to be sent."""
        if self.is_ours:
            return sorted({*resolution.kept, *altered, *(self.queued_columns or ())}) or [key_column]
        return sorted({*self.outbox_columns, *altered}) if self.outbox_columns else []


async def take_place(connection: Connection, record: Mapping[str, Any]) -> Place:
    """Lock the record's row in the outbox, or make one."""
    await connection.execute(GATHER, record)
    row = None
    while row is None:
        made = await (await connection.execute(RESERVE, record)).fetchone()
        row = made or await (await connection.execute(WAITING, record)).fetchone()
    await connection.execute(AS_SERVICE_ROLE)
    queued = await (await connection.execute(QUEUED, record)).fetchone()
    await connection.execute(AS_OURSELVES)
    queued_columns = None if queued is None else tuple(queued[0] or ())
    return Place(row[0], made is not None, () if made else tuple(row[1]), queued_columns)
