"""Reconciliation in PostgreSQL: progress, what Dynamics was seen to hold, and what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from dynamics_sync.core.comparison import Finding
from dynamics_sync.postgres.connections import AS_OURSELVES, AS_SERVICE_ROLE, Connection, Pool, all_rows, transaction
from dynamics_sync.postgres.outbox import SEND_AGAIN
from dynamics_sync.postgres.reconciliation_turns import KEEP, Turn
from dynamics_sync.sync.reconciliation import (
    Phase,
    Progress,
    Seen,
    StoredFinding,
    TableReport,
    TurnLostError,
)

COLUMNS = tuple(field.name for field in fields(Progress))

LOAD = f"""
select {", ".join(COLUMNS)} from dynamics_sync.reconciliation_progress
where (target, source_table) = (%s, %s)
"""

SAVE = f"""
insert into dynamics_sync.reconciliation_progress (target, {", ".join(COLUMNS)})
values (%(target)s, {", ".join(f"%({name})s" for name in COLUMNS)})
on conflict (target, source_table) do update set {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
"""

FORGET = "delete from dynamics_sync.reconciliation_progress where target = %s and source_table = any(%s)"

FORGET_SEEN = """
delete from dynamics_sync.reconciliation_seen
where (target, source_table) = (%(target)s, %(source_table)s) and id = any(%(ids)s::text[])
"""

SEE = """
insert into dynamics_sync.reconciliation_seen as known (target, source_table, id, record_key, fingerprint, seen_in)
select %(target)s, %(source_table)s, id, record_key, fingerprint, %(run)s
from unnest(%(ids)s::text[], %(keys)s::text[], %(fingerprints)s::text[]) as given (id, record_key, fingerprint)
on conflict (target, source_table, id) do update
set record_key = excluded.record_key, fingerprint = excluded.fingerprint, seen_in = excluded.seen_in
"""

FIND = """
insert into dynamics_sync.reconciliation_findings
  (target, source_table, record_key, kind, attributes, found_in)
values (%(target)s, %(source_table)s, %(record_key)s, %(kind)s, %(attributes)s, %(run)s)
on conflict (target, source_table, record_key) do update
set kind = excluded.kind, attributes = excluded.attributes, found_in = excluded.found_in,
  found_at = excluded.found_at, repaired_at = null
"""

# Dynamics does not hold what it was believed to hold.
FORGET_PAYLOAD = "select dynamics_sync.forget_payload(%(target)s, %(source_table)s, %(record_key)s)"

FORGET_OLDER = """
with older as (
  delete from dynamics_sync.reconciliation_findings
  where (target, source_table) = (%(target)s, %(source_table)s) and found_in < %(run)s
)
delete from dynamics_sync.reconciliation_seen
where (target, source_table) = (%(target)s, %(source_table)s) and seen_in < %(full_run)s
"""

FINGERPRINTS = """
select record_key, fingerprint from dynamics_sync.reconciliation_seen
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
  and seen_in >= %(full_run)s
"""

SEEN_AFTER = """
select id, record_key, fingerprint from dynamics_sync.reconciliation_seen
where (target, source_table) = (%(target)s, %(source_table)s) and id > %(after)s and seen_in >= %(full_run)s
order by id limit %(limit)s
"""

WAS_SEEN = """
select seen_in = %(run)s from dynamics_sync.reconciliation_seen
where (target, source_table, id) = (%(target)s, %(source_table)s, %(id)s) and seen_in >= %(full_run)s
"""

AS_OF_ONE_MOMENT = "set transaction isolation level repeatable read, read only"

CHANGING = """
select record_key from dynamics_sync.outbox
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
union
select record_key from dynamics_sync.changes, unnest(record_keys) as record_key
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
union
select record_key from dynamics_sync.unanswered
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
union
select record_key from dynamics_sync.record_state
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
  and applied_at >= %(since)s::timestamptz
"""

QUEUED = """
select record_key from public.dynamics_sync_retry_queue
where (target, source_table) = (%(target)s, %(source_table)s) and record_key = any(%(keys)s::text[])
  and status in ('pending_manual_replay', 'requires_investigation', 'replaying')
"""

UNREPAIRED = """
select record_key, kind from dynamics_sync.reconciliation_findings
where (target, source_table) = (%(target)s, %(source_table)s) and found_in = %(run)s and repaired_at is null
order by record_key limit %(limit)s
"""

REPAIRED = """
update dynamics_sync.reconciliation_findings set repaired_at = clock_timestamp()
where (target, source_table, record_key) = (%s, %s, %s)
"""

WAKE_WORKERS = "select pg_notify('dynamics_sync', %s)"

COUNT = """
select count(*) filter (where kind = 'missing'), count(*) filter (where kind = 'different'),
  count(*) filter (where kind = 'extra'), count(repaired_at)
from dynamics_sync.reconciliation_findings
where (target, source_table) = (%(target)s, %(source_table)s) and found_in = %(run)s
"""

FINDINGS = """
select source_table, record_key, kind, attributes, found_at, repaired_at
from dynamics_sync.reconciliation_findings
where target = %(target)s and (%(sources)s::text[] is null or source_table = any(%(sources)s))
order by source_table, record_key limit %(limit)s
"""

COUNT_OPEN = """
select count(*) from dynamics_sync.reconciliation_findings
where repaired_at is null and (%(target)s::text is null or target = %(target)s)
"""


class PostgresReconciliation:
    """What is kept, written by whoever has the turn."""

    def __init__(self, pool: Pool, turn: Turn) -> None:
        self._pool = pool
        self._target = turn.target
        self._turn = turn

    async def now(self) -> datetime:
        """The database's clock."""
        ((now,),) = await all_rows(self._pool, "select clock_timestamp()", {})
        return now  # type: ignore[no-any-return]

    async def next_run(self) -> int:
        ((run,),) = await all_rows(self._pool, "select nextval('dynamics_sync.reconciliation_run')", {})
        return int(run)

    async def load(self, source_table: str) -> Progress | None:
        rows = await all_rows(self._pool, LOAD, [self._target, source_table])
        return _progress(rows[0]) if rows else None

    async def forget(self, source_tables: Sequence[str]) -> None:
        async with transaction(self._pool) as connection:
            await connection.execute(FORGET, [self._target, list(source_tables)])

    async def save(
        self,
        progress: Progress,
        *,
        seen: Sequence[Seen] = (),
        deleted: Sequence[str] = (),
        findings: Sequence[Finding] = (),
    ) -> None:
        async with transaction(self._pool) as connection:
            await self._save(connection, progress, seen, deleted, findings)

    async def finish(self, progress: Progress) -> None:
        async with transaction(self._pool) as connection:
            await self._save(connection, progress, (), (), ())
            await connection.execute(FORGET_OLDER, self._of(progress))

    async def fingerprints(self, progress: Progress, keys: Sequence[str]) -> Mapping[str, str | None]:
        return dict(await all_rows(self._pool, FINGERPRINTS, self._of(progress) | {"keys": list(keys)}))

    async def seen_after(self, progress: Progress, limit: int) -> Sequence[Seen]:
        parameters = self._of(progress) | {"after": progress.after or "", "limit": limit}
        return [Seen(*row) for row in await all_rows(self._pool, SEEN_AFTER, parameters)]

    async def was_seen(self, progress: Progress, record_id: str) -> bool | None:
        rows = await all_rows(self._pool, WAS_SEEN, self._of(progress) | {"id": record_id})
        return bool(rows[0][0]) if rows else None

    async def on_their_way(self, source_table: str, keys: Sequence[str], since: datetime | None) -> set[str]:
        """In one snapshot: between two a record could pass from the changes to the outbox, to the queue, or back."""
        parameters = {
            "target": self._target,
            "source_table": source_table,
            "keys": list(keys),
            "since": since,
        }
        async with transaction(self._pool) as connection:
            await connection.execute(AS_OF_ONE_MOMENT)
            changing = await (await connection.execute(CHANGING, parameters)).fetchall()
            await connection.execute(AS_SERVICE_ROLE)
            queued = await (await connection.execute(QUEUED, parameters)).fetchall()
            await connection.execute(AS_OURSELVES)
        return {key for (key,) in (*changing, *queued)}

    async def repair(self, progress: Progress, limit: int) -> int:
        """A transaction for each: a user's transaction that changes many records never waits for one that waits for
        it."""
        due = await all_rows(self._pool, UNREPAIRED, self._of(progress) | {"limit": limit})
        for key, kind in due:
            record = [self._target, progress.source_table, key]
            async with transaction(self._pool) as connection:
                await connection.execute(SEND_AGAIN, [*record, "delete" if kind == "extra" else "upsert"])
                await connection.execute(REPAIRED, record)
        if due:
            await all_rows(self._pool, WAKE_WORKERS, [self._target])
        return len(due)

    async def report(self, progress: Progress) -> TableReport:
        ((missing, different, extra, repaired),) = await all_rows(self._pool, COUNT, self._of(progress))
        return TableReport(
            progress.source_table,
            compared=progress.compared,
            missing=missing,
            different=different,
            extra=extra,
            repaired=repaired,
            waiting=progress.waiting,
            without_key=progress.without_key,
        )

    async def findings(self, sources: Sequence[str] | None = None, limit: int = 1000) -> list[StoredFinding]:
        """What differed when it was last looked at, by table and key."""
        parameters = {"target": self._target, "sources": None if sources is None else list(sources), "limit": limit}
        rows = await all_rows(self._pool, FINDINGS, parameters)
        return [
            StoredFinding(source, key, kind, tuple(attributes), found_at, repaired_at)
            for source, key, kind, attributes, found_at, repaired_at in rows
        ]

    async def _save(
        self,
        connection: Connection,
        progress: Progress,
        seen: Sequence[Seen],
        deleted: Sequence[str],
        findings: Sequence[Finding],
    ) -> None:
        of = self._of(progress)
        if (await connection.execute(KEEP, asdict(self._turn))).rowcount == 0:
            raise TurnLostError
        if deleted:
            await connection.execute(FORGET_SEEN, of | {"ids": list(deleted)})
        if seen:
            by_id = {one.id: one for one in seen}.values()
            given = {
                "ids": [one.id for one in by_id],
                "keys": [_storable(one.record_key) for one in by_id],
                "fingerprints": [one.fingerprint for one in by_id],
            }
            await connection.execute(SEE, of | given)
        async with connection.cursor() as cursor:
            await cursor.executemany(FIND, [of | _finding(finding) for finding in findings])
            await cursor.executemany(FORGET_PAYLOAD, [of | _finding(finding) for finding in findings])
        await connection.execute(SAVE, of)

    def _of(self, progress: Progress) -> dict[str, Any]:
        return {"target": self._target, **asdict(progress)}


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "record_key": _storable(finding.record_key),
        "kind": finding.kind,
        "attributes": list(finding.attributes),
    }


def _storable(key: str) -> str:
    """Dynamics' texts may hold what PostgreSQL's cannot."""
    return key.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _progress(row: Sequence[Any]) -> Progress:
    given = dict(zip(COLUMNS, row, strict=True))
    return Progress(**given | {"phase": Phase(given["phase"])})
