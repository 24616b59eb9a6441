"""The way back: what Dynamics holds becomes what the column held."""

import contextlib
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dynamics_sync.core.decoding import UndecodableError, agrees, decode
from dynamics_sync.core.incoming import Reference, UnknownForm
from dynamics_sync.core.mapping import Column, UnsendableError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
MOMENTS = st.datetimes(timezones=st.just(UTC), min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30))  # noqa: DTZ001
TYPES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9),
    "double precision": st.floats(allow_nan=False, allow_infinity=False),
    "uuid": st.uuids(),
    "date": st.dates(),
    "timestamp with time zone": MOMENTS,
    "timestamp without time zone": MOMENTS.map(lambda at: at.replace(tzinfo=None)),
    "text": TEXTS,
}
CHOICES = {"open": 7, "closed": 8}


@pytest.mark.parametrize("type_name", TYPES)
@given(st.data())
def test_what_was_written_comes_back(type_name: str, data: st.DataObject) -> None:
    value = data.draw(st.none() | TYPES[type_name])
    column = Column(to="a")
    try:
        sent = column.encode("c", value)
    except UnsendableError:
        assume(False)
    assert decode("c", column, type_name, sent) == value
    assert agrees("c", column, value, decode("c", column, type_name, sent))


@given(st.sampled_from(sorted(CHOICES)))
def test_a_choice_comes_back(text: str) -> None:
    column = Column(to="a", choices=CHOICES)
    assert decode("c", column, "text", column.encode("c", text)) == text


@given(st.uuids())
def test_a_lookup_by_id_comes_back(record_id: UUID) -> None:
    column = Column.model_validate({"to": "a", "lookup": {"entity_set": "teams"}})
    assert decode("c", column, "uuid", Reference(str(record_id))) == record_id
    assert decode("c", column, "uuid", str(record_id)) == record_id


@given(st.dates(date(1, 1, 3), date(9999, 12, 29)), st.sampled_from(["UTC", "Europe/Oslo", "Pacific/Auckland"]))
def test_a_day_that_was_a_point_in_time_is_told_to_be_the_same_day(day: date, zone: str) -> None:
    column = Column.model_validate({"to": "a", "kind": "date", "time_zone": zone})
    for type_name in ("timestamp with time zone", "timestamp without time zone"):
        back = decode("c", column, type_name, day.isoformat())
        assert column.encode("c", back) == day.isoformat()
    assert decode("c", column, "date", day.isoformat()) == day


@pytest.mark.parametrize(
    ("declared", "type_name", "value", "decoded"),
    [
        ({}, "integer", Decimal("5.0000"), 5),
        ({}, "numeric", 5, Decimal(5)),
        ({}, "numeric", 0.1, Decimal("0.1")),
        ({}, "real", Decimal("0.5"), 0.5),
        ({}, "public.mood", "good", "good"),
        ({}, "text", "/Date(0)/", "/Date(0)/"),
        ({"kind": "date"}, "date", "/Date(1830038400000)/", date(2027, 12, 29)),
        ({"kind": "date"}, "date", "2027-12-29T00:00:00Z", date(2027, 12, 29)),
        ({"kind": "date", "time_zone": "Europe/Oslo"}, "date", "2027-12-28T23:00:00Z", date(2027, 12, 29)),
        ({"kind": "datetime"}, "timestamp with time zone", "/Date(0+0200)/", datetime(1970, 1, 1, tzinfo=UTC)),
        ({"choices": {"true": 1, "false": 2}}, "boolean", 2, "false"),
    ],
)
def test_a_value_from_dynamics(declared: Any, type_name: str, value: object, decoded: object) -> None:
    assert decode("c", Column.model_validate({"to": "a", **declared}), type_name, value) == decoded


@pytest.mark.parametrize(
    ("declared", "type_name", "value", "code"),
    [
        ({"choices": CHOICES}, "text", 9, "inbox.unknown_choice"),
        ({"choices": {"x": 1}}, "text", True, "inbox.unknown_choice"),
        ({"lookup": {"entity_set": "teams"}}, "uuid", "7", "inbox.wrong_type"),
        ({"lookup": {"entity_set": "teams", "alternate_key": "k"}}, "text", Reference("7"), "inbox.lookup_by_key"),
        ({}, "boolean", 1, "inbox.wrong_type"),
        ({}, "integer", True, "inbox.wrong_type"),
        ({}, "integer", Decimal("5.5"), "inbox.wrong_type"),
        ({}, "numeric", "5", "inbox.wrong_type"),
        ({}, "uuid", "5", "inbox.wrong_type"),
        ({}, "text", "a\0b", "inbox.wrong_type"),
        ({}, "text", "\ud800", "inbox.wrong_type"),
        ({}, "text", UnknownForm(), "inbox.wrong_type"),
        ({}, "date", "soon", "inbox.wrong_type"),
    ],
)
def test_a_value_without_a_form_here_is_named_by_its_column(
    declared: Any, type_name: str, value: object, code: str
) -> None:
    with pytest.raises(UndecodableError) as caught:
        decode("c", Column.model_validate({"to": "a", **declared}), type_name, value)
    assert (caught.value.code, caught.value.name) == (code, "c")


NUMBERS = st.integers() | st.decimals() | st.floats() | st.just(Decimal("1e999999999"))
ANY = st.none() | st.booleans() | NUMBERS | st.text() | st.just(UnknownForm())


@given(st.sampled_from([*TYPES, "public.mood"]), ANY)
def test_a_value_of_any_form_is_decoded_or_named(type_name: str, value: object) -> None:
    for declared in ({}, {"kind": "date"}, {"choices": CHOICES}):
        with contextlib.suppress(UndecodableError):
            decode("c", Column.model_validate({"to": "a", **declared}), type_name, value)


def test_dynamics_keeps_whole_seconds_and_takes_an_empty_text_for_none() -> None:
    at = datetime(2026, 1, 1, 12, 0, 0, 999_000, tzinfo=UTC)
    assert agrees("c", Column(to="a"), at, at.replace(microsecond=0))
    assert agrees("c", Column(to="a"), at, at.astimezone(timezone(timedelta(hours=2))))
    assert not agrees("c", Column(to="a"), at, at + timedelta(seconds=1))
    assert agrees("c", Column(to="a"), "", None)
    assert not agrees("c", Column(to="a"), "", "x")
    assert not agrees("c", Column(to="a"), 0, None)
    assert not agrees("c", Column(to="a", choices=CHOICES), "unsendable", "open")
