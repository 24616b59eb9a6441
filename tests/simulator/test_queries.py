"""Lists: selection, filters, order, paging, counts, change tracking (Microsoft: "Query data using the Web API")."""

import re
from dataclasses import replace
from urllib.parse import quote

import pytest

from .wire import ACCOUNTS, CONTACTS, ROOT, Answer, Client, StartClient

IDS = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(1, 6)]


@pytest.fixture
async def five(client: Client) -> Client:
    """Five accounts: numbers 1 to 5, the third one nameless in `accountnumber`, the fifth one closed."""
    for n, record_id in enumerate(IDS, 1):
        body = {"name": f"Shop {n}", "numberofemployees": n, "revenue": n * 1.5, "opened": f"2024-01-0{n}"}
        body |= {"accountnumber": f"A{n}", "externalguid": record_id} if n != 3 else {}
        body |= {"lastcall": f"2024-01-0{n}T12:00:00Z", "creditonhold": n > 3}
        await client("PATCH", f"accounts({record_id})", body)
    return client


def numbers(answer: Answer) -> list[int]:
    assert answer.status == 200, answer.document
    return [row["numberofemployees"] for row in answer.document["value"]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("numberofemployees eq 2", [2]),
        ("numberofemployees ne 2", [1, 3, 4, 5]),
        ("numberofemployees gt 2 and numberofemployees le 4", [3, 4]),
        ("numberofemployees lt 2 or revenue ge 7.5", [1, 5]),
        ("not (numberofemployees lt 4)", [4, 5]),
        ("numberofemployees eq 1 or numberofemployees eq 2 and creditonhold eq true", [1]),
        ("(numberofemployees eq 1 or numberofemployees eq 4) and creditonhold eq true", [4]),
        ("accountnumber eq null", [3]),
        ("accountnumber ne null and not contains(name,'5')", [1, 2, 4]),
        ("startswith(name,'shop 4')", [4]),
        ("endswith(name, '2')", [2]),
        (f"accountid eq {IDS[0]}", [1]),
        (f"externalguid eq {IDS[1].upper()}", [2]),
        ("lastcall ge 2024-01-04T14:00:00+02:00", [4, 5]),
        ("opened eq 2024-01-02", [2]),
        ("name eq 'it''s'", []),
        ("name eq 'SHOP 1'", [1]),
        ("5 eq numberofemployees", [5]),
        ("createdon gt 2020-01-01 and modifiedon gt 2020-01-01T00:00:00Z and statecode eq 0", [1, 2, 3, 4, 5]),
    ],
)
async def test_filters(five: Client, expression: str, expected: list[int]) -> None:
    assert numbers(await five("GET", f"accounts?$filter={quote(expression)}")) == expected


async def test_parameter_aliases(five: Client) -> None:
    assert numbers(await five("GET", "accounts?$filter=name%20eq%20@p&@p='Shop%202'")) == [2]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "nothing eq 1",
        "name",
        "name eq",
        "name is 'x'",
        "name eq 'x",
        "(name eq 'x'",
        "name eq 'x')",
        "name eq @p",
        "contains(name)",
        "revenue gt 'x'",
        "opened eq 2024-13-01",
        "(" * 500 + "name",
        "not " * 500 + "name eq 'x'",
    ],
)
async def test_malformed_filters(five: Client, expression: str) -> None:
    assert (await five("GET", f"accounts?$filter={quote(expression)}")).status == 400


async def test_selection_brings_the_id_and_the_etag_along(five: Client) -> None:
    rows = (await five("GET", "accounts?$select=name,revenue&$top=1")).document["value"]
    assert [set(row) for row in rows] == [{"@odata.etag", "name", "revenue", "accountid"}]
    unknown = await five("GET", "accounts?$select=Name")
    assert unknown.status == 400
    assert unknown.message == "Could not find a property named 'Name' on type 'Microsoft.Dynamics.CRM.account'."


async def test_order(five: Client) -> None:
    assert numbers(await five("GET", "accounts?$orderby=numberofemployees desc")) == [5, 4, 3, 2, 1]
    assert numbers(await five("GET", "accounts?$orderby=creditonhold desc,name asc&$top=3")) == [4, 5, 1]
    assert (await five("GET", "accounts?$orderby=nothing")).status == 400


async def test_paging_follows_the_next_link(five: Client) -> None:
    pages = []
    address = f"{five.url}{ROOT}/accounts?$select=numberofemployees&$filter=numberofemployees gt 0&$count=true"
    headers = {"Prefer": "odata.maxpagesize=2", "Authorization": f"Bearer {five.token}"}
    while address:
        answer = await five.send_anything("GET", address, headers=headers)
        assert answer.headers["Preference-Applied"] == "odata.maxpagesize=2"
        assert answer.document["@odata.count"] == 5
        pages.append(numbers(answer))
        address = answer.document.get("@odata.nextLink", "")
    assert pages == [[1, 2], [3, 4], [5]]


async def test_top_is_ignored_when_a_page_size_is_given(five: Client) -> None:
    assert numbers(await five("GET", "accounts?$top=1", Prefer="odata.maxpagesize=3")) == [1, 2, 3]


@pytest.mark.parametrize("option", ["$skip=1", "$top=x", "$top=-1", "$search=x", "$expand=PrimaryContact"])
async def test_options_that_are_not_served_are_refused(five: Client, option: str) -> None:
    assert (await five("GET", f"accounts?{option}")).status == 400


async def test_counts(five: Client) -> None:
    answer = await five("GET", "accounts/$count?$filter=numberofemployees gt 3")
    assert (answer.status, answer.body) == (200, b"2")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert (await five("GET", "accounts?$count=true&$top=1")).document["@odata.count"] == 5


async def test_who_am_i_and_the_service_document(client: Client) -> None:
    assert set((await client("GET", "WhoAmI")).document) == {"UserId", "BusinessUnitId", "OrganizationId"}
    assert [one["name"] for one in (await client("GET", "")).document["value"]] == ["accounts", "contacts", "tasks"]


async def test_keys_of_a_table(client: Client) -> None:
    keys = await client("GET", "EntityDefinitions(LogicalName='contact')/Keys?$select=SchemaName,KeyAttributes")
    shown = [(key["SchemaName"], key["KeyAttributes"]) for key in keys.document["value"]]
    assert shown == [("number_region", ["number", "region"]), ("email", ["email"])]
    listed = await client("GET", "EntityDefinitions?$select=SchemaName&$expand=Keys($select=KeyAttributes)")
    assert [len(one["Keys"]) for one in listed.document["value"]] == [1, 2, 0]


async def test_table_definitions(client: Client) -> None:
    one = await client("GET", "EntityDefinitions(LogicalName='account')?$select=EntitySetName,PrimaryIdAttribute")
    assert (one.document["EntitySetName"], one.document["PrimaryIdAttribute"]) == ("accounts", "accountid")
    assert (await client("GET", "EntityDefinitions(LogicalName='nothing')")).status == 404
    picklists = await client(
        "GET",
        "EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.PicklistAttributeMetadata"
        "?$select=LogicalName&$expand=OptionSet($select=Options)",
    )
    (industry,) = picklists.document["value"]
    assert [option["Value"] for option in industry["OptionSet"]["Options"]] == [1, 2, 3]


@pytest.mark.parametrize(("table", "rows"), [("account", 1), ("task", 0), ("nothing", 0)])
@pytest.mark.parametrize("message", ["CreateMultiple", "UpdateMultiple", "UpsertMultiple"])
async def test_which_tables_have_bulk_messages(client: Client, table: str, rows: int, message: str) -> None:
    answer = await client(
        "GET",
        "sdkmessagefilters?$select=sdkmessagefilterid&$filter=sdkmessageid/name eq @m and primaryobjecttypecode eq @t"
        f"&@m='{message}'&@t='{table}'",
    )
    assert len(answer.document["value"]) == rows


async def test_change_tracking(five: Client) -> None:
    first = await five("GET", "accounts?$select=name", Prefer="odata.track-changes")
    assert first.headers["Preference-Applied"] == "odata.track-changes"
    assert len(first.document["value"]) == 5
    await five("PATCH", f"accounts({IDS[0]})", {"name": "Other"})
    await five("DELETE", f"accounts({IDS[1]})")
    path = first.document["@odata.deltaLink"].partition("v9.2/")[2]
    second = await five("GET", path)
    changed, deleted = second.document["value"]
    assert (changed["name"], changed["accountid"]) == ("Other", IDS[0])
    assert (deleted["id"], deleted["reason"]) == (IDS[1], "deleted")
    assert deleted["@odata.context"].endswith("#accounts/$deletedEntity")
    path = second.document["@odata.deltaLink"].partition("v9.2/")[2]
    assert (await five("GET", path)).document["value"] == []


@pytest.mark.parametrize("option", ["$filter=revenue gt 1", "$orderby=name", "$top=1", "$expand=PrimaryContact"])
async def test_change_tracking_refuses_options(five: Client, option: str) -> None:
    answer = await five("GET", f"accounts?{option}", Prefer="odata.track-changes")
    assert answer.status == 400
    assert re.match(r"The \$\w+ query parameter", answer.message)


@pytest.mark.parametrize(
    "query", ["$deltatoken=x", "$deltatoken=99999999", "$deltatoken=1&$skiptoken=2", "$skiptoken=x"]
)
async def test_a_delta_token_that_is_not_valid(five: Client, query: str) -> None:
    assert (await five("GET", f"accounts?{query}", Prefer="odata.track-changes")).status == 400


async def pages(client: Client, path: str, prefer: str) -> tuple[list[list[str]], str]:
    """The ids on each page, and the path that the last one gives for the next time."""
    ids = []
    while True:
        document = (await client("GET", path, Prefer=prefer)).document
        ids.append([row.get("accountid") or row["id"] for row in document["value"]])
        if "@odata.deltaLink" in document:
            return ids, document["@odata.deltaLink"].partition("v9.2/")[2]
        path = document["@odata.nextLink"].partition("v9.2/")[2]


async def test_changes_come_in_pages_too(five: Client) -> None:
    prefer = "odata.track-changes,odata.maxpagesize=2"
    first, link = await pages(five, "accounts?$select=name", prefer)
    assert first == [IDS[:2], IDS[2:4], IDS[4:]]
    for record_id in IDS[:3]:
        await five("PATCH", f"accounts({record_id})", {"name": "Other"})
    await five("DELETE", f"accounts({IDS[4]})")
    second, link = await pages(five, link, "odata.maxpagesize=3")
    assert second == [IDS[:3], IDS[4:]]
    assert await pages(five, link, "odata.maxpagesize=3") == ([[]], link)


async def test_what_changes_between_two_pages_belongs_to_the_next_time_and_displaces_nothing(five: Client) -> None:
    prefer = "odata.track-changes,odata.maxpagesize=2"
    document = (await five("GET", "accounts?$select=name", Prefer=prefer)).document
    await five("PATCH", f"accounts({IDS[0]})", {"name": "Other"})
    await five("DELETE", f"accounts({IDS[2]})")
    rest, link = await pages(five, document["@odata.nextLink"].partition("v9.2/")[2], prefer)
    assert rest == [IDS[3:]]
    assert (await pages(five, link, "odata.maxpagesize=9"))[0] == [[IDS[0], IDS[2]]]


async def test_a_table_without_change_tracking(start: StartClient) -> None:
    client = await start(tables=(replace(ACCOUNTS, change_tracking=False), CONTACTS))
    assert (await client("GET", "accounts", Prefer="odata.track-changes")).status == 400
    definitions = (await client("GET", "EntityDefinitions?$filter=ChangeTrackingEnabled eq true")).document["value"]
    assert [one["LogicalName"] for one in definitions] == ["contact"]


async def test_a_list_of_values(five: Client) -> None:
    """Microsoft: "Filter rows using OData", on single quotes: the values stand in double quotes."""
    filtered = "accounts?$filter=Microsoft.Dynamics.CRM.In(PropertyName=@p1,PropertyValues=@p2)"
    assert numbers(await five("GET", f'{filtered}&@p1=\'accountnumber\'&@p2=["a1","A5","O\'Brien"]')) == [1, 5]
    assert (await five("GET", f"{filtered}&@p1='nothing'&@p2=[]")).status == 400
    assert (await five("GET", f"{filtered}&@p1='accountnumber'&@p2=['O'Brien']")).status == 400
    assert (await five("GET", f"{filtered}&@p1='accountnumber'")).status == 400


async def test_the_navigation_property_of_a_lookup(client: Client) -> None:
    found = await client(
        "GET",
        "EntityDefinitions(LogicalName='account')/ManyToOneRelationships"
        "?$select=ReferencingAttribute,ReferencingEntityNavigationPropertyName",
    )
    (relationship,) = found.document["value"]
    assert relationship["ReferencingAttribute"] == "primarycontactid"
    assert relationship["ReferencingEntityNavigationPropertyName"] == "PrimaryContact"


async def test_a_backup_takes_everything_back_row_versions_too(five: Client) -> None:
    assert (await five.control("POST", "restore")).status == 400
    await five.control("POST", "backup")
    before = (await five("GET", f"accounts({IDS[0]})")).document
    for name in ("one", "two"):
        await five("PATCH", f"accounts({IDS[0]})", {"name": name, "accountnumber": name})
        await five("DELETE", f"accounts({IDS[1]})")
        await five.control("POST", "restore")
        assert (await five("GET", f"accounts({IDS[0]})")).document == before
        assert (await five("GET", "accounts(accountnumber='A1')")).status == 200
        assert (await five("GET", f"accounts(accountnumber='{name}')")).status == 404
        assert numbers(await five("GET", "accounts?$orderby=numberofemployees")) == [1, 2, 3, 4, 5]
