"""What is asked of the Web API, and which answers are taken."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics_sync.dynamics.reading import (
    MOST_CHARACTERS,
    MOST_KEYS,
    DataverseReader,
    ForeignLinkError,
    UnexpectedAnswerError,
)
from dynamics_sync.sync.clock import SystemClock
from dynamics_sync.sync.reading import Held, Page, View

URL = "https://org.crm4.dynamics.com"
ROOT = f"{URL}/api/data/v9.2/"
VIEW = View("things", "thingid", "new_key", ("new_name", "_new_team_value"))
ROW = {"thingid": "00000000-0000-0000-0000-00000000000A", "new_key": "k", "@odata.etag": 'W/"1"', "new_name": "n"}
UNUSED: Any = None

keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=120)


@pytest.fixture(scope="module")
def reader() -> DataverseReader:
    return DataverseReader(url=URL, client=UNUSED, tokens=UNUSED, clock=SystemClock())


def asked(link: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(link).query, keep_blank_values=True).items()}


@given(st.lists(keys, max_size=300))
def test_all_keys_are_asked_for_in_questions_that_are_short_enough(wanted: list[str]) -> None:
    reader = DataverseReader(url=URL, client=UNUSED, tokens=UNUSED, clock=SystemClock())
    batches = reader.batches(wanted)
    assert [key for batch in batches for key in batch] == wanted
    for batch in batches:
        question = reader.with_keys(VIEW, batch)
        assert len(batch) <= MOST_KEYS
        assert len(question.link) < 2 * MOST_CHARACTERS
        query = asked(question.link)
        assert query["@p1"] == "'new_key'"
        assert json.loads(query["@p2"]) == batch
        assert query["$select"] == "new_key,new_name,_new_team_value"


def test_what_is_preferred(reader: DataverseReader) -> None:
    assert reader.first_page(VIEW, 10, tracked=True).prefer == "odata.track-changes,odata.maxpagesize=10"
    assert reader.first_page(VIEW, 10, tracked=False).prefer == "odata.maxpagesize=10"
    link = f"{ROOT}things?$deltatoken=9%21"
    assert reader.following(VIEW, link, 10, tracked=False).link == link


def test_a_page(reader: DataverseReader) -> None:
    deleted = {"@odata.context": f"{ROOT}$metadata#things/$deletedEntity", "id": "B" * 8, "reason": "deleted"}
    page = reader.first_page(VIEW, 10, tracked=True).parse(
        {
            "value": [ROW, ROW | {"new_key": None}, ROW | {"new_key": ""}, deleted],
            "@odata.nextLink": f"{ROOT}things?$skiptoken=%3Ccookie%20a=%222%22%20/%3E",
        }
    )
    attributes = {"new_name": "n", "_new_team_value": None}
    with_key = Held(str(ROW["thingid"]).lower(), "k", 'W/"1"', attributes)
    without = Held(with_key.id, None, 'W/"1"', attributes)
    link = f"{ROOT}things?$skiptoken=%3Ccookie%20a=%222%22%20/%3E"
    assert page == Page([with_key, without, without], ["b" * 8], link)


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example.org/api/data/v9.2/things",
        "http://org.crm4.dynamics.com/api/data/v9.2/things",
        "https://org.crm4.dynamics.com:8443/api/data/v9.2/things",
        "https://org.crm4.dynamics.com.evil.example.org/api/data/v9.2/things",
        "https://org.crm4.dynamics.com@evil.example.org/api/data/v9.2/things",
        "//evil.example.org/api/data/v9.2/things",
        "https://user@org.crm4.dynamics.com/api/data/v9.2/things",
        "https://[/",
        "things?$skiptoken=2",
    ],
)
@pytest.mark.parametrize("name", ["@odata.nextLink", "@odata.deltaLink"])
def test_a_link_to_another_host_is_not_followed(reader: DataverseReader, name: str, link: str) -> None:
    with pytest.raises(ForeignLinkError):
        reader.first_page(VIEW, 10, tracked=True).parse({"value": [], name: link})


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {},
        {"value": None},
        {"value": [1]},
        {"value": [{}]},
        {"value": [{**ROW, "thingid": 7}]},
        {"value": [{**ROW, "@odata.etag": None}]},
        {"value": [{"reason": "deleted"}]},
        {"value": [], "@odata.nextLink": 7},
    ],
)
def test_what_is_no_page_is_not_taken_for_one(reader: DataverseReader, document: Any) -> None:
    with pytest.raises(UnexpectedAnswerError):
        reader.first_page(VIEW, 10, tracked=True).parse(document)
