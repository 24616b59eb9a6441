"""`RemoteExecutionContext`, after the samples of Microsoft's pages, and whatever else may come."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics_sync.core.incoming import Message, Reference, UnknownForm, moment
from dynamics_sync.dynamics.webhooks.delivery import SIZE_EXCEEDED, delivery_from
from dynamics_sync.dynamics.webhooks.remote_execution_context_v1 import read
from support.webhooks import CONTRACTS, SOMEBODY, Event, option

RECORD = "6d81597f-0f9f-4711-8122-000d3aa2331c"
AT = datetime(2026, 11, 25, 8, 30, tzinfo=UTC)


def reference(record_id: str) -> dict[str, Any]:
    return {"__type": f"EntityReference:{CONTRACTS}", "Id": record_id, "LogicalName": "systemuser", "Name": None}


def test_an_update_as_microsoft_shows_it() -> None:
    attributes = {
        "FirstName": "James",
        "modifiedon": "/Date(1506384247000)/",
        "statecode": option(0),
        "revenue": {"__type": f"Money:{CONTRACTS}", "Value": 2154.32},
        "ownerid": reference(RECORD.upper()),
        "multichoice": [option(1), option(2)],
        "modifiedonbehalfby": None,
        "exact": 12345678901234567890,
        "flag": True,
        "something": {"__type": "AliasedValue:…", "Value": 1},
        "nothing": [],
        "mixed": [option(1), 2],
    }
    change = read({}, Event(attributes, record_id=RECORD, at=AT).body())
    assert change is not None
    assert (change.message, change.entity, change.record_id) == (Message.UPDATE, "hlf_certification", RECORD)
    assert (change.at, change.caused_by) == (datetime(2017, 9, 26, 0, 4, 7, tzinfo=UTC), SOMEBODY)
    assert change.attributes == {
        "firstname": "James",
        "modifiedon": "/Date(1506384247000)/",
        "statecode": 0,
        "revenue": Decimal("2154.32"),
        "ownerid": Reference(RECORD),
        "multichoice": "1,2",
        "modifiedonbehalfby": None,
        "exact": 12345678901234567890,
        "flag": True,
        "something": UnknownForm(),
        "nothing": UnknownForm(),
        "mixed": UnknownForm(),
    }
    assert "James" not in repr(change)


def test_slashes_may_be_escaped_or_not() -> None:
    event = Event({"statecode": option(0)}, at=AT)
    assert read({}, event.body()) == read({}, json.dumps(event.document()).encode())


def test_the_image_after_the_change_has_the_last_word_and_tells_the_key() -> None:
    image = {"hlf_status": option(2), "hlf_externalid": "K-1", "hlf_other": "x"}
    before = {"hlf_status": option(7)}
    change = read({}, Event({"hlf_status": option(1), "hlf_name": None}, image=image, before=before, at=AT).body())
    assert change is not None
    assert change.attributes == {"hlf_status": 2, "hlf_name": None}, "what did not change is not among it"
    assert change.key("hlf_ExternalId") == "K-1"
    assert change.before == {"hlf_status": 7}
    assert change.at == AT


def test_a_deletion_tells_the_record_alone() -> None:
    change = read({}, Event(message="Delete", before={"hlf_externalid": "K-1"}).body())
    assert change is not None
    assert (change.message, change.attributes, change.key("hlf_externalid")) == (Message.DELETE, None, "K-1")


def test_what_was_left_out_is_missing_only_where_dataverse_says_so() -> None:
    document = Event().document()
    for part in ("InputParameters", "PreEntityImages", "PostEntityImages", "ParentContext"):
        del document[part]
    body = json.dumps(document).encode()
    assert read({}, body) is None
    change = read({SIZE_EXCEEDED: "true"}, body)
    assert change is not None
    assert change.attributes is None


@pytest.mark.parametrize(
    "changes",
    [
        {"MessageName": "Merge"},
        {"MessageName": ["Update"]},
        {"PrimaryEntityName": None},
        {"PrimaryEntityId": "7"},
        {"PrimaryEntityId": "00000000-0000-0000-0000-000000000000"},
        {"OperationCreatedOn": 7},
        {"OperationCreatedOn": "/Date(999999999999999)/"},
        {"InputParameters": {}},
        {"InputParameters": [1, {"key": 1}, {"key": "Target", "value": {"Attributes": {}}}]},
    ],
)
def test_another_form_is_not_understood(changes: dict[str, Any]) -> None:
    assert read({}, json.dumps(Event().document() | changes).encode()) is None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("/Date(1506409448000-0700)/", datetime(2017, 9, 26, 7, 4, 8, tzinfo=UTC)),
        ("/Date(1608007658000+0000)/", datetime(2020, 12, 15, 4, 47, 38, tzinfo=UTC)),
        ("/Date(-1000)/", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2026-11-25T08:30:00Z", AT),
        ("2026-11-25T09:30:00+01:00", AT),
        ("2026-11-25", datetime(2026, 11, 25, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("/Date()/", None),
        (1506384247000, None),
    ],
)
def test_a_point_in_time(text: object, at: datetime | None) -> None:
    assert moment(text) == at


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(sorted(Event(image={"a": 1}, before={"b": 1}).document()))


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()), st.dictionaries(st.text(), st.text()))
def test_whatever_comes_is_described_and_read_without_an_error(body: bytes, headers: dict[str, str]) -> None:
    assert delivery_from(headers, body).body == body
    read(headers, body)


@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_a_context_with_parts_of_any_form_is_read_without_an_error(changes: dict[str, Any]) -> None:
    body = json.dumps(Event({"a": option(1)}).document() | changes).encode()
    delivery = delivery_from({}, body)
    for text in (delivery.entity_name, delivery.message, delivery.record_id, delivery.correlation_id):
        assert text is None or text.isprintable()
    read({}, body)


@given(JSON)
def test_an_attribute_of_any_form_is_read_without_an_error(value: object) -> None:
    change = read({}, json.dumps(Event({"a": value}).document()).encode())
    assert change is None or change.attributes is not None


def test_deliveries_are_told_apart_by_what_makes_them_different() -> None:
    event = Event(record_id=RECORD, at=AT)
    document = event.document()
    other_step = document | {"OwningExtension": {"Id": SOMEBODY}}
    retried = document | {"CorrelationId": SOMEBODY}
    synchronous = document | {"OperationId": "00000000-0000-0000-0000-000000000000"}
    of_request = document | {"Mode": 0}

    def identity(document: dict[str, Any], **headers: str) -> str:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return delivery_from(given, json.dumps(document).encode()).delivery_id

    assert identity(document) == identity(retried) == identity(document, x_request_id="7")
    assert identity(synchronous, x_request_id="7") == identity(synchronous, x_request_id="7")
    different = [
        identity(document),
        identity(other_step),
        identity(event.but(record_id=SOMEBODY).document()),
        identity(event.but(message="Create").document()),
        identity(event.but(at=datetime(2026, 1, 1, tzinfo=UTC)).document()),
        identity(synchronous),
        identity(synchronous, x_request_id="7"),
        identity(synchronous, x_request_id="8"),
        identity(synchronous | {"Depth": 2}, x_request_id="7"),
        identity(of_request),
        identity(of_request | {"Depth": 2}),
    ]
    assert len(set(different)) == len(different)


def test_only_known_headers_are_kept_and_none_of_any_length() -> None:
    delivery = delivery_from({"x-request-id": "a\x00b" * 200, "authorization": "x"}, b"")
    assert delivery.headers == {"x-request-id": ("a?b" * 200)[:200]}
