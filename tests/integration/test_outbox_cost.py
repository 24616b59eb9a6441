"""What gathering, claiming, releasing and settling cost while the planner is misled about what waits: no more than what
they are about. The same of claiming deliveries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.abc import Query

from dynamics_sync.postgres.inbox import CLAIM as CLAIM_DELIVERIES
from dynamics_sync.postgres.outbox import CLAIM, GATHER, RELEASE, SETTLE

FEW, MANY = 100, 20_000
SOME = 16

ROWS_READ = """
select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_all_tables where schemaname <> 'pg_catalog'
"""

FILL = """
insert into dynamics_sync.outbox (target, source_table, record_key, operation_type)
select 'dynamics', 'public.t', n::text, 'upsert' from generate_series(1, {waiting}) n;
insert into public.dynamics_sync_retry_queue (
  source_table, record_key, operation_type, payload_json, failure_reason, error_code, attempt_count, status
)
select 'public.t', n::text, 'upsert', '{{}}', 'x', 'x', 1, 'pending_manual_replay' from generate_series(1, {waiting}) n;
insert into dynamics_sync.changes (target, source_table, operation_type, records, record_keys)
select 'dynamics', 'public.t', 'upsert', 1, array[n::text] from generate_series(1, {waiting}) n;
insert into dynamics_sync.inbox_records (target, entity_name, record_id, source_table, record_key, taken)
select 'dynamics', 't', md5(n::text), 'public.t', n::text, '{{x}}' from generate_series(1, {waiting}) n
"""
RECEIVE = """
insert into dynamics_sync.inbox (target, delivery_id, entity_name, message, record_id, headers, body)
select 'dynamics', n::text, 't', 'Update', n::text, '{}', '' from generate_series(1, %s) n
"""
EMPTY = """
delete from dynamics_sync.outbox;
delete from dynamics_sync.changes;
delete from public.dynamics_sync_retry_queue;
delete from dynamics_sync.inbox_records
"""
ALMOST_EMPTY = """
delete from dynamics_sync.outbox where id < (select max(id) from dynamics_sync.outbox);
delete from dynamics_sync.changes where id < (select max(id) from dynamics_sync.changes);
delete from public.dynamics_sync_retry_queue where record_key <> '{waiting}';
delete from dynamics_sync.inbox_records where record_key <> '{waiting}'
"""
TABLES = (
    "dynamics_sync.outbox",
    "dynamics_sync.changes",
    "dynamics_sync.record_state",
    "public.dynamics_sync_retry_queue",
    "dynamics_sync.inbox_records",
)

RESERVE = "select dynamics_sync.reserve_places('dynamics', 'public.t', %s)"
UNFOLD = "select dynamics_sync.unfold_claimed(%s::bigint[], %s)"

TELL_PLANS = """
load 'auto_explain';
set auto_explain.log_min_duration = 0;
set auto_explain.log_nested_statements = on;
set auto_explain.log_analyze = on;
set client_min_messages = log
"""

LIES = ["an analysis while empty", "a vacuum of many blocks that one row keeps"]

Connection = psycopg.Connection[tuple[object, ...]]
Parameters = dict[str, object]


GATHERING: Parameters = {"target": "dynamics", "gathered_at_once": SOME}


def claiming(claim_id: str, limit: int, target: str = "dynamics", taken_from: int | None = None) -> Parameters:
    return {
        "target": target,
        "limit": limit,
        "claim_id": claim_id,
        "lease_seconds": 60,
        "late_seconds": 180,
        "gathered_at_once": 0,
        "taken_from": taken_from,
    }


def claimed(claim_id: str, ids: Sequence[object], versions: Sequence[object], target: str = "dynamics") -> Parameters:
    """Of what was claimed, all that releasing and settling ask for."""
    count = len(ids)
    return {
        "target": target,
        "ids": list(ids),
        "versions": list(versions),
        "claims": [claim_id] * count,
        "attempts": [0] * count,
        "etags": [None] * count,
        "payload_hashes": [b"x"] * count,
        "unsent": [],
        "unanswered": [],
        "late_seconds": 180,
    }


def rows_read(connection: Connection) -> int:
    row = connection.execute(ROWS_READ).fetchone()
    assert row is not None
    return int(str(row[0]))


@contextmanager
def few_rows_read(connection: Connection) -> Iterator[None]:
    """What is done in the block reads no more than it is about."""
    with connection.transaction():
        before = rows_read(connection)
        yield
        assert rows_read(connection) - before < 10 * SOME


def blocks(connection: Connection, statement: str, parameters: Parameters) -> int:
    """How many blocks of 8 kB the statement touches, with all that its function does."""
    query: Query = f"explain (analyze, buffers, format json) {statement}".encode()
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    (explained,) = row[0]  # type: ignore[misc]
    return sum(explained["Plan"][f"Shared {kind} Blocks"] for kind in ("Hit", "Read"))


def mislead(connection: Connection, lie: str, waiting: int) -> None:
    """Let the statistics say that nothing waits, then let it wait."""
    fill = FILL.format(waiting=waiting).encode()
    connection.execute(EMPTY)
    if lie == "a vacuum of many blocks that one row keeps":
        connection.execute(fill)
        connection.execute(ALMOST_EMPTY.format(waiting=waiting).encode())
    for table in TABLES:
        connection.execute(f"vacuum (analyze) {table}".encode())
    connection.execute(EMPTY)
    connection.execute(fill)


def claim(connection: Connection, parameters: Parameters) -> tuple[list[int], list[str], list[int]]:
    """Ids, keys and versions of what was claimed."""
    rows = connection.execute(CLAIM, parameters).fetchall()
    found = [(outbox_id, key, row[3]) for row in rows for outbox_id, key in zip(row[0], row[2], strict=True)]
    ids, keys, versions = ([each[place] for each in found] for place in range(3))
    return ids, keys, versions


def costs(connection: Connection, records: int, target: str = "dynamics") -> dict[str, int]:
    """Blocks touched by each step for some records, when its plans are no longer made anew for each call."""
    touched = {}
    for turn in range(8):
        claim_id = f"c{turn}"
        touched["claim"] = blocks(connection, CLAIM, claiming(claim_id, records, target))
        mine = "select id, version from dynamics_sync.outbox where lease_owner = %s order by id"
        ids, versions = zip(*connection.execute(mine, [claim_id]).fetchall(), strict=True)
        assert len(ids) == records
        step, statement = ("settle", SETTLE) if turn % 2 else ("release", RELEASE)
        touched[step] = blocks(connection, statement, claimed(claim_id, ids, versions, target))
    return touched


@pytest.mark.every_postgres
@pytest.mark.parametrize("lie", LIES)
def test_few_rows_are_read_however_many_wait(database: str, lie: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, lie, MANY)
        with few_rows_read(connection):
            ids, keys, versions = claim(connection, claiming("x", SOME))
            assert keys == [str(n) for n in range(1, SOME + 1)]
        with few_rows_read(connection):
            assert connection.execute(SETTLE, claimed("x", ids, versions)).fetchall() == []
        left = connection.execute("select count(*) from dynamics_sync.outbox where id = any(%s)", [ids])
        assert left.fetchone() == (0,)


@pytest.mark.every_postgres
@pytest.mark.parametrize("lie", LIES)
def test_few_changes_are_read_however_many_are_noted(database: str, lie: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, lie, MANY)
        with few_rows_read(connection):
            assert [gathered for _, gathered in connection.execute(GATHER, GATHERING).fetchall()] == [SOME]


@pytest.mark.every_postgres
@pytest.mark.parametrize("lie", LIES)
def test_few_changes_are_read_where_they_are_taken_as_they_are(database: str, lie: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, lie, MANY)
        connection.execute("delete from dynamics_sync.outbox")
        for claim_id in ("x", "y"):
            with few_rows_read(connection):
                ids, _, versions = claim(connection, claiming(claim_id, SOME, taken_from=SOME))
                assert len(ids) == SOME
        assert connection.execute("select count(*) from dynamics_sync.outbox").fetchall() == [(0,)]
        with few_rows_read(connection):
            assert connection.execute(SETTLE, claimed("y", ids, versions)).fetchall() == []
        left = connection.execute("select count(*) from dynamics_sync.changes where record_ids && %s::bigint[]", [ids])
        assert left.fetchone() == (0,)


@pytest.mark.every_postgres
def test_no_step_is_compiled(database: str) -> None:
    """Where a step of a plan is forbidden, the plan looks dear; compiling it takes a second, at each call."""
    plans: list[str] = []
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, LIES[0], FEW)
        connection.add_notice_handler(lambda told: plans.append(told.message_primary or ""))
        connection.execute(TELL_PLANS)
        connection.execute(GATHER, GATHERING)
        costs(connection, SOME)
        connection.execute("delete from dynamics_sync.outbox")
        ids, _, versions = claim(connection, claiming("x", SOME, taken_from=SOME))
        connection.execute(SETTLE, claimed("x", ids[:1], versions[:1]))
        assert any("Insert on changes" in plan for plan in plans)
        assert any("Delete on changes" in plan for plan in plans)
        assert [plan for plan in plans if "JIT:" in plan] == []
        connection.execute("alter function dynamics_sync.oldest_changes set jit = on")
        connection.execute(GATHER, GATHERING)
        is_available = connection.execute("select pg_jit_available()").fetchone() == (True,)
        assert any("JIT:" in plan for plan in plans) == is_available


@pytest.mark.every_postgres
def test_what_is_given_is_not_compared_with_each_that_is_taken(database: str) -> None:
    """A plan that is kept expects ten of each: five thousand, compared with each of a thousand, took seconds."""
    plans: list[str] = []
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, LIES[0], FEW)
        connection.execute("delete from dynamics_sync.outbox")
        assert connection.execute(CLAIM, claiming("x", SOME, taken_from=SOME)).fetchall() != []
        connection.add_notice_handler(lambda told: plans.append(told.message_primary or ""))
        connection.execute(TELL_PLANS)
        for _ in range(8):
            connection.execute(RESERVE, [["another"]])
            connection.execute(UNFOLD, [[0], ["x"]])
            connection.execute(SETTLE, claimed("x", [0], [0]))
        looks = [plan for plan in plans if "unnest(c.record_" in plan]
        assert len(looks) == 3 * 8
        assert [plan for plan in looks if "hashed SubPlan" not in plan or "Join" in plan] == []


@pytest.mark.every_postgres
def test_few_deliveries_are_read_however_many_wait(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("vacuum (analyze) dynamics_sync.inbox")
        connection.execute(RECEIVE, [MANY])
        with few_rows_read(connection):
            parameters = {"target": "dynamics", "limit": SOME, "claim_id": "x", "lease_seconds": 60}
            rows = connection.execute(CLAIM_DELIVERIES, parameters).fetchall()
            assert len(rows) == SOME


@pytest.mark.every_postgres
@pytest.mark.parametrize("lie", LIES)
def test_costs_do_not_grow_with_what_waits(database: str, lie: str) -> None:
    """Reading an index from end to end reads no row, but blocks."""
    records = 4
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, lie, FEW)
        of_few = costs(connection, records)
        mislead(connection, lie, MANY)
        of_many = costs(connection, records)
    for step, touched in of_many.items():
        assert touched < 2 * of_few[step], step


@pytest.mark.every_postgres
@pytest.mark.parametrize("lie", LIES)
def test_what_waits_for_one_target_costs_another_nothing(database: str, lie: str) -> None:
    """It came later, too."""
    records = 2
    few_of_another = "insert into dynamics_sync.outbox (target, source_table, record_key, operation_type) "
    few_of_another += "select 'dynamics_us', 'public.t', n::text, 'upsert' from generate_series(1, 10) n"
    with psycopg.connect(database, autocommit=True) as connection:
        mislead(connection, lie, FEW)
        connection.execute(few_of_another.encode())
        beside_few = costs(connection, records, "dynamics_us")
        mislead(connection, lie, MANY)
        connection.execute(few_of_another.encode())
        beside_many = costs(connection, records, "dynamics_us")
    for step, touched in beside_many.items():
        assert touched < 2 * beside_few[step], step
