"""Outcomes, mapping, redaction, explanations."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from dynamics_sync.app import read_mapping
from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.mapping import Mapping, TableMapping, UnsendableError, parse_mapping
from dynamics_sync.core.operation import FailureReason, QueueStatus, SyncOperation
from dynamics_sync.core.outcome import (
    Accepted,
    Answer,
    Conflict,
    Mismatch,
    Rejected,
    Throttled,
    Transient,
    Unauthorized,
    classify_removal,
    classify_write,
)
from dynamics_sync.core.redaction import error_code, loggable
from dynamics_sync.sandbox import simulator_tables

DATAVERSE = {"is_known_error": True}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(204, etag='W/"1"'), Accepted('W/"1"')),
        (Answer(200), Mismatch()),
        (Answer(302), Mismatch()),
        (Answer(503), Transient("http_503")),
        (Answer(501), Transient("http_501")),
        (Answer(503, retry_after_seconds=30), Transient("http_503", 30)),
        (Answer(500, "0x80044150"), Transient("0x80044150")),
        (Answer(429, retry_after_seconds=7), Throttled("http_429", 7)),
        (Answer(408), Throttled("http_408", 5)),
        (Answer(401), Unauthorized("http_401")),
        (Answer(412, "0x80060892", True), Conflict("0x80060892")),
        (Answer(400, "0x80048d19", True), Rejected("0x80048d19")),
        (Answer(404), Mismatch()),
        (Answer(99), Mismatch()),
    ],
)
def test_what_an_answer_means(answer: Answer, outcome: object) -> None:
    assert classify_write(answer) == outcome


def test_a_record_that_is_gone_need_not_be_removed() -> None:
    assert classify_removal(Answer(404, "0x80060891", True)) == Accepted()
    assert classify_removal(Answer(404, "0x8006088a", True)) == Rejected("0x8006088a")


def mapping(**changes: Any) -> Mapping:
    table = {
        "source": "public.people",
        "key": "id",
        "entity_set": "contacts",
        "logical_name": "contact",
        "alternate_key": "ext",
        "columns": {"name": "fullname"},
    }
    return parse_mapping({"tables": [table | changes]}, "test.toml")


def people(**columns: Any) -> TableMapping:
    return mapping(on_delete="ignore", columns=columns).tables[0]


@pytest.mark.parametrize(
    ("declared", "value", "written"),
    [
        ("a", "x", {"a": "x"}),
        ("a", None, {"a": None}),
        ("a", True, {"a": True}),
        ("a", Decimal("1.5"), {"a": 1.5}),
        ("a", UUID(int=1), {"a": "00000000-0000-0000-0000-000000000001"}),
        ("a", date(2026, 1, 2), {"a": "2026-01-02"}),
        ("a", datetime(2026, 1, 2, 3, tzinfo=UTC), {"a": "2026-01-02T03:00:00Z"}),
        ("a", datetime(2026, 1, 2, 3), {"a": "2026-01-02T03:00:00Z"}),  # noqa: DTZ001
        ({"to": "a", "kind": "date"}, date(2026, 1, 2), {"a": "2026-01-02"}),
        (
            {"to": "a", "kind": "date", "time_zone": "Europe/Oslo"},
            datetime(2026, 1, 1, 23, 30, tzinfo=UTC),
            {"a": "2026-01-02"},
        ),
        (
            {"to": "a", "kind": "date", "time_zone": "Europe/Oslo"},
            datetime(2026, 1, 1, 23, 30),  # noqa: DTZ001
            {"a": "2026-01-02"},
        ),
        ({"to": "a", "choices": {"x": 5}}, "x", {"a": 5}),
        ({"to": "a", "choices": {"x": 5}}, None, {"a": None}),
        ({"to": "a", "choices": {"true": 5, "false": 6}}, False, {"a": 6}),
        ({"to": "N", "lookup": {"entity_set": "teams"}}, str(UUID(int=7)), {"N@odata.bind": f"/teams({UUID(int=7)})"}),
        ({"to": "N", "lookup": {"entity_set": "teams"}}, None, {"N@odata.bind": None}),
        (
            {"to": "N", "lookup": {"entity_set": "teams", "alternate_key": "k"}},
            "O'B",
            {"N@odata.bind": "/teams(k='O%27%27B')"},
        ),
    ],
)
def test_a_value_in_dynamics_terms(declared: Any, value: object, written: dict[str, object]) -> None:
    assert people(c=declared).body({"c": value}) == written


@pytest.mark.parametrize(
    ("declared", "value", "code"),
    [
        ({"to": "a", "choices": {"x": 5}}, "y", "mapping.unknown_choice"),
        ({"to": "a", "kind": "date"}, "2026", "mapping.wrong_type"),
        ({"to": "a", "kind": "datetime"}, date(2026, 1, 1), "mapping.wrong_type"),
        ("a", float("nan"), "mapping.wrong_type"),
        ("a", Decimal("NaN"), "mapping.wrong_type"),
        ("a", Decimal("0.12345678901234567890"), "mapping.too_precise"),
        ({"to": "N", "lookup": {"entity_set": "teams"}}, "7)/x", "mapping.wrong_type"),
        ("a", b"x", "mapping.wrong_type"),
        ({"to": "N", "lookup": {"entity_set": "t", "alternate_key": "k"}}, "a/b", "mapping.forbidden_key"),
    ],
)
def test_what_has_no_form_in_dynamics(declared: Any, value: object, code: str) -> None:
    with pytest.raises(UnsendableError) as caught:
        people(c=declared).body({"c": value})
    assert (caught.value.code, caught.value.name) == (code, "c")


@pytest.mark.parametrize("character", "/<>*%&:\\?+")
def test_a_key_that_dataverse_cannot_take(character: str) -> None:
    with pytest.raises(UnsendableError):
        people(c="a").address(f"x{character}y")


def test_a_table_that_deactivates_says_that_a_record_is_active() -> None:
    assert mapping().tables[0].body({"name": "x"}) == {"statecode": 0, "statuscode": 1, "fullname": "x"}
    assert mapping().tables[0].address("O'B x") == "contacts(ext='O%27%27B%20x')"
    assert mapping().table("public.other") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": {"a": "x", "b": "X"}}, "column 'b' is mapped to 'X', which column 'a' already writes"),
        ({"columns": {"a": "ext"}}, "alternate key"),
        ({"columns": {"a": "statecode"}}, "rule for deletions"),
        ({"inactive": {"archived": True}}, "active and inactive must write the same attributes"),
        ({"columns": {}}, "at least 1"),
        ({"columns": {"a": {"to": "x", "kind": "date", "choices": {}}}}, "exclude one another"),
        ({"columns": {"a": {"to": "x", "time_zone": "Mars"}}}, "no time zone"),
        ({"source": "people"}, "tables.0.source"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_mapping_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MappingError) as caught:
        mapping(**changes)
    assert words in str(caught.value)
    assert "test.toml" in str(caught.value)


def test_a_table_is_mapped_once() -> None:
    table = mapping().tables[0].model_dump()
    with pytest.raises(MappingError, match="mapped twice"):
        parse_mapping({"tables": [table, table]}, "x")


def test_the_mapping_that_ships_fits_the_simulator() -> None:
    shipped = read_mapping(None)
    (table,) = simulator_tables(shipped)
    assert table.entity_set == "hlf_certifications"
    assert {column.name for column in table.columns} == {
        "hlf_externalid",
        "hlf_status",
        "hlf_issuedon",
        "hlf_expireson",
    }


def test_only_known_fields_are_loggable() -> None:
    fields = loggable(
        {"email": "kari@example.org", "attempt_number": 1, "error_code": "x" * 300, "opened_at": date(2026, 1, 1)}
    )
    assert fields == {"attempt_number": 1, "error_code": "x" * 200, "opened_at": "2026-01-01"}
    assert loggable({"count": object()}) == {"count": "object"}


@pytest.mark.parametrize("value", ["0x80040265", "-2147204784"])
def test_a_code_of_dataverses_form_is_kept(value: str) -> None:
    assert error_code(value) == value


@pytest.mark.parametrize("value", ["Kari Nordmann", "", None, 5, "0x8004026"])
def test_anything_else_is_not(value: object) -> None:
    assert error_code(value) is None


def test_every_code_has_an_explanation() -> None:
    assert "a plug-in" in explain("0x80040265").lower()
    assert "fault of its own" in explain("http_503")
    assert "list of Dataverse error codes" in explain("0x12345678")


def test_reasons_and_statuses() -> None:
    assert FailureReason.REJECTED.queue_status is QueueStatus.REQUIRES_INVESTIGATION
    assert FailureReason.THROTTLED.queue_status is QueueStatus.PENDING_MANUAL_REPLAY
    assert QueueStatus.REPLAYING.is_open
    assert not QueueStatus.DISCARDED.is_open
    assert SyncOperation("a.b", "c").record == ("dynamics", "a.b", "c")
