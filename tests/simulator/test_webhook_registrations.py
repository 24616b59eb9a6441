"""Registering webhooks, and what the Web API shows of them (Microsoft: "Register a webhook")."""

from typing import Any

import pytest

from .receiver import Receiver, register, rename, settled
from .wire import Answer, Client, eventually

GOOD: dict[str, Any] = {
    "url": "http://localhost/hook",
    "entity": "account",
    "authentication": {"kind": "WebhookKey", "values": {"code": "k"}},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": None}, "url"),
        ({"url": "ftp://localhost"}, "http or https"),
        ({"url": "http://a:b@localhost"}, "without credentials"),
        ({"url": "nothing"}, "http or https"),
        ({"url": "http://[", "name": "x"}, "url"),
        ({"entity": "accounts"}, "entity must be one of account, contact, task"),
        ({"messages": []}, "messages"),
        ({"messages": ["Create", "Assign"]}, "messages must be one of Create, Update, Delete"),
        ({"messages": "Create"}, "messages"),
        ({"mode": "sometimes"}, "mode must be one of synchronous, asynchronous"),
        ({"mode": []}, "mode"),
        ({"authentication": None}, "authentication"),
        ({"authentication": {"kind": "Signature", "values": {"a": "b"}}}, "authentication.kind must be one of Http"),
        ({"authentication": {"kind": "HttpHeader", "values": {}}}, "authentication.values"),
        ({"authentication": {"kind": "HttpHeader", "values": {"X": 1}}}, "authentication.values"),
        ({"authentication": {"kind": "HttpHeader", "values": {"X Y": "1"}}}, "cannot be a header"),
        ({"authentication": {"kind": "HttpHeader", "values": {"X": "1\r\nY: 2"}}}, "cannot be a header"),
        ({"authentication": {"kind": "WebhookKey", "values": {"a": "1", "b": "2"}}}, "one value"),
        ({"post_image": ["nothing"]}, "post_image: account has no column 'nothing'"),
        ({"pre_image": ["nothing"]}, "pre_image: account has no column 'nothing'"),
        ({"post_image": "name"}, "post_image must be a list"),
        ({"filtering_attributes": [1]}, "filtering_attributes must be a list"),
        ({"secret": "x"}, "unknown fields: secret"),
    ],
)
async def test_malformed_registrations(client: Client, changes: dict[str, Any], says: str) -> None:
    declared = {name: value for name, value in (GOOD | changes).items() if value is not None}
    answer = await client.control("POST", "webhooks", declared)
    assert (answer.status, says in answer.document["error"]) == (400, True), answer.document
    assert (await client.control("GET", "webhooks")).document == []


async def test_service_endpoints_and_their_steps(client: Client, receiver: Receiver) -> None:
    query = "serviceendpoints?$filter=contract eq 8&$select=serviceendpointid,name,authtype,url"
    assert (await client("GET", query)).document["value"] == []
    key = await register(client, receiver, name="key")
    header = await register(
        client, receiver, name="header", authentication={"kind": "HttpHeader", "values": {"X-Key": "v"}}
    )
    text = await register(
        client, receiver, name="text", authentication={"kind": "HttpQueryString", "values": {"k": "v"}}
    )
    rows = (await client("GET", query)).document["value"]
    assert rows == [
        {"serviceendpointid": one["id"], "name": one["name"], "authtype": kind, "url": receiver.url}
        for one, kind in [(key, 4), (header, 5), (text, 6)]
    ]
    assert (await client("GET", f"serviceendpoints({key['id']})?$select=name")).document["name"] == "key"
    assert (await client("GET", f"serviceendpoints({'0' * 8}-0000-0000-0000-{'0' * 12})")).status == 404
    assert (await client("POST", "serviceendpoints", {})).status == 404
    steps = f"sdkmessageprocessingsteps?$filter=_eventhandler_value eq {key['id']}&$select=sdkmessageprocessingstepid"
    found = [row["sdkmessageprocessingstepid"] for row in (await client("GET", steps)).document["value"]]
    assert found == list(key["steps"].values())


async def failed_jobs(client: Client, step: str) -> Answer:
    return await client(
        "GET",
        "asyncoperations?$orderby=completedon desc&$filter=statuscode eq 31 and _owningextensionid_value eq @step"
        f"&$select=name,friendlymessage,errorcode,message,completedon&@step={step}",
    )


async def test_failed_deliveries_are_failed_system_jobs(client: Client, receiver: Receiver) -> None:
    registration = await register(client, receiver)
    receiver.answers = [200, 404]
    await rename(client, "a")
    await settled(client)
    await rename(client, "b")
    _, failed = await settled(client)
    (job,) = (await failed_jobs(client, registration["steps"]["Update"])).document["value"]
    assert job["asyncoperationid"] == failed["operation_id"] == receiver.received[1].body["OperationId"]
    assert "404" in job["message"]
    assert (await failed_jobs(client, registration["steps"]["Create"])).document["value"] == []
    all_of_them = (await client("GET", "asyncoperations?$select=statuscode")).document["value"]
    assert [row["statuscode"] for row in all_of_them] == [30, 31]


async def test_what_is_on_its_way_is_a_job_in_progress(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    receiver.gate.clear()
    await rename(client, "a")
    await receiver.wait_for(1)
    (job,) = (await client("GET", "asyncoperations?$select=statuscode,completedon")).document["value"]
    assert (job["statuscode"], job["completedon"]) == (20, None)

    receiver.gate.set()

    async def is_done() -> bool:
        rows = (await client("GET", "asyncoperations?$filter=statuscode eq 30")).document["value"]
        return len(rows) == 1

    await eventually(is_done)
