"""What a webhook sends (Microsoft: "Use webhooks to create external handlers for server events")."""

import json
from pathlib import Path
from string import Template
from typing import Any
from uuid import UUID

import pytest

from .receiver import Received, Receiver, by_key, deliveries, register, settled
from .wire import Client, Clock, StartClient

RECORD = "6d81597f-0f9f-e711-8122-000d3aa2331c"
PATH = "accounts(accountnumber='A1')"
GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, sent: Received, delivery: dict[str, Any], registration: dict[str, Any], **known: str) -> Any:
    text = Template((GOLDEN / f"{name}.json").read_text())
    return json.loads(
        text.substitute(
            record=RECORD,
            step=registration["steps"][delivery["message"]],
            operation=delivery["operation_id"],
            correlation=sent.headers["x-ms-correlation-request-id"],
            **known,
        )
    )


async def known_ids(client: Client) -> dict[str, str]:
    who = (await client("GET", "WhoAmI")).document
    return {
        "user": who["UserId"],
        "organization": who["OrganizationId"],
        "business_unit": who["BusinessUnitId"],
        "agent": "tests",
    }


async def a_contact(client: Client) -> str:
    address = (await client("POST", "contacts", {"email": "x"})).headers["OData-EntityId"]
    return str(address).rpartition("(")[2].removesuffix(")")


def assert_same(sent: Received, expected: Any) -> None:
    """Equal, in the same order, and with every slash escaped."""
    assert sent.body == expected
    assert json.dumps(sent.body) == json.dumps(expected)
    assert sent.raw.count("/") == sent.raw.count("\\/") > 0


async def test_a_creation_told_synchronously(start: StartClient, clock: Clock, receiver: Receiver) -> None:
    client = await start(now=clock)
    contact = await a_contact(client)
    registration = await register(client, receiver, mode="synchronous")
    body = {
        "accountid": RECORD,
        "name": "Contoso",
        "creditlimit": 2154.32,
        "industrycode": 2,
        "opened": "2020-01-01",
        "lastcall": "2017-09-26T00:04:07Z",
        "creditonhold": True,
        "numberofemployees": 7,
        "externalguid": "00000000-0000-0000-0000-0000000000E1",
        "PrimaryContact@odata.bind": f"/contacts({contact})",
    }
    assert (await client("POST", "accounts", body, User_Agent="tests")).status == 204
    (sent,), (delivery,) = receiver.received, await deliveries(client)
    ids = await known_ids(client)
    assert sent.body["RequestId"] == delivery["operation_id"], "a synchronous step has no system job"
    request = delivery["operation_id"]
    expected = golden("create_synchronous", sent, delivery, registration, contact=contact, request=request, **ids)
    assert_same(sent, expected)


async def test_an_update_told_asynchronously(start: StartClient, clock: Clock, receiver: Receiver) -> None:
    client = await start(now=clock)
    contact = await a_contact(client)
    bind = {"PrimaryContact@odata.bind": f"/contacts({contact})"}
    await client("PATCH", f"accounts({RECORD})", {"name": "Contoso", **bind})
    columns = ["statecode", "name", "revenue", "primarycontactid"]
    registration = await register(client, receiver, post_image=columns)
    change = {"name": "Fabrikam", "statecode": 1, "statuscode": 2, "lastcall": None}
    await client("PATCH", f"accounts({RECORD})", change, User_Agent="tests")
    (sent,), (delivery,) = await receiver.wait_for(1), await settled(client)
    ids = await known_ids(client)
    request = sent.body["RequestId"]
    assert UUID(request) != UUID(delivery["operation_id"])
    expected = golden("update_asynchronous", sent, delivery, registration, contact=contact, request=request, **ids)
    assert_same(sent, expected)


async def test_a_deletion_names_the_record_and_no_more(start: StartClient, clock: Clock, receiver: Receiver) -> None:
    client = await start(now=clock)
    await client("PATCH", f"accounts({RECORD})", {"name": "Contoso"})
    registration = await register(client, receiver, post_image=["name"])
    await client("DELETE", f"accounts({RECORD})", User_Agent="tests")
    (sent,), (delivery,) = await receiver.wait_for(1), await settled(client)
    ids = await known_ids(client)
    expected = golden("delete_asynchronous", sent, delivery, registration, request=sent.body["RequestId"], **ids)
    assert_same(sent, expected)


async def test_what_was_there_before(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous", pre_image=["name", "revenue", "accountnumber"])
    await client("PATCH", PATH, {"name": "a"})
    await client("PATCH", PATH, {"name": "b"})
    await client("DELETE", PATH)
    created, updated, deleted = receiver.received
    assert created.body["PreEntityImages"] == []
    for sent, name in [(updated, "a"), (deleted, "b")]:
        image = by_key(sent.body["PreEntityImages"])["PreImage"]
        record_id = sent.body["PrimaryEntityId"]
        assert by_key(image["Attributes"]) == {"name": name, "accountnumber": "A1", "accountid": record_id}
    assert deleted.body["PostEntityImages"] == []


async def test_the_headers(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await client("PATCH", PATH, {"name": "a"})
    await client("PATCH", PATH, {"name": "b"})
    sent = await receiver.wait_for(2)
    for one in sent:
        assert one.method == "POST"
        assert one.headers["Content-Type"].startswith("application/json")
        assert one.headers["x-ms-dynamics-organization"] == client.url.removeprefix("http://")
        assert one.headers["x-ms-dynamics-entity-name"] == "account"
        assert one.headers["x-ms-dynamics-request-name"] == one.body["MessageName"]
        assert one.headers["x-ms-correlation-request-id"] == one.body["CorrelationId"]
        assert "x-ms-dynamics-msg-size-exceeded" not in one.headers
    assert ["x-request-id" in one.headers for one in sent].count(True) == 1, "it stands in older documentation only"


async def test_the_tag_of_a_request_is_a_shared_variable(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await client("PATCH", f"{PATH}?tag=mine", {"name": "a"})
    (sent,) = await receiver.wait_for(1)
    assert by_key(sent.body["SharedVariables"])["tag"] == "mine"


@pytest.mark.parametrize(
    ("kind", "values", "headers", "query"),
    [
        ("HttpHeader", {"X-Key": "a b", "X-Other": "c"}, {"X-Key": "a b", "X-Other": "c"}, {"given": "1"}),
        ("WebhookKey", {"any": "a+b&c"}, {}, {"given": "1", "code": "a+b&c"}),
        ("HttpQueryString", {"key": "ä", "other": "c"}, {}, {"given": "1", "key": "ä", "other": "c"}),
    ],
)
async def test_authentication(
    client: Client,
    receiver: Receiver,
    kind: str,
    values: dict[str, str],
    headers: dict[str, str],
    query: dict[str, str],
) -> None:
    registration = await register(
        client, receiver, url=f"{receiver.url}?given=1", authentication={"kind": kind, "values": values}
    )
    await client("PATCH", PATH, {"name": "a"})
    (sent,) = await receiver.wait_for(1)
    assert {name: sent.headers[name] for name in headers} == headers
    assert dict(sent.query) == query
    shown = [registration, *(await client.control("GET", "webhooks")).document, *(await settled(client))]
    rows = [(await client("GET", name)).document for name in ("serviceendpoints", "asyncoperations")]
    assert not any(value in json.dumps([*shown, *rows], ensure_ascii=False) for value in ("a b", "a+b&c", "ä"))
    assert registration["authentication"] == {"kind": kind, "names": list(values)}
