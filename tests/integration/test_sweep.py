"""The expiry sweep: what it moves on, when, and how often."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from dynamics_sync.certifications import sweep as sweep_module
from dynamics_sync.certifications.sweep import Sweep
from dynamics_sync.postgres.connections import make_pool, transaction
from dynamics_sync.sync.clock import SystemClock
from support.database_clock import INSTALL
from support.mentors import NOW, TODAY, Connection, add_chapter, add_mentor, certify
from support.outbox import FORGET_ALL, GATHER

DAY = timedelta(days=1)
CHANGES = "select coalesce(sum(records), 0) from dynamics_sync.changes"
"""One more for each change of a record, while nobody gathers them."""
SLOW = """
create or replace function dynamics_certifications.today_in(time_zone text) returns date language plpgsql stable as $$
begin
  perform pg_advisory_xact_lock_shared(1);
  return (statement_timestamp() at time zone time_zone)::date;
end
$$
"""


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    """The database's owner, on 25 November 2026 at noon in London."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(INSTALL)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("update test_clock.setting set stands_at = %s", [NOW])
        yield connection


@pytest.fixture
def mentor(owner: Connection) -> UUID:
    return add_mentor(owner, add_chapter(owner))


def value(connection: Connection, query: str, *parameters: object) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def sweep(connection: Connection, at_most: int = 1000) -> tuple[int, int]:
    """How many became expiring, and how many expired."""
    row = connection.execute("select expiring, expired from dynamics_certifications.sweep(%s)", [at_most]).fetchone()
    assert row is not None
    return row[0], row[1]


def pass_days(owner: Connection, days: int) -> None:
    owner.execute("update test_clock.setting set ahead = ahead + make_interval(days => %s)", [days])


def status(connection: Connection, certification: UUID) -> str:
    return str(value(connection, "select status from public.certifications where id = %s", certification))


@pytest.mark.every_postgres
def test_a_certification_expires_in_two_steps_each_on_its_day(owner: Connection, mentor: UUID) -> None:
    certification = certify(owner, mentor, TODAY + 31 * DAY)
    assert sweep(owner) == (0, 0)
    pass_days(owner, 1)
    assert sweep(owner) == (1, 0)
    assert status(owner, certification) == "expiring"
    pass_days(owner, 30)
    assert sweep(owner) == (0, 0)
    pass_days(owner, 1)
    assert sweep(owner) == (0, 1)
    assert status(owner, certification) == "expired"
    assert sweep(owner) == (0, 0)


def test_how_early_it_warns_and_when_days_begin_is_the_organisations(owner: Connection) -> None:
    """At noon in London it is the next day in Kiritimati, and the same in Pago Pago."""
    east = add_mentor(owner, add_chapter(owner, zone="Pacific/Kiritimati", expiring_days=1))
    west = add_mentor(owner, add_chapter(owner, zone="Pacific/Pago_Pago", expiring_days=0))
    of_east = [certify(owner, east, TODAY + days * DAY) for days in (0, 1, 2, 3)]
    of_west = [certify(owner, west, TODAY + days * DAY) for days in (-1, 0, 1)]
    assert sweep(owner) == (3, 2)
    assert [status(owner, each) for each in of_east] == ["expired", "expiring", "expiring", "active"]
    assert [status(owner, each) for each in of_west] == ["expired", "expiring", "active"]


def test_after_days_without_a_sweep_it_expires_in_one_step(owner: Connection, mentor: UUID) -> None:
    certify(owner, mentor, TODAY + 31 * DAY)
    owner.execute(FORGET_ALL)
    pass_days(owner, 100)
    assert sweep(owner) == (0, 1)
    assert value(owner, CHANGES) == 1


@pytest.mark.parametrize("state", ["pending", "expired", "revoked"])
def test_what_is_not_in_force_stays_as_it_is(owner: Connection, mentor: UUID, state: str) -> None:
    certify(owner, mentor, TODAY - DAY, state)
    certify(owner, mentor, TODAY + DAY, state)
    assert sweep(owner) == (0, 0)


def test_what_has_no_last_day_or_an_endless_one_stays_as_it_is(owner: Connection, mentor: UUID) -> None:
    certify(owner, mentor, None)
    owner.execute(
        "update public.certifications set expires_on = 'infinity' where id = %s", [certify(owner, mentor, TODAY)]
    )
    assert sweep(owner) == (0, 0)


def test_a_renewal_starts_it_over(owner: Connection, mentor: UUID) -> None:
    certification = certify(owner, mentor, TODAY - DAY)
    assert sweep(owner) == (0, 1)
    owner.execute(
        "update public.certifications set status = 'active', expires_on = %s where id = %s",
        [TODAY + 30 * DAY, certification],
    )
    assert sweep(owner) == (1, 0)
    pass_days(owner, 31)
    assert sweep(owner) == (0, 1)


def test_a_clock_that_is_set_back_revives_nothing(owner: Connection, mentor: UUID) -> None:
    expired, expiring = certify(owner, mentor, TODAY - DAY), certify(owner, mentor, TODAY)
    assert sweep(owner) == (1, 1)
    pass_days(owner, -400)
    assert sweep(owner) == (0, 0)
    assert (status(owner, expired), status(owner, expiring)) == ("expired", "expiring")


def test_the_change_is_captured_like_anybodys(owner: Connection, mentor: UUID) -> None:
    certification = certify(owner, mentor, TODAY - DAY)
    owner.execute(FORGET_ALL)
    sweep(owner)
    owner.execute(GATHER)
    waiting = owner.execute("select record_key, operation_type, changed_columns from dynamics_sync.outbox").fetchall()
    assert waiting == [(str(certification), "upsert", ["status"])]  # at the same moment, as the clock stands still


def test_a_batch_is_bounded_and_takes_what_is_over_first(owner: Connection, mentor: UUID) -> None:
    for last in (TODAY, TODAY - DAY) * 3:
        certify(owner, mentor, last)
    assert [sweep(owner, 2) for _ in range(4)] == [(0, 2), (1, 1), (2, 0), (0, 0)]


@pytest.mark.every_postgres
def test_many_sweeps_at_once_move_each_one_once(owner: Connection, database: str, mentor: UUID) -> None:
    for last in (TODAY, TODAY - DAY) * 60:
        certify(owner, mentor, last)
    owner.execute(FORGET_ALL)

    def work(_: int) -> int:
        moved = 0
        with psycopg.connect(database, autocommit=True) as worker:
            while batch := sum(sweep(worker, 7)):
                moved += batch
        return moved

    with ThreadPoolExecutor(4) as workers:
        moved = list(workers.map(work, range(4)))
    assert sum(moved) == 120
    assert value(owner, CHANGES) == 120
    assert sweep(owner) == (0, 0)


def test_what_a_person_is_changing_is_left_for_later(owner: Connection, database: str, mentor: UUID) -> None:
    busy, idle = certify(owner, mentor, TODAY - DAY), certify(owner, mentor, TODAY - DAY)
    with psycopg.connect(database) as person:
        person.execute("update public.certifications set kind = 'other' where id = %s", [busy])
        assert sweep(owner) == (0, 1)
        assert (status(owner, busy), status(owner, idle)) == ("active", "expired")
    assert sweep(owner) == (0, 1)


@pytest.mark.every_postgres
def test_what_a_person_renews_while_it_looks_is_not_moved(owner: Connection, database: str, mentor: UUID) -> None:
    """It saw the certification as it was, and comes to lock it when the renewal is committed."""
    certification = certify(owner, mentor, TODAY - DAY)
    owner.execute(SLOW)
    owner.execute("select pg_advisory_lock(1)")
    with ThreadPoolExecutor(1) as another, psycopg.connect(database, autocommit=True) as sweeping:
        moved = another.submit(sweep, sweeping)
        while not value(owner, "select exists (select from pg_locks where locktype = 'advisory' and not granted)"):
            assert not moved.done()
        owner.execute("update public.certifications set expires_on = %s", [TODAY + 90 * DAY])
        owner.execute("select pg_advisory_unlock(1)")
        assert moved.result(10) == (0, 0)
    assert status(owner, certification) == "active"


def test_it_gives_way_to_a_person_who_holds_what_it_needs(owner: Connection, database: str, mentor: UUID) -> None:
    """Nobody may write the table while an operator has it locked: the sweep neither waits for long nor takes part in a
    deadlock."""
    certification = certify(owner, mentor, TODAY - DAY)
    owner.execute("set statement_timeout = '20s'")
    with psycopg.connect(database) as operator:
        operator.execute("lock table public.certifications in share mode")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            sweep(owner)
        assert status(owner, certification) == "active"
    assert sweep(owner) == (0, 1)


def test_an_operator_who_marks_all_rows_dirty_is_not_in_its_way(owner: Connection, database: str, mentor: UUID) -> None:
    certify(owner, mentor, TODAY - DAY)
    with psycopg.connect(database) as operator:
        operator.execute("select dynamics_sync.resync('public.certifications')")
        assert sweep(owner) == (0, 1)


@pytest.mark.every_postgres
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_users_may_not_sweep(owner: Connection, role: str) -> None:
    owner.execute("grant usage on schema dynamics_certifications to anon, authenticated")
    owner.execute(f"set role {role}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sweep(owner)


async def test_the_schedule_goes_on_until_none_is_left(
    owner: Connection, database: str, mentor: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "AT_ONCE", 10)
    for last in [TODAY - DAY] * 12 + [TODAY] * 13:
        certify(owner, mentor, last)
    async with make_pool(database, 1) as pool:
        with capture_logs() as logs:
            await Sweep(lambda: transaction(pool), SystemClock()).all_due()
    assert [(log["event"], log["expiring"], log["expired"]) for log in logs] == [
        ("sweep.moved", 0, 10),
        ("sweep.moved", 8, 2),
        ("sweep.moved", 5, 0),
    ]
