"""The pace of one target in PostgreSQL: kept by all workers together, judged by the database's clock."""

from dynamics_sync.core.pace import Pace
from dynamics_sync.postgres.connections import Pool, one_trip
from dynamics_sync.sync.ports import PaceReading

PRESENT_SECONDS = 3.0
"""How long a worker counts as sending after it last said so."""

SHARE = """
select clock_timestamp(), noted.senders, noted.rank, noted.is_first,
  p.concurrency, p.threshold, p.changed_at, p.reduced_at, p.revision
from dynamics_sync.note_sender(%(target)s, %(worker)s, %(present_seconds)s) as noted
left join dynamics_sync.pace p on p.target = %(target)s
"""

COMPARE_AND_SET = """
insert into dynamics_sync.pace as known (target, concurrency, threshold, changed_at, reduced_at, revision)
values (%(target)s, %(concurrency)s, %(threshold)s, %(changed_at)s, %(reduced_at)s, %(revision)s)
on conflict (target) do update
set concurrency = excluded.concurrency, threshold = excluded.threshold, changed_at = excluded.changed_at,
  reduced_at = excluded.reduced_at, revision = excluded.revision
where known.revision = %(expected)s
"""


class PostgresPaceStore:
    """One row of `dynamics_sync.pace`, and the workers that send at present."""

    def __init__(self, pool: Pool, target: str) -> None:
        self._pool = pool
        self._target = target

    async def share(self, worker: str) -> PaceReading:
        """Note that a worker sends at present, and read the pace."""
        parameters = {"target": self._target, "worker": worker, "present_seconds": PRESENT_SECONDS}
        async with one_trip(self._pool) as connection:
            cursor = await connection.execute(SHARE, parameters)
        row = await cursor.fetchone()
        if row is None:
            raise AssertionError("SHARE always gives one row")
        now, senders, rank, is_first, concurrency, *rest = row
        pace = Pace() if concurrency is None else Pace(concurrency, *rest)
        return PaceReading(pace, now, senders, rank, is_first)

    async def compare_and_set(self, expected: Pace, new: Pace) -> bool:
        """Store `new` if nobody changed the pace since `expected` was read."""
        parameters = {
            "target": self._target,
            "concurrency": new.concurrency,
            "threshold": new.threshold,
            "changed_at": new.changed_at,
            "reduced_at": new.reduced_at,
            "revision": new.revision,
            "expected": expected.revision,
        }
        async with one_trip(self._pool) as connection:
            cursor = await connection.execute(COMPARE_AND_SET, parameters)
        return cursor.rowcount == 1
