"""What claiming, releasing and settling touch, while the planner is misled about what waits: what they are about."""

import psycopg
import pytest
from psycopg.abc import Query

from dynamics_sync.postgres.outbox import CLAIM, RELEASE, SETTLE

FEW, MANY = 100, 20_000
SOME = 4

FILL = """
insert into dynamics_sync.outbox (target, source_table, record_key, operation_type)
select 'dynamics', 'public.t', n::text, 'upsert' from generate_series(1, {waiting}) n;
insert into public.dynamics_sync_retry_queue (
  source_table, record_key, operation_type, payload_json, failure_reason, error_code, attempt_count, status
)
select 'public.t', n::text, 'upsert', '{{}}', 'x', 'x', 1, 'pending_manual_replay' from generate_series(1, {waiting}) n
"""
EMPTY = "delete from dynamics_sync.outbox; delete from public.dynamics_sync_retry_queue"
ALMOST_EMPTY = """
delete from dynamics_sync.outbox where id < (select max(id) from dynamics_sync.outbox);
delete from public.dynamics_sync_retry_queue where record_key <> '{waiting}'
"""
TABLES = ("dynamics_sync.outbox", "dynamics_sync.record_state", "public.dynamics_sync_retry_queue")

Connection = psycopg.Connection[tuple[object, ...]]


def blocks(connection: Connection, statement: str, parameters: dict[str, object]) -> int:
    """How many blocks of 8 kB the statement touches, with all that its function does."""
    query: Query = f"explain (analyze, buffers, format json) {statement}".encode()
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    (explained,) = row[0]  # type: ignore[misc]
    return sum(explained["Plan"][f"Shared {kind} Blocks"] for kind in ("Hit", "Read"))


def mislead(connection: Connection, by: str, waiting: int) -> None:
    """Let the statistics say that nothing waits, then let it wait."""
    fill = FILL.format(waiting=waiting).encode()
    connection.execute(EMPTY)
    if by == "a vacuum of many blocks that one row keeps":
        connection.execute(fill)
        connection.execute(ALMOST_EMPTY.format(waiting=waiting).encode())
    for table in TABLES:
        connection.execute(f"vacuum (analyze) {table}".encode())
    connection.execute(EMPTY)
    connection.execute(fill)


def costs(connection: Connection) -> dict[str, int]:
    """Blocks touched by each step for a few records, when its plans are no longer made anew for each call."""
    touched = {}
    for turn in range(8):
        claim = {"target": "dynamics", "limit": SOME, "claim_id": f"c{turn}", "lease_seconds": 60, "late_seconds": 180}
        touched["claim"] = blocks(connection, CLAIM, claim)
        mine = "select id, version from dynamics_sync.outbox where lease_owner = %s order by id"
        rows = connection.execute(mine, [f"c{turn}"]).fetchall()
        assert len(rows) == SOME
        held = {
            "ids": [row[0] for row in rows],
            "versions": [row[1] for row in rows],
            "claims": [f"c{turn}"] * SOME,
            "unanswered": [False] * SOME,
            "late_seconds": 180,
        }
        if turn % 2:
            touched["settle"] = blocks(connection, SETTLE, held | {"target": "dynamics", "etags": [None] * SOME})
        else:
            touched["release"] = blocks(connection, RELEASE, held | {"attempts": [0] * SOME})
    return touched


@pytest.mark.every_postgres
@pytest.mark.parametrize("by", ["an analysis while empty", "a vacuum of many blocks that one row keeps"])
def test_costs_do_not_grow_with_what_waits(database: str, by: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, by, FEW)
        of_few = costs(connection)
        mislead(connection, by, MANY)
        of_many = costs(connection)
    for step, touched in of_many.items():
        assert touched < 2 * of_few[step], step
