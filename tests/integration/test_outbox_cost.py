"""What a claim and a settlement read, while the statistics say that nothing waits: no more than what they are about."""

import psycopg
import pytest

from dynamics_sync.postgres.outbox import CLAIM, SETTLE

WAITING = 5_000
SOME = 16

ROWS_READ = """
select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_all_tables where schemaname <> 'pg_catalog'
"""


def rows_read(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute(ROWS_READ).fetchone()
    assert row is not None
    return int(str(row[0]))


@pytest.mark.every_postgres
def test_costs_do_not_grow_with_what_waits(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("analyze dynamics_sync.outbox, dynamics_sync.record_state")
        connection.execute(
            "insert into dynamics_sync.outbox (target, source_table, record_key, operation_type) "
            "select 'dynamics', 'public.t', n::text, 'upsert' from generate_series(1, %s) n",
            [WAITING],
        )
        with connection.transaction():
            claim = {"target": "dynamics", "limit": SOME, "claim_id": "x", "lease_seconds": 60, "late_seconds": 180}
            rows = connection.execute(CLAIM, claim).fetchall()
            assert [row[2] for row in rows] == [str(n) for n in range(1, SOME + 1)]
            assert rows_read(connection) < 10 * SOME
        with connection.transaction():
            arrived = {
                "target": "dynamics",
                "ids": [row[0] for row in rows],
                "versions": [row[3] for row in rows],
                "claims": ["x"] * SOME,
                "etags": [None] * SOME,
                "unanswered": [False] * SOME,
                "late_seconds": 180,
            }
            assert set(connection.execute(SETTLE, arrived).fetchall()) == {(row[0], "gone") for row in rows}
            assert rows_read(connection) < 10 * SOME
