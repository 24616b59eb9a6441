"""What the listing and the sweep cost with 100,000 certifications, whatever the planner believes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from support.postgres import Cluster

Connection = psycopg.Connection[Any]

FILL = """
set session_replication_role = replica;
insert into public.organisations (name, time_zone)
select 'organisation ' || n, (array['Europe/Oslo', 'Pacific/Apia', 'UTC'])[1 + n % 3] from generate_series(1, 20) n;
insert into public.chapters (organisation_id, name)
select o.id, 'chapter ' || n from public.organisations o, generate_series(1, 50) n;
insert into public.peer_mentors (chapter_id, display_name)
select c.id, 'mentor ' || n from public.chapters c, generate_series(1, 20) n;
insert into public.certifications (peer_mentor_id, chapter_id, status, issued_on, expires_on)
select m.id, m.chapter_id,
  case
    when old then (array['expired', 'revoked'])[1 + n % 2]
    when n > 10000 then 'pending'
    when n % 5 = 0 then 'expiring'
    else 'active'
  end,
  '2020-01-01', case when old then date '2022-01-01' when n % 5 = 0 then current_date + 10 else '2099-01-01' end
from (select m.*, row_number() over () as n from public.peer_mentors m) m,
  (select era > 1 as old from generate_series(1, 5) era) eras;
set session_replication_role = origin
"""
"""100,000 certifications of 20,000 mentors in 1,000 chapters; 10,000 of the mentors have a valid one,
2,000 of these until soon."""
LISTED = 10_000

RUN_OUT = """
update public.certifications set expires_on = current_date - 1
where status = 'active' and chapter_id in (select c.chapter_id from public.certifications c where c.status = 'active'
  group by c.chapter_id order by c.chapter_id limit 20)
"""
"""Some hundreds."""


READ = """
select seq_scan, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_all_tables
where relid = 'public.certifications'::regclass
"""
"""In this transaction: how often the table was read from end to end, and rows that were fetched."""
A_FEW = 20
"""Rows that the planner itself looks at."""


@pytest.fixture(scope="module")
def full(clusters: dict[str, Cluster]) -> Iterator[Connection]:
    with clusters["pg18"].database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL)
        yield connection


@contextmanager
def believing(full: Connection, *, analysed: bool) -> Iterator[None]:
    """For as long as this lasts, the planner knows the tables, or nothing of them."""
    with full.transaction(force_rollback=True):
        if analysed:
            full.execute("analyze public.certifications, public.peer_mentors, public.chapters, public.organisations")
        yield


@contextmanager
def fetching(full: Connection, at_most: int) -> Iterator[None]:
    """No more rows than these are fetched, each by an index."""

    def read() -> tuple[int, int]:
        row = full.execute(READ).fetchone()
        assert row is not None
        return row[0], row[1]

    scans, rows = read()
    yield
    assert read()[0] == scans
    assert read()[1] - rows <= at_most + A_FEW


@pytest.mark.parametrize("analysed", [False, True])
def test_the_listing_fetches_what_is_in_force_and_is_far_from_the_time_out_of_anon(
    full: Connection, analysed: bool
) -> None:
    """Supabase gives anon three seconds."""
    with believing(full, analysed=analysed), fetching(full, LISTED):
        full.execute("set local statement_timeout = '1s'")
        full.execute("set local role anon")
        assert len(full.execute("select * from public.public_peer_mentors").fetchall()) == LISTED


@pytest.mark.parametrize("analysed", [False, True])
def test_a_sweep_with_nothing_to_do_fetches_nothing(full: Connection, analysed: bool) -> None:
    with believing(full, analysed=analysed), fetching(full, 0):
        assert full.execute("select * from dynamics_certifications.sweep(1000)").fetchone() == (0, 0)


@pytest.mark.parametrize("analysed", [False, True])
def test_a_sweep_fetches_only_what_it_moves(full: Connection, analysed: bool) -> None:
    """Each once to lock it, and once to change it."""
    with believing(full, analysed=analysed):
        full.execute(RUN_OUT)
        with fetching(full, 2 * 100):
            assert full.execute("select * from dynamics_certifications.sweep(100)").fetchone() == (0, 100)
