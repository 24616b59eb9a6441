"""The public listing: whom it shows, what it shows of them, and to whom (R20)."""

from collections.abc import Iterator
from datetime import date, timedelta
from uuid import UUID

import psycopg
import pytest

from support.database_clock import INSTALL
from support.mentors import NOW, TODAY, Connection, add_chapter, add_mentor, certify
from support.outbox import GATHER

DAY = timedelta(days=1)
STAND = "update test_clock.setting set stands_at = %s"


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    """The database's owner, on 25 November 2026 at noon in London."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(INSTALL)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(STAND, [NOW])
        yield connection


def listed(connection: Connection, role: str = "anon") -> list[UUID]:
    """The mentors that the role sees."""
    with connection.transaction():
        connection.execute(f"set local role {role}".encode())
        return [row[0] for row in connection.execute("select id from public.public_peer_mentors").fetchall()]


@pytest.mark.every_postgres
def test_it_shows_name_chapter_and_organisation_and_nothing_more(owner: Connection) -> None:
    chapter = add_chapter(owner, "Bergen")
    mentor = add_mentor(owner, chapter)
    certify(owner, mentor, TODAY)
    owner.execute("set role anon")
    cursor = owner.execute("select * from public.public_peer_mentors")
    assert [column.name for column in cursor.description or ()] == [
        "id",
        "display_name",
        "chapter_id",
        "chapter_name",
        "organisation_name",
    ]
    assert cursor.fetchall() == [(mentor, "Kari Nordmann", chapter, "Bergen", "HLF")]


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_everybody_reads_the_same(owner: Connection, role: str) -> None:
    mentor = add_mentor(owner, add_chapter(owner))
    certify(owner, mentor, TODAY)
    assert listed(owner, role) == [mentor]


REFUSED = [
    "select from public.peer_mentors",
    "select from public.certifications",
    "select from public.chapters",
    "select from public.organisations",
    "select dynamics_certifications.listed_mentors()",
    "select dynamics_certifications.sweep(1)",
]


@pytest.mark.every_postgres
@pytest.mark.parametrize("statement", REFUSED)
def test_anon_may_do_nothing_else(owner: Connection, statement: str) -> None:
    owner.execute("set role anon")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute(statement.encode())


def test_it_lends_nobody_its_owners_rights(owner: Connection) -> None:
    """Supabase's linter: security_definer_view."""
    row = owner.execute("select reloptions from pg_class where oid = 'public.public_peer_mentors'::regclass").fetchone()
    assert row == (["security_invoker=true"],)


@pytest.mark.parametrize(
    ("status", "first", "last", "is_listed"),
    [
        ("active", TODAY, TODAY, True),
        ("expiring", TODAY - DAY, TODAY + DAY, True),
        ("active", None, TODAY, True),
        ("active", TODAY + DAY, TODAY + 2 * DAY, False),
        ("active", None, TODAY - DAY, False),
        ("active", None, None, False),
        ("pending", TODAY, TODAY, False),
        ("expired", TODAY, TODAY + DAY, False),
        ("revoked", TODAY, TODAY + DAY, False),
    ],
)
def test_the_rule(owner: Connection, status: str, first: date | None, last: date | None, is_listed: bool) -> None:
    mentor = add_mentor(owner, add_chapter(owner))
    certify(owner, mentor, last, status, issued_on=first)
    assert listed(owner) == [mentor] * is_listed


def test_a_mentor_of_many_certifications_is_listed_once_by_any_of_them(owner: Connection) -> None:
    mentor = add_mentor(owner, add_chapter(owner))
    for last in (TODAY - DAY, TODAY, TODAY + DAY):
        certify(owner, mentor, last)
    certify(owner, mentor, TODAY, "revoked")
    assert listed(owner) == [mentor]


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("zone", "midnight"),
    [
        ("Europe/Oslo", "2026-11-25 23:00+00"),
        ("Pacific/Kiritimati", "2026-11-25 10:00+00"),
        ("Pacific/Pago_Pago", "2026-11-26 11:00+00"),
    ],
)
def test_the_last_day_ends_at_midnight_where_the_certification_was_issued(
    owner: Connection, zone: str, midnight: str
) -> None:
    home = add_mentor(owner, add_chapter(owner, "elsewhere", "America/New_York"))
    certify(owner, home, TODAY, chapter=add_chapter(owner, "there", zone))
    owner.execute(STAND, [midnight])
    assert listed(owner) == []
    owner.execute("update test_clock.setting set stands_at = stands_at - interval '1 microsecond'")
    assert listed(owner) == [home]


def test_neither_sync_nor_sweep_is_needed(owner: Connection) -> None:
    """The change waits, and nobody has moved the certification on."""
    mentor = add_mentor(owner, add_chapter(owner))
    certify(owner, mentor, TODAY)
    owner.execute("update test_clock.setting set ahead = '10 days'")
    assert listed(owner) == []
    assert owner.execute("select status from public.certifications").fetchone() == ("active",)
    owner.execute(GATHER)
    assert owner.execute("select count(*) from dynamics_sync.outbox").fetchone() == (1,)
