"""What a change from Dynamics does to a row, decided without a database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dynamics_sync.core.conflicts import CLOCKS_DIFFER, UNCLEAR, Clash, Incoming, RecordNeededError, Sides, resolve
from dynamics_sync.core.incoming import Message, RecordChange
from dynamics_sync.core.mapping import Owner, parse_mapping

TABLE = {
    "source": "public.people",
    "key": "id",
    "entity_set": "contacts",
    "logical_name": "contact",
    "alternate_key": "ext",
    "columns": {"name": "fullname", "grade": {"to": "new_grade", "owner": "dynamics"}},
}
PEOPLE = Incoming(parse_mapping({"tables": [TABLE]}, "test").tables[0], {"name": "text", "grade": "integer"})
AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
ROW = {"name": "here", "grade": 1}
POSTGRES, DYNAMICS = Owner.POSTGRES, Owner.DYNAMICS


def change(**attributes: Any) -> RecordChange:
    return RecordChange(Message.UPDATE, "contact", "7", AT, None, attributes)


def sides(**known: Any) -> Sides:
    return Sides(ROW, **known)


def held(**attributes: Any) -> dict[str, Any]:
    active = {"statecode": 0, "statuscode": 1}
    return {"fullname": "here", "new_grade": 1, "modifiedon": "2026-11-25T12:00:30Z"} | active | attributes


def test_a_change_of_what_nobody_touched_here_is_written_and_not_sent() -> None:
    done = resolve(PEOPLE, change(fullname="there", other="x"), None, sides())
    assert (done.writes, done.clashes, done.send) == ({"name": "there"}, [], False)
    assert done.newest == {"fullname": AT}


def test_what_the_row_says_already_needs_nothing() -> None:
    recently = sides(written_at=AT, newest={"fullname": AT})
    done = resolve(PEOPLE, change(fullname="here"), None, recently)
    assert (done.writes, done.send, done.is_superseded, done.is_about_nothing) == ({}, False, False, False)


def test_a_change_of_nothing_that_is_mapped_is_about_nothing() -> None:
    assert resolve(PEOPLE, change(other="x"), None, sides()).is_about_nothing


@pytest.mark.parametrize(
    ("known_at", "outcome"),
    [
        (AT - UNCLEAR, "written"),
        (AT - UNCLEAR / 2, "asked"),
        (AT, "asked"),
        (AT + UNCLEAR / 2, "asked"),
        (AT + UNCLEAR, "superseded"),
    ],
)
def test_a_change_is_newer_or_older_than_what_is_known_or_nobody_can_tell(known_at: datetime, outcome: str) -> None:
    known = sides(newest={"fullname": known_at})
    if outcome == "asked":
        with pytest.raises(RecordNeededError):
            resolve(PEOPLE, change(fullname="there"), None, known)
        return
    done = resolve(PEOPLE, change(fullname="there"), None, known)
    assert done.is_superseded == (outcome == "superseded")
    assert done.writes == ({} if outcome == "superseded" else {"name": "there"})


def test_an_old_change_still_counts_for_columns_of_which_nothing_newer_is_known() -> None:
    known = sides(newest={"fullname": AT + timedelta(hours=1)})
    done = resolve(PEOPLE, change(fullname="there", new_grade=2), None, known)
    assert (done.writes, done.older, done.is_superseded) == ({"grade": 2}, 1, False)


def test_the_record_has_the_last_word_and_the_time_that_it_tells_is_remembered() -> None:
    done = resolve(PEOPLE, change(fullname="told"), held(fullname="now"), sides(newest={"fullname": AT}))
    assert done.writes == {"name": "now"}
    assert done.newest == {"fullname": AT + timedelta(seconds=30)}


def test_what_was_left_out_is_read_from_the_record() -> None:
    left_out = replace(change(), attributes=None)
    with pytest.raises(RecordNeededError):
        resolve(PEOPLE, left_out, None, sides())
    assert resolve(PEOPLE, left_out, held(new_grade=3), sides()).writes == {"grade": 3}


def test_a_column_that_waits_here_is_its_owners() -> None:
    done = resolve(PEOPLE, change(fullname="there", new_grade=2), None, sides(waiting=frozenset(ROW)))
    assert done.writes == {"grade": 2}
    assert done.clashes == [Clash("name", POSTGRES), Clash("grade", DYNAMICS)]
    assert done.send


def test_a_column_that_waits_here_unchanged_is_no_conflict() -> None:
    with_before = replace(change(fullname="there"), before={"fullname": "here"})
    done = resolve(PEOPLE, with_before, None, sides(waiting=frozenset(ROW)))
    assert (done.writes, done.clashes, done.send) == ({"name": "there"}, [], False)


@pytest.mark.parametrize(("waiting", "is_conflict"), [((), False), (("grade",), False), (("name",), True)])
def test_what_the_row_has_from_dynamics_is_no_conflict_unless_it_was_changed_since(
    waiting: tuple[str, ...], is_conflict: bool
) -> None:
    """We wrote over the change, with what an earlier one had said."""
    known = sides(written_at=AT, taken=frozenset({"name"}), waiting=frozenset(waiting))
    told = replace(change(fullname="there"), before={"fullname": "before"})
    done = resolve(PEOPLE, told, held(), known)
    assert done.clashes == ([Clash("name", POSTGRES)] if is_conflict else [])
    assert done.writes == ({} if is_conflict else {"name": "there"})


def test_what_was_there_before_need_not_have_a_form_here() -> None:
    told = replace(change(new_grade=2), before={"new_grade": "none of ours"})
    done = resolve(PEOPLE, told, None, sides(waiting=frozenset(ROW)))
    assert (done.writes, done.clashes) == ({"grade": 2}, [Clash("grade", DYNAMICS)])


def test_only_what_waits_conflicts() -> None:
    done = resolve(PEOPLE, change(fullname="there"), None, sides(waiting=frozenset({"grade"})))
    assert (done.writes, done.clashes) == ({"name": "there"}, [])


@pytest.mark.parametrize(
    ("written_at", "is_asked"), [(AT - CLOCKS_DIFFER, True), (AT, True), (AT - CLOCKS_DIFFER * 2, False)]
)
def test_after_a_write_of_ours_the_record_is_asked_for(written_at: datetime, is_asked: bool) -> None:
    if is_asked:
        with pytest.raises(RecordNeededError):
            resolve(PEOPLE, change(fullname="there"), None, sides(written_at=written_at))
    else:
        assert resolve(PEOPLE, change(fullname="there"), None, sides(written_at=written_at)).writes


def test_what_we_wrote_over_is_its_owners() -> None:
    done = resolve(PEOPLE, change(fullname="there"), held(), sides(written_at=AT))
    assert (done.writes, done.clashes, done.send) == ({}, [Clash("name", POSTGRES)], False)
    done = resolve(PEOPLE, change(new_grade=2), held(), sides(written_at=AT))
    assert (done.writes, done.clashes, done.send) == ({"grade": 2}, [Clash("grade", DYNAMICS)], True)


def test_what_we_wrote_over_without_meaning_it_is_written_there_again() -> None:
    with_before = replace(change(fullname="there"), before={"fullname": "here"})
    done = resolve(PEOPLE, with_before, held(), sides(written_at=AT))
    assert (done.writes, done.clashes, done.send) == ({"name": "there"}, [], True)


def test_what_a_request_under_way_wrote_over_is_its_owners() -> None:
    done = resolve(PEOPLE, change(fullname="there"), held(), sides(waiting=frozenset({"grade"})))
    assert (done.writes, done.clashes) == ({}, [Clash("name", POSTGRES)])


def test_what_was_changed_back_there_is_no_conflict() -> None:
    done = resolve(PEOPLE, change(fullname="there"), held(), sides(newest={"fullname": AT}))
    assert (done.writes, done.clashes) == ({}, [])


def test_a_record_made_inactive_there_is_active_while_its_row_is_here() -> None:
    done = resolve(PEOPLE, change(statecode=1, statuscode=1), None, sides())
    assert (done.clashes, done.send) == ([Clash("statecode", POSTGRES)], True)
    done = resolve(PEOPLE, change(statecode=1), held(), sides(written_at=AT))
    assert (done.clashes, done.send) == ([], False)


def test_a_lookup_is_known_by_its_logical_name() -> None:
    columns = {"team": {"to": "new_Team", "lookup": {"entity_set": "teams"}}}
    table = parse_mapping({"tables": [TABLE | {"columns": columns}]}, "test").tables[0]
    incoming = Incoming(table, {"team": "uuid"}, {"new_Team": "_new_team_value"})
    assert incoming.properties[0] == "_new_team_value"
    done = resolve(incoming, change(new_team=None), None, Sides({"team": "6d81597f-0f9f-4711-8122-000d3aa2331c"}))
    assert done.writes == {"team": None}
