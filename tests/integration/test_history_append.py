"""Appending to a renewal history: who may, and that nothing gets lost on the way (R21, R22)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from threading import Barrier
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from support.histories import SERVICE, Histories, append, first_form, histories, second_form

LATER = {"schema_version": 3, "unknown": True}

WRITE = "update public.certifications set renewal_history = %s where id = %s"


@pytest.fixture
def at(database: str) -> Iterator[Histories]:
    with histories(database) as made:
        yield made


def agree(at: Histories, certification: UUID) -> int:
    """The copy says what the table does; how many entries that are."""
    assert at.copy(certification) == at.table(certification)
    return len(at.copy(certification))


@pytest.mark.every_postgres
def test_no_append_gets_lost_however_many_come_at_once(at: Histories) -> None:
    people, times = 8, 5
    histories_before: list[list[object]] = [[], [first_form(n) for n in range(3)], [LATER]]
    certifications = [at.certification(history) for history in histories_before]
    users = [at.user("coordinator") for _ in range(people - 1)] + [SERVICE]
    barrier = Barrier(people)

    def appends(user: UUID | None) -> list[list[str]]:
        with at.session(user) as connection:
            barrier.wait(timeout=30)
            return [[append(connection, each)["id"] for each in certifications] for _ in range(times)]

    with ThreadPoolExecutor(people) as pool:
        told = [ids for rounds in pool.map(appends, users) for ids in rounds]
    for certification, before, appended in zip(certifications, histories_before, zip(*told, strict=True), strict=True):
        assert sorted(entry["id"] for entry in at.copy(certification)[len(before) :]) == sorted(appended)
    assert [agree(at, certification) for certification in certifications[:2]] == [people * times, 3 + people * times]


def test_an_entry_says_what_happened_when_and_by_whom(at: Histories) -> None:
    certification, coordinator = at.certification(), at.user("coordinator")
    told = at.append(certification, coordinator, event="issued", on_day=date(2026, 1, 2), expires_on=date(2028, 1, 1))
    assert (told["event"], told["on"], told["expires_on"]) == ("issued", "2026-01-02", "2028-01-01")
    assert told["recorded_by"] == str(coordinator)
    assert [told] == at.copy(certification) == at.table(certification)
    assert at.append(certification)["recorded_by"] is None


def test_the_first_append_brings_an_older_history_into_the_table(at: Histories) -> None:
    certification = at.certification([first_form(1), second_form(2)])
    at.append(certification)
    assert agree(at, certification) == 3
    assert [entry["schema_version"] for entry in at.copy(certification)] == [2, 2, 2]


def test_a_history_that_cannot_be_upgraded_still_takes_appends_and_keeps_all_it_has(at: Histories) -> None:
    certification = at.certification([LATER, "?", first_form(1)])
    told = at.append(certification)
    assert at.copy(certification) == [LATER, "?", first_form(1), told]
    assert at.table(certification) == []


def test_an_append_that_is_sent_twice_counts_once(at: Histories) -> None:
    certification, entry_id = at.certification([first_form(1)]), uuid4()
    first = at.append(certification, entry_id=entry_id)
    assert at.append(certification, entry_id=entry_id) == first
    assert agree(at, certification) == 2


def test_an_id_is_not_used_for_something_else(at: Histories) -> None:
    certification, entry_id = at.certification(), uuid4()
    at.append(certification, entry_id=entry_id)
    with pytest.raises(psycopg.errors.UniqueViolation, match="another one"):
        at.append(certification, entry_id=entry_id, event="revoked")
    assert at.append(at.certification(), entry_id=entry_id)["id"] == str(entry_id)
    assert agree(at, certification) == 1


@pytest.mark.parametrize("role", ["peer_mentor", None])
def test_who_does_not_manage_the_chapter_may_not_append(at: Histories, role: str | None) -> None:
    certification, user = at.certification(), at.user(role)
    at.owner.execute("update public.peer_mentors set user_id = %s", [user if role else None])
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no certification with this id"):
        at.append(certification, user)
    assert agree(at, certification) == 0


def test_a_foreign_certification_looks_like_none(at: Histories) -> None:
    certification, user = at.certification(), at.user()
    said = []
    for asked in certification, uuid4():
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            at.append(asked, user)
        said.append(refused.value.diag.message_primary)
    assert said[0] == said[1]


def test_anon_may_not_append_and_nobody_calls_what_is_behind_it(at: Histories) -> None:
    certification, coordinator = at.certification(), at.user("coordinator")
    with at.session(None, "anon") as anon, pytest.raises(psycopg.errors.InsufficientPrivilege):
        append(anon, certification)
    inner = "select dynamics_certifications.append_renewal(%s, 'renewed', current_date, null, null)"
    with at.session(coordinator) as user, pytest.raises(psycopg.errors.InsufficientPrivilege):
        user.execute(inner, [certification])
    # Not even with the schema open: it asks for itself who comes.
    at.owner.execute("grant usage on schema dynamics_certifications to authenticated")
    with at.session(at.user()) as user, pytest.raises(psycopg.errors.InsufficientPrivilege, match="no certification"):
        user.execute(inner, [certification])


@pytest.mark.parametrize(
    "statement",
    [
        "update public.certifications set renewal_history = '[]'",
        "insert into public.certification_renewal_events (certification_id, position, event, on_day) "
        "select id, 9, 'renewed', current_date from public.certifications",
        "update public.certification_renewal_events set on_day = current_date",
        "delete from public.certification_renewal_events",
    ],
)
def test_a_coordinator_writes_no_history_but_by_appending(at: Histories, statement: str) -> None:
    certification, coordinator = at.certification(), at.user("coordinator")
    at.append(certification, coordinator)
    with at.session(coordinator) as user, pytest.raises(psycopg.errors.InsufficientPrivilege):
        user.execute(statement.encode())
    assert agree(at, certification) == 1


def test_who_sees_a_certification_sees_its_entries_and_nobody_else_does(at: Histories) -> None:
    certification = at.certification()
    at.append(certification)
    mentor, coordinator, stranger = at.user("peer_mentor"), at.user("coordinator"), at.user()
    at.owner.execute("update public.peer_mentors set user_id = %s", [mentor])
    for user, seen in (mentor, 1), (coordinator, 1), (stranger, 0):
        with at.session(user) as connection:
            rows = connection.execute("select certification_id from public.certification_renewal_events").fetchall()
            assert rows == [(certification,)] * seen
            (read,) = connection.execute("select public.read_renewals(%s)", [certification]).fetchone() or ()
            assert read == (at.copy(certification) if seen else None)


def test_an_old_history_is_read_in_the_current_form(at: Histories) -> None:
    certification, coordinator = at.certification([first_form(1), LATER]), at.user("coordinator")
    with at.session(coordinator) as user:
        (read,) = user.execute("select public.read_renewals(%s)", [certification]).fetchone() or ()
    assert [entry["schema_version"] for entry in read] == [2, 3]


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ({}, "the history is not an array"),
        (["Kari Nordmann"], "entry 1: it is not an object"),
        ([first_form(1), {"schema_version": 1, "renewed_on": "Kari"}], "entry 2: renewed_on is no day"),
        ([second_form(1, event="Kari Nordmann")], "event is none of issued, renewed, revoked, reinstated, expired"),
        ([second_form(1, recorded_by="Kari")], "recorded_by is neither a UUID nor null"),
        ([second_form(1) | {"Kari Nordmann": 1}], "a key is missing, or not one of its schema_version"),
        ([LATER], "later than the latest that is known"),
        ([second_form(1, id=str(UUID(int=1)))] * 2, "another entry has the same id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_entry_is_refused_and_not_quoted(at: Histories, history: object, said: str) -> None:
    certification = at.certification()
    with at.session(SERVICE) as service, pytest.raises(psycopg.errors.CheckViolation, match=said) as refused:
        service.execute(WRITE, [Jsonb(history), certification])
    assert "Kari" not in str(refused.value)
    insert = "insert into public.certifications (peer_mentor_id, chapter_id, renewal_history) values (%s, %s, %s)"
    with at.session(SERVICE) as service, pytest.raises(psycopg.errors.CheckViolation, match=said):
        service.execute(insert, [at.mentor, at.chapter, Jsonb(history)])


def test_what_was_malformed_before_hinders_no_other_change(at: Histories) -> None:
    certification = at.certification(["?", LATER])
    with at.session(SERVICE) as service:
        service.execute("update public.certifications set status = 'active' where id = %s", [certification])
        service.execute(WRITE, [Jsonb(["?", LATER, second_form(1)]), certification])
        for added in "!", "?":
            with pytest.raises(psycopg.errors.CheckViolation, match="is not an object"):
                service.execute(WRITE, [Jsonb([*at.copy(certification), added]), certification])


def test_once_the_table_has_a_history_its_copy_is_not_written_by_hand(at: Histories) -> None:
    certification = at.certification([first_form(1)])
    at.append(certification)
    held = at.copy(certification)
    with at.session(SERVICE) as service:
        for history in [], [*held, second_form(2)], list(reversed(held)):
            with pytest.raises(psycopg.errors.CheckViolation, match="only its copy"):
                service.execute(WRITE, [Jsonb(history), certification])
        service.execute(WRITE, [Jsonb(held), certification])
    assert agree(at, certification) == 2


def test_what_service_role_enters_into_the_table_is_copied_at_once(at: Histories) -> None:
    certification = at.certification()
    with at.session(SERVICE) as service:
        service.execute(
            "insert into public.certification_renewal_events (certification_id, position, event, on_day) "
            "values (%(id)s, 1, 'issued', '2026-01-01'), (%(id)s, 2, 'renewed', '2027-01-01')",
            {"id": certification},
        )
    assert agree(at, certification) == 2


def test_nothing_is_entered_over_a_history_that_is_not_in_the_table(at: Histories) -> None:
    certification = at.certification([first_form(1)])
    with at.session(SERVICE) as service, pytest.raises(psycopg.errors.CheckViolation, match="history migrate"):
        service.execute(
            "insert into public.certification_renewal_events (certification_id, position, event, on_day) "
            "values (%s, 1, 'issued', '2026-01-01')",
            [certification],
        )
    assert at.copy(certification) == [first_form(1)]


def test_the_day_of_an_entry_is_a_day(at: Histories) -> None:
    certification = at.certification()
    with at.session(SERVICE) as service, pytest.raises(psycopg.errors.InvalidParameterValue, match="on is no day"):
        service.execute("select public.append_renewal(%s, 'renewed', 'infinity')", [certification])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="event is none of"):
        at.append(certification, event="Kari")


def test_past_five_hundred_entries_an_append_warns(at: Histories) -> None:
    certification = at.certification([first_form(n) for n in range(499)])
    warnings: list[str | None] = []
    with at.session(SERVICE) as service:
        service.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
        append(service, certification)
        assert warnings == []
        append(service, certification)
    assert warnings == [f"history.oversized: certification {certification} has 501 entries"]


def test_entries_go_with_their_certification(at: Histories) -> None:
    certification = at.certification()
    at.append(certification)
    with at.session(SERVICE) as service:
        service.execute("delete from public.certifications where id = %s", [certification])
    assert at.table(certification) == []
