"""What users change is noted at the least cost, and gathered into the outbox: each record once, and nobody waits."""

from collections.abc import Iterator

import psycopg
import pytest

from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from support.engine import stage

Connection = psycopg.Connection[tuple[object, ...]]

NOTED = "select operation_type, changed_columns, records from dynamics_sync.changes order by id"
WAITING = "select record_key, operation_type, changed_columns from dynamics_sync.outbox order by record_key"
GATHER = "select dynamics_sync.gather('dynamics', %s)"
CLAIM = "select ids[1], version from dynamics_sync.claim('dynamics', 1, 'us', 60, 180)"
SETTLE = """
select is_ours from dynamics_sync.settle('dynamics', array[%s], array[%s], '{us}', '{null}', '{same}', '{}', '{}', 180)
"""
IS_KNOWN = "select payload_hash is not null from dynamics_sync.record_state"
ALL = 1_000_000


@pytest.fixture
def user(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table public.things (id int primary key, name text, grade int)")
        connection.execute("select dynamics_sync.watch('public.things')")
        connection.execute("set lock_timeout = '2s'")
        yield connection


@pytest.fixture
def other(database: str, user: Connection) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set lock_timeout = '2s'")
        yield connection


def gather(connection: Connection, of_records: int = ALL) -> object:
    """Of how many records changes were gathered."""
    return (connection.execute(GATHER, [of_records]).fetchone() or (None,))[0]


@pytest.mark.every_postgres
def test_what_changed_a_hundred_times_waits_once_with_all_that_changed(user: Connection) -> None:
    user.execute("insert into public.things values (1, 'x', 0), (2, 'x', 0)")
    for number in range(1, 100):
        user.execute("update public.things set grade = %s where id = 1", [number])
    user.execute("update public.things set name = 'y' where id = 1")
    user.execute("delete from public.things where id = 2")
    ((since,),) = user.execute("select min(noted_at) from dynamics_sync.changes").fetchall()
    assert gather(user) == 2
    assert user.execute(WAITING).fetchall() == [("1", "upsert", ["grade", "name"]), ("2", "delete", [])]
    assert user.execute("select distinct enqueued_at from dynamics_sync.outbox").fetchall() == [(since,)]
    assert user.execute(NOTED).fetchall() == []
    assert gather(user) == 0


@pytest.mark.every_postgres
def test_records_of_which_one_statement_changed_the_same_are_noted_together(user: Connection) -> None:
    user.execute("insert into public.things select n, 'x', 0 from generate_series(1, 2500) n")
    assert sorted(user.execute(NOTED).fetchall(), key=str) == [("upsert", [], each) for each in (1000, 1000, 500)]
    gather(user)
    user.execute("update public.things set grade = 1, name = case when id % 2 = 0 then 'y' else name end where id < 5")
    assert sorted(user.execute(NOTED).fetchall(), key=str) == [
        ("upsert", ["grade", "name"], 2),
        ("upsert", ["grade"], 2),
    ]


def test_it_takes_the_oldest_first_and_not_much_more_than_it_is_asked_for(user: Connection) -> None:
    user.execute("insert into public.things select n, 'x', 0 from generate_series(1, 2500) n")
    user.execute("insert into public.things values (3000, 'x', 0)")
    first = gather(user, 1)
    assert first in (500, 1000), "what was noted together is gathered together"
    assert gather(user, 1001) == 2500 - int(str(first))
    assert user.execute("select count(*) from dynamics_sync.outbox where record_key = '3000'").fetchone() == (0,)
    assert gather(user, 1) == 1


def test_who_changes_a_record_waits_for_nobody_and_nobody_for_him(user: Connection, other: Connection) -> None:
    """Neither for a worker that has the record, nor the worker for an open transaction."""
    user.execute("insert into public.things values (1, 'x', 0)")
    gather(user)
    (claimed,) = user.execute(CLAIM).fetchall()
    with user.transaction():
        user.execute("update public.things set grade = 1")
        assert gather(other) == 0
        assert other.execute(SETTLE, claimed).fetchall() == []
        assert other.execute(WAITING).fetchall() == []
    with other.transaction():
        gather(other)
        user.execute("update public.things set grade = 2")
    assert gather(other) == 1
    assert user.execute(WAITING).fetchall() == [("1", "upsert", ["grade"])]


def test_what_is_gathered_while_a_request_is_under_way_is_sent_after_it(user: Connection) -> None:
    user.execute("insert into public.things values (1, 'x', 0)")
    gather(user)
    (claimed,) = user.execute(CLAIM).fetchall()
    user.execute("update public.things set grade = 1")
    gather(user)
    assert user.execute(SETTLE, claimed).fetchall() == []
    assert user.execute(IS_KNOWN).fetchall() == [(False,)]
    assert len(user.execute(CLAIM).fetchall()) == 1


def test_where_somebody_keeps_a_record_of_the_outbox_changes_are_left_for_later(
    user: Connection, other: Connection
) -> None:
    user.execute("insert into public.things values (1, 'x', 0), (2, 'x', 0)")
    gather(user)
    user.execute("update public.things set grade = 1")
    with other.transaction():
        other.execute("select dynamics_sync.mark_dirty('dynamics', 'public.things', '1')")
        assert gather(user) == 0
        assert len(user.execute(CLAIM).fetchall()) == 1, "the others can be sent meanwhile"
    assert gather(user) == 2


@pytest.mark.every_postgres
def test_a_resync_is_sent_though_a_request_was_under_way(user: Connection) -> None:
    """What that request wrote may be what Dynamics has lost."""
    user.execute("insert into public.things values (1, 'x', 0)")
    gather(user)
    (claimed,) = user.execute(CLAIM).fetchall()
    assert user.execute("select dynamics_sync.resync('public.things')").fetchone() == (1,)
    assert user.execute(SETTLE, claimed).fetchall() == []
    assert user.execute(IS_KNOWN).fetchall() == [(True,)]
    gather(user)
    assert user.execute(IS_KNOWN).fetchall() == [(False,)]
    assert len(user.execute(CLAIM).fetchall()) == 1


def test_targets_are_gathered_by_themselves(user: Connection) -> None:
    user.execute("select dynamics_sync.watch('public.things', target => 'portal')")
    user.execute("insert into public.things values (1, 'x', 0)")
    assert gather(user) == 1
    assert user.execute("select target from dynamics_sync.changes").fetchall() == [("portal",)]


async def test_during_an_outage_changes_are_gathered_all_the_same(database: str) -> None:
    """A record that changes often does not pile up."""
    async with stage(database, cool_down_seconds=600) as on:
        breaker: DynamicsCircuitBreaker = on.engine.stores.breaker
        await breaker.force_open()
        key = await on.issue()
        for status in ("expiring", "active", "expired"):
            await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])
        await on.until("select not exists (select from dynamics_sync.changes)")
        assert await on.rows("select record_key from dynamics_sync.outbox") == [(key,)]
        assert await on.requests() == []
