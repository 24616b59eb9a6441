"""The comparison: what is sent and stored reads back as equal, and whatever changes is seen."""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dynamics_sync.core.comparison import GONE, Agreement, Comparison, Finding, FindingKind, Reference
from dynamics_sync.core.mapping import DeleteRule, TableMapping, UnsendableError
from dynamics_sync.simulator.attributes import attributes, check_state
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import AlternateKey, Column, ColumnKind, Table

CHOICES = {"open": 7, "closed": 8}
TABLE = TableMapping.model_validate(
    {
        "source": "public.people",
        "key": "id",
        "entity_set": "new_people",
        "logical_name": "new_person",
        "alternate_key": "new_key",
        "columns": {
            "name": "new_name",
            "points": "new_points",
            "share": "new_share",
            "ratio": "new_ratio",
            "public": "new_public",
            "token": "new_token",
            "day": "new_day",
            "born": {"to": "new_born", "kind": "date"},
            "met": {"to": "new_met", "kind": "date", "time_zone": "Europe/Oslo"},
            "called": {"to": "new_called", "kind": "datetime"},
            "state": {"to": "new_state", "choices": CHOICES},
            "team": {"to": "new_Team", "lookup": {"entity_set": "teams"}},
            "chapter": {"to": "new_Chapter", "lookup": {"entity_set": "chapters", "alternate_key": "code"}},
        },
    }
)
LOOKUPS = {"new_Team": "_new_team_value", "new_Chapter": "_new_chapter_value"}
COMPARISON = Comparison(TABLE, LOOKUPS)

REFERRED = Table("chapter", "chapters", "chapterid", (Column("code"),), (AlternateKey("code", ("code",)),))
TEAMS = Table("team", "teams", "teamid", (Column("name"),))
SIMULATED = Table(
    "new_person",
    "new_people",
    "new_personid",
    (
        Column("new_key"),
        Column("new_name"),
        Column("new_points", ColumnKind.INTEGER),
        Column("new_share", ColumnKind.DECIMAL),
        Column("new_ratio", ColumnKind.DECIMAL),
        Column("new_public", ColumnKind.BOOLEAN),
        Column("new_token", ColumnKind.GUID),
        Column("new_day", ColumnKind.DATE),
        Column("new_born", ColumnKind.DATE),
        Column("new_met", ColumnKind.DATE),
        Column("new_called", ColumnKind.DATETIME),
        Column("new_state", ColumnKind.CHOICE, options=tuple(CHOICES.values())),
        Column("new_team", ColumnKind.LOOKUP, navigation_property="new_Team", lookup_target="teams"),
        Column("new_chapter", ColumnKind.LOOKUP, navigation_property="new_Chapter", lookup_target="chapters"),
    ),
    (AlternateKey("new_key", ("new_key",)),),
)

KNOWN_TEAMS = [UUID(int=number) for number in (1, 2, 3)]
KNOWN_CHAPTERS = {"oslo": UUID(int=4), "O'Brien": UUID(int=5), "bergen": UUID(int=6)}
IDS = {Reference("chapters", "code", code): str(chapter) for code, chapter in KNOWN_CHAPTERS.items()}

ZONES = (timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-9)))
days = st.dates(date(1753, 1, 1), date(9998, 12, 31))
moments = st.datetimes(
    datetime(1753, 1, 2),  # noqa: DTZ001 - some have no zone
    datetime(9998, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from([None, UTC, *ZONES]),  # type: ignore[arg-type]
)
values = {
    "name": st.text(max_size=40),
    "points": st.integers(-(2**31), 2**31 - 1),
    "share": st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "public": st.booleans(),
    "token": st.uuids(),
    "day": days,
    "born": days,
    "met": st.one_of(days, moments),
    "called": moments,
    "state": st.sampled_from(list(CHOICES)),
    "team": st.one_of(st.sampled_from(KNOWN_TEAMS), st.sampled_from([str(team).upper() for team in KNOWN_TEAMS])),
    "chapter": st.sampled_from(list(KNOWN_CHAPTERS)),
}
rows = st.fixed_dictionaries({name: st.one_of(st.none(), strategy) for name, strategy in values.items()})
Row = Mapping[str, Any]


def stored(row: Row) -> dict[str, Any]:
    """What Dynamics holds after the row was sent, as an answer has it; with null for an empty text."""
    store = Store((SIMULATED, REFERRED, TEAMS), now=lambda: 0.0)
    for team in KNOWN_TEAMS:
        store.create(TEAMS, {}, str(team))
    for code, chapter in KNOWN_CHAPTERS.items():
        store.create(REFERRED, {"code": code}, str(chapter))
    body = json.loads(json.dumps(TABLE.body(row)))
    record = store.create(SIMULATED, check_state(SIMULATED, attributes(store, SIMULATED, body), {}))
    return {name: None if value == "" else value for name, value in json.loads(json.dumps(record.attributes)).items()}


@given(rows)
def test_what_is_sent_and_stored_reads_back_as_equal(row: Row) -> None:
    held = stored(row)
    assert isinstance(COMPARISON.compare("1", row, held, IDS), Agreement)
    assert set(COMPARISON.properties) <= set(held)


@given(rows, st.sampled_from(sorted(values)), st.data())
def test_a_change_of_one_column_is_seen_in_its_attribute(row: Row, name: str, data: st.DataObject) -> None:
    held = stored(row)
    changed = {**row, name: data.draw(st.one_of(st.none(), values[name]))}
    attribute = TABLE.columns[name].to
    assume(stored(changed)[LOOKUPS.get(attribute, attribute)] != held[LOOKUPS.get(attribute, attribute)])
    assert COMPARISON.compare("1", changed, held, IDS) == Finding("1", FindingKind.DIFFERENT, (attribute,))
    assert COMPARISON.fingerprint("1", changed) != COMPARISON.fingerprint("1", row)


@pytest.mark.parametrize("attribute", [*COMPARISON.properties])
def test_each_attribute_counts(attribute: str) -> None:
    row = {
        **{"name": "Kari", "points": 3, "share": Decimal("1.5"), "ratio": 0.1, "public": True, "token": UUID(int=9)},
        **{"day": date(2026, 2, 28), "born": date(1980, 12, 31), "met": date(2026, 6, 30), "state": "open"},
        **{"called": datetime(2026, 7, 1, 2, 0, tzinfo=UTC), "team": KNOWN_TEAMS[0], "chapter": "oslo"},
    }
    held = stored(row)
    assert isinstance(COMPARISON.compare("1", row, held, IDS), Agreement)
    names = {prop: name for name, prop in LOOKUPS.items()}
    for other in (None, "something else", 12345, "2026-01-01", "2026-01-01T00:00:00Z"):
        verdict = COMPARISON.compare("1", row, held | {attribute: other}, IDS)
        assert verdict == Finding("1", FindingKind.DIFFERENT, (names.get(attribute, attribute),))
    absent = {name: value for name, value in held.items() if name != attribute}
    assert isinstance(COMPARISON.compare("1", row, absent, IDS), Finding)


@pytest.mark.parametrize(
    ("name", "value", "held", "same"),
    [
        ("share", Decimal("5000000"), json.loads("5000000.0000"), True),
        ("share", Decimal("0.1"), 0.1000, True),
        ("share", Decimal("0.1"), 0.1001, False),
        ("share", Decimal(1), True, False),
        ("points", 1, "1", False),
        ("public", True, 1, False),
        ("public", False, None, False),
        ("name", "", None, True),
        ("name", None, "", True),
        ("name", "a", "A", False),
        ("name", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", False),
        ("token", UUID(int=10), str(UUID(int=10)).upper(), True),
        ("token", UUID(int=10), str(UUID(int=11)), False),
        ("called", datetime(2026, 1, 1, 12, 0, 0, 999_999, UTC), "2026-01-01T12:00:00Z", True),
        ("called", datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC), "2026-01-01T14:00:00+02:00", True),
        ("called", datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC), "2026-01-01T12:00:01Z", False),
        ("called", datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC), 1767268800, False),
        ("born", date(2026, 1, 1), "2026-01-01T00:00:00Z", True),
        ("born", date(2026, 1, 1), "2026-01-01T01:00:00Z", False),
        ("born", date(2026, 1, 1), "2026-01-02", False),
        ("met", datetime(2026, 6, 30, 22, 30, tzinfo=UTC), "2026-07-01", True),
        ("state", "open", 7, True),
        ("state", "open", 8, False),
        ("state", "unknown", 7, False),
        ("team", KNOWN_TEAMS[0], str(KNOWN_TEAMS[0]), True),
        ("team", KNOWN_TEAMS[0], None, False),
        ("team", "no id", str(KNOWN_TEAMS[0]), False),
        ("chapter", "oslo", "00000000-0000-0000-0000-00000000000A", True),
        ("chapter", "oslo", "00000000-0000-0000-0000-00000000000b", False),
        ("chapter", "not there", "00000000-0000-0000-0000-00000000000a", False),
        ("chapter", "not there", None, False),
    ],
)
def test_what_counts_as_equal(name: str, value: object, held: object, same: bool) -> None:
    ids = {Reference("chapters", "code", "oslo"): "00000000-0000-0000-0000-00000000000a"}
    column = TABLE.columns[name]
    only = Comparison(TABLE.model_copy(update={"columns": {name: column}}), LOOKUPS)
    attribute = LOOKUPS.get(column.to, column.to)
    verdict = only.compare("1", {name: value}, {attribute: held, "statecode": 0, "statuscode": 1}, ids)
    assert isinstance(verdict, Agreement) is same


@pytest.mark.parametrize(
    ("rule", "held", "kind"),
    [
        ("deactivate", None, None),
        ("deactivate", {"statecode": 1, "statuscode": 2}, None),
        ("deactivate", {"statecode": 0, "statuscode": 1}, FindingKind.EXTRA),
        ("deactivate", {"statecode": 1, "statuscode": 3}, FindingKind.EXTRA),
        ("delete", None, None),
        ("delete", {"statecode": 1, "statuscode": 2}, FindingKind.EXTRA),
        ("ignore", {"statecode": 0, "statuscode": 1}, None),
        ("ignore", None, None),
    ],
)
def test_what_a_record_without_a_row_may_be(rule: str, held: Row | None, kind: FindingKind | None) -> None:
    comparison = Comparison(TABLE.model_copy(update={"on_delete": DeleteRule(rule)}), LOOKUPS)
    verdict = comparison.compare("1", None, held, {})
    assert (verdict.kind if isinstance(verdict, Finding) else None) is kind
    assert kind or verdict == Agreement(GONE)


def test_a_row_without_a_record_is_missing_whatever_it_holds() -> None:
    missing = Finding("1", FindingKind.MISSING)
    assert COMPARISON.compare("1", dict.fromkeys(values), None, {}) == missing
    assert COMPARISON.compare("1", UnsendableError("database.unreadable_value", "public.people"), None, {}) == missing


def test_a_row_that_cannot_be_read_never_agrees() -> None:
    unreadable = UnsendableError("database.unreadable_value", "public.people")
    assert COMPARISON.compare("1", unreadable, {}, {}) == Finding("1", FindingKind.DIFFERENT)
    assert COMPARISON.fingerprint("1", unreadable) is None


def test_two_records_that_hold_the_same_have_different_fingerprints() -> None:
    row = dict.fromkeys(values)
    assert COMPARISON.fingerprint("1", row) != COMPARISON.fingerprint("2", row)
