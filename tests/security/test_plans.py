"""What policies cost, with 100,000 certifications in 1,000 chapters."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from security.world import Connection, acting
from support.postgres import Cluster

ROWS = {"coordinator": 200, "administrator": 10_000, "mentor": 5}
"""How many certifications each of these users may see: all of two chapters, of 100 chapters, or their own."""

FILL = """
set local session_replication_role = replica;
create function pg_temp.id(kind char, n bigint) returns uuid immutable
  return (kind || '0000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid;
insert into public.organisations (id, name) select pg_temp.id('0', n), n from generate_series(0, 9) n;
insert into public.chapters (id, organisation_id, name)
  select pg_temp.id('c', n), pg_temp.id('0', n % 10), n from generate_series(0, 999) n;
insert into public.peer_mentors (id, chapter_id, user_id, display_name)
  select pg_temp.id('b', n), pg_temp.id('c', n % 1000), pg_temp.id('3', n), n from generate_series(0, 19999) n;
insert into public.certifications (id, peer_mentor_id, chapter_id, expires_on)
  select pg_temp.id('d', n), pg_temp.id('b', n % 20000), pg_temp.id('c', n % 1000), date '2026-01-01' + n * 79 % 1000
  from generate_series(0, 99999) n;
insert into public.chapter_memberships (user_id, chapter_id, role)
  select pg_temp.id('3', n), pg_temp.id('c', n % 1000), 'peer_mentor' from generate_series(0, 19999) n
  union all select pg_temp.id('1', n), pg_temp.id('c', n), 'coordinator' from generate_series(0, 999) n
  union all select pg_temp.id('1', 0), pg_temp.id('c', 1), 'coordinator'
  union all select pg_temp.id('2', n), pg_temp.id('c', n), 'organisation_admin' from generate_series(0, 9) n
"""

USERS = {"coordinator": "1", "administrator": "2", "mentor": "3"}
"""With the first digit of their ids."""


@pytest.fixture(scope="module")
def owner(clusters: dict[str, Cluster]) -> Iterator[Connection]:
    """A superuser of a database with 100,000 certifications of 20,000 mentors in 1,000 chapters of 10 organisations."""
    with clusters["pg18"].database() as url, psycopg.connect(url, autocommit=True) as connection:
        with connection.transaction():
            connection.execute(FILL)
        connection.execute("analyze")
        connection.execute("set track_functions = 'all'")
        yield connection


@dataclass(frozen=True)
class Cost:
    """How a statement was carried out, with what its policies' functions did."""

    rows: int
    looked_at: int
    """Rows of tables, but for what the functions looked at."""
    scanned: frozenset[str]
    """Tables that were read from end to end."""
    calls: Counter[str]
    """Of the policies' functions."""


SCANS = "select relname, seq_scan from pg_stat_xact_user_tables where schemaname = 'public'"
POLICIES = "'managed_chapters', 'known_chapters', 'known_organisations', 'own_mentors'"
CALLS = f"select funcname, calls from pg_stat_xact_user_functions where funcname in ({POLICIES})"


def cost(owner: Connection, user: str, statement: str) -> Cost:
    """Carry it out as that user, and take it back."""
    sub = f"{USERS[user]}0000000-0000-0000-0000-000000000000"
    with acting(owner, "authenticated", json.dumps({"sub": sub})) as connection:
        before = _counted(connection, SCANS), _counted(connection, CALLS)
        explained = connection.execute(f"explain (analyze, timing off, format json) {statement}".encode()).fetchone()
        scans, calls = (
            _counted(connection, query) - known for query, known in zip((SCANS, CALLS), before, strict=True)
        )
    assert explained is not None
    plan = explained[0][0]["Plan"]
    return Cost(
        rows=round(plan["Actual Rows"]),
        looked_at=sum(_looked_at(node) for node in _nodes(plan) if "scan" in node["Node Type"].lower()),
        scanned=frozenset(scans),
        calls=calls,
    )


def _counted(connection: Connection, query: str) -> Counter[str]:
    return Counter(dict(connection.execute(query.encode()).fetchall()))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


def _looked_at(node: dict[str, Any]) -> int:
    if "Relation Name" not in node:  # a bitmap of rows that are looked at above
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    touched: float = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return round(touched)


LIST = "select * from public.certifications"
ONE = "update public.certifications set status = 'active' where id = 'd0000000-0000-0000-0000-000000001000'"
ALL = "update public.certifications set status = 'active'"
MAKE = "insert into public.certifications (peer_mentor_id, chapter_id) select id, chapter_id from public.peer_mentors"


@pytest.mark.parametrize("user", USERS)
def test_a_list_looks_at_no_row_but_the_users_own(owner: Connection, user: str) -> None:
    found = cost(owner, user, LIST)
    assert found == Cost(ROWS[user], ROWS[user], frozenset(), Counter(managed_chapters=1, own_mentors=1))


@pytest.mark.parametrize("user", USERS)
def test_nor_does_a_page_of_it_in_order(owner: Connection, user: str) -> None:
    found = cost(owner, user, f"{LIST} order by expires_on limit 50")
    assert found == Cost(min(50, ROWS[user]), ROWS[user], frozenset(), Counter(managed_chapters=1, own_mentors=1))


@pytest.mark.parametrize("user", USERS)
def test_nor_does_one_with_the_mentors_names(owner: Connection, user: str) -> None:
    found = cost(owner, user, f"{LIST} c join public.peer_mentors m on m.id = c.peer_mentor_id")
    mentors = {"coordinator": 40, "administrator": 2_000, "mentor": 1}[user]
    assert (found.rows, found.looked_at) == (ROWS[user], ROWS[user] + mentors)
    assert (found.scanned, found.calls) == (frozenset(), Counter(managed_chapters=2, own_mentors=1))


def test_a_change_of_one_certification_looks_at_one_row(owner: Connection) -> None:
    found = cost(owner, "coordinator", ONE)
    assert (found.looked_at, found.scanned) == (1, frozenset())
    assert found.calls == Counter(managed_chapters=4)  # seen and changed, before and after


def test_a_change_of_many_asks_no_more_often(owner: Connection) -> None:
    found = cost(owner, "coordinator", ALL)
    assert (found.looked_at, found.scanned, found.calls) == (200, frozenset(), Counter(managed_chapters=2))


def test_who_may_change_nothing_finds_that_out_as_cheaply(owner: Connection) -> None:
    found = cost(owner, "mentor", ALL)
    assert (found.looked_at, found.scanned, found.calls) == (0, frozenset(), Counter(managed_chapters=1))


def test_many_new_certifications_ask_no_more_often_than_one(owner: Connection) -> None:
    one, many = (cost(owner, "coordinator", statement) for statement in (f"{MAKE} limit 1", MAKE))
    assert many.scanned == frozenset()
    assert many.calls == one.calls == Counter(managed_chapters=3)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("table", ["peer_mentors", "chapter_memberships", "chapters", "organisations"])
def test_no_list_scans_memberships_or_mentors(owner: Connection, user: str, table: str) -> None:
    found = cost(owner, user, f"select * from public.{table}")
    assert found.scanned <= {"chapters", "organisations"}
    assert all(count <= 1 for count in found.calls.values())
