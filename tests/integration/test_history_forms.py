"""Python and the database read every history alike, and neither drops an entry (R22)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from dynamics_sync.certifications.history import Renewal, Unread, problem_of, read_history
from support.histories import first_form, second_form
from support.postgres import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

CERTIFICATION = UUID("5a9ed5f0-2f6c-4fd4-8a3e-0b1c5a5e7f11")

READ = "select at_position, entry, problem from dynamics_certifications.read_history(%s, %s) order by at_position"

IDS = ("0e3b2c51-93b4-4d6f-9c43-1f0c3f8f2a10", "5b6f5a86-1d0e-4a53-8a3f-b7f1d6f0a001")

DAYS = (
    *("2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "2024-04-30", "2024-04-31", "2024-12-31", "0001-01-01"),
    *("9999-12-31", "0000-01-01", "2024-13-01", "2024-00-01", "2024-01-00", "2024-2-29", "20240229", "2024-W01-1"),
    *("infinity", "2024-01-01 ", "2024-01-01\n", "٢٠٢٤-01-01", "24-01-01", "", "null"),
)
TIMES = (
    *("2024-02-29T23:59:59.999999Z", "2023-02-29T00:00:00.000000Z", "2024-01-01T24:00:00.000000Z"),
    *("2024-01-01T00:60:00.000000Z", "2024-01-01T00:00:60.000000Z", "2024-01-01T00:00:00Z", "2024-01-01"),
    *("2024-01-01T00:00:00.000000+01:00", "2024-01-01 00:00:00.000000Z", "2024-01-01T00:00:00.000000Z\n"),
)
UUIDS = (*IDS, IDS[0].upper(), f"{{{IDS[0]}}}", IDS[0] + "\n", IDS[0].replace("-", ""), IDS[0][:-1] + "g", "")
EVENTS = ("issued", "renewed", "revoked", "reinstated", "expired", "Renewed", "lapsed", "renewed ", "")
VERSIONS = (-1, 0, 1, 2, 3, 1.0, 2.0, 2.5, "1", "2", 10**8, 10**9, 10**30, None, True)
ODD: dict[str, Sequence[object]] = {
    "schema_version": VERSIONS,
    "renewed_on": DAYS,
    "on": DAYS,
    "expires_on": (*DAYS, None),
    "recorded_at": (*TIMES, None),
    "id": UUIDS,
    "recorded_by": (*UUIDS, None),
    "event": EVENTS,
}

days = st.dates().map(str) | st.sampled_from(DAYS)
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**10), 10**10),
    st.sampled_from([1.0, 2.5, "1", 20240101, *DAYS]),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=4),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(st.sampled_from(["schema_version", "a"]), st.integers(1, 2), max_size=1),
)


@st.composite
def entries(draw: st.DrawFn) -> object:
    """Well-formed ones, with another value, a key more or a key less here and there; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(anything)
    forms = [first_form(1), first_form(2, schema_version=1), second_form(1), second_form(2, id=IDS[0])]
    entry = dict(draw(st.sampled_from(forms)))
    for key in draw(st.lists(st.sampled_from([*entry, "schema_version", "note"]), max_size=2)):
        match draw(st.integers(0, 9)):
            case 0:
                entry.pop(key, None)
            case 1:
                entry[key] = draw(anything)
            case _:
                entry[key] = draw(st.sampled_from(ODD[key]) | days if key in ODD else anything)
    return entry


@pytest.fixture(scope="module")
def reader(clusters: dict[str, Cluster]) -> Iterator[Connection]:
    with clusters["pg18"].database() as url, psycopg.connect(url, autocommit=True) as connection:
        yield connection


def as_sql_says(entry: Renewal | Unread, position: int) -> tuple[int, object, str | None]:
    match entry:
        case Renewal():
            return position, entry.as_json(), None
        case Unread():
            return entry.position, entry.entry, entry.problem


def alike(reader: Connection, history: object) -> None:
    history = json.loads(json.dumps(history))
    in_python = [as_sql_says(entry, at) for at, entry in enumerate(read_history(CERTIFICATION, history), 1)]
    assert in_python == reader.execute(READ, [CERTIFICATION, Jsonb(history)]).fetchall()
    assert len(in_python) == (len(history) if isinstance(history, list) else 1)


def test_python_and_the_database_say_the_same_of_every_odd_value(reader: Connection) -> None:
    for form in first_form(1), first_form(1, schema_version=1), second_form(1):
        for key, values in ODD.items():
            alike(reader, [form | {key: value} for value in values])
            alike(reader, [{name: value for name, value in form.items() if name != key}])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.one_of(st.lists(entries(), max_size=6), anything))
def test_python_and_the_database_read_every_history_alike(reader: Connection, history: object) -> None:
    alike(reader, history)


@pytest.mark.parametrize("key", [*second_form(1), "Kari Nordmann"])
def test_what_is_said_of_an_entry_quotes_nothing_of_it(key: str) -> None:
    said = problem_of(second_form(1) | {key: "Kari Nordmann"})
    assert said is not None
    assert "Kari" not in said


def test_each_form_becomes_the_current_one_with_the_same_id_each_time() -> None:
    history = [first_form(1), first_form(2, schema_version=1), second_form(3)]
    read = read_history(CERTIFICATION, history)
    assert read == read_history(CERTIFICATION, history)
    assert [entry.on.year for entry in read if isinstance(entry, Renewal)] == [2001, 2001, 2011]
    assert [entry.id.version for entry in read[:2] if isinstance(entry, Renewal)] == [8, 8]
    assert len({entry.id for entry in read if isinstance(entry, Renewal)}) == 3


def test_the_same_entry_has_another_id_in_another_certification() -> None:
    (one,), (other,) = (read_history(uuid4(), [first_form(1)]) for _ in range(2))
    assert isinstance(one, Renewal)
    assert isinstance(other, Renewal)
    assert one.id != other.id


def test_an_entry_of_a_later_version_is_given_as_it_is_and_told() -> None:
    later = {"schema_version": 3, "what": {"nobody": "knows"}}
    read = read_history(CERTIFICATION, [later, first_form(1)])
    assert read[0] == Unread(1, later, "its schema_version is later than the latest that is known, 2")
    assert isinstance(read[1], Renewal)
