"""How webhooks are delivered: attempts, time-outs, order, what goes wrong, and what it does to a write."""

import asyncio
from typing import Any

import pytest

from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.simulator.records import Change, Message
from dynamics_sync.simulator.webhooks.background import Background
from dynamics_sync.simulator.webhooks.context import Event, Origin
from dynamics_sync.simulator.webhooks.deliveries import Delivery, Sender
from dynamics_sync.simulator.webhooks.registrations import registration

from .receiver import Receiver, deliveries, register, settled
from .wire import ROOT, TABLES, Answer, Client, StartClient, eventually

PATH = "accounts(accountnumber='A1')"
TYPE = {"@odata.type": "Microsoft.Dynamics.CRM.account"}
GOOD: dict[str, Any] = {
    "url": "http://localhost/hook",
    "entity": "account",
    "authentication": {"kind": "WebhookKey", "values": {"code": "k"}},
}


async def fault(client: Client, **declared: Any) -> None:
    answer = await client.control("POST", "faults", declared)
    assert answer.status == 201, answer.document


async def rename(client: Client, *names: str, key: str = "A1") -> list[int]:
    return [(await client("PATCH", f"accounts(accountnumber='{key}')", {"name": name})).status for name in names]


async def name_of(client: Client, key: str = "A1") -> str:
    return str((await client("GET", f"accounts(accountnumber='{key}')")).document["name"])


def told(receiver: Receiver) -> list[str]:
    """The names, in the order of their arrival."""
    return [one.attributes["name"] for one in receiver.received]


# Attempts


@pytest.mark.parametrize(
    ("answers", "attempts", "outcome"),
    [
        ([200], 1, "delivered"),
        ([204], 1, "delivered"),
        *(([status, 200], 2, "delivered") for status in (502, 503, 504)),
        ([502, 503, 200], 2, "failed"),
        ([503, 429], 2, "failed"),
        *(([status], 1, "failed") for status in (302, 400, 401, 404, 408, 429, 500, 501, 505)),
    ],
)
async def test_one_more_attempt_after_some_answers_only(
    client: Client, receiver: Receiver, answers: list[int], attempts: int, outcome: str
) -> None:
    await register(client, receiver)
    receiver.answers = list(answers)
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (attempts, answers[attempts - 1], outcome)
    assert len(receiver.received) == attempts
    assert len({one.raw for one in receiver.received}) == 1
    assert receiver.answers == answers[attempts:]


async def test_a_receiver_that_does_not_answer_in_time(start: StartClient, receiver: Receiver) -> None:
    client = await start(webhook_timeout_seconds=0.05)
    await register(client, receiver)
    receiver.gate.clear()
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (1, None, "failed")
    assert len(receiver.received) == 1


def test_the_time_out_is_a_minute() -> None:
    assert SimulatorConfig(TABLES).webhook_timeout_seconds == 60


async def test_a_receiver_that_is_not_there(client: Client, receiver: Receiver, unused_tcp_port: int) -> None:
    await register(client, receiver, url=f"http://127.0.0.1:{unused_tcp_port}/")
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (1, None, "failed")


# Size


async def test_a_large_body_is_trimmed(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    for length in (127_000, 131_000):  # each is there twice: in the step's own context, and in its parent's
        await client("POST", "accounts", {"name": "a", "accountnumber": "x" * length})
    sent = {one.body["OperationId"]: one for one in await receiver.wait_for(2)}
    small, large = (sent[one["operation_id"]] for one in await settled(client))
    assert "x-ms-dynamics-msg-size-exceeded" not in small.headers
    assert "x-ms-dynamics-msg-size-exceeded" in large.headers
    assert 240 * 1024 < len(small.raw) <= 256 * 1024
    removed = {"InputParameters", "ParentContext", "PostEntityImages", "PreEntityImages"}
    assert set(small.body) - set(large.body) == removed
    assert (large.body["PrimaryEntityName"], large.body["MessageName"]) == ("account", "Create")
    assert large.body["OutputParameters"][0]["value"] == large.body["PrimaryEntityId"]


async def test_trimmed_on_purpose(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="oversized", count=1)
    await rename(client, "a")
    (sent,) = await receiver.wait_for(1)
    assert "x-ms-dynamics-msg-size-exceeded" in sent.headers
    assert "InputParameters" not in sent.body


# Faults


async def test_sent_twice(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="duplicate", count=1)
    await rename(client, "a")
    first, second = await receiver.wait_for(2)
    assert first.raw == second.raw
    assert [one["outcome"] for one in await settled(client)] == ["delivered", "delivered"]
    await rename(client, "b")
    assert len(await settled(client)) == 3


async def test_never_sent(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="lost", count=1)
    await rename(client, "a", "b")
    assert [(one["outcome"], one["attempts"]) for one in await settled(client)] == [("lost", 0), ("delivered", 1)]
    assert told(receiver) == ["b"]


async def test_out_of_order(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order", count=2)
    await rename(client, "a", "b")
    assert receiver.received == []
    await rename(client, "c")
    await settled(client)
    assert told(receiver)[0] == "c"
    assert sorted(told(receiver)) == ["a", "b", "c"]


async def test_what_is_held_back_is_sent_when_faults_are_lifted(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order")
    await rename(client, "a")
    await client.control("DELETE", "faults")
    await receiver.wait_for(1)


async def test_what_is_held_back_is_given_up_with_its_registration(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order", count=1)
    await fault(client, kind="delay", path="webhooks", seconds=3600, count=1)
    await rename(client, "held", "delayed")
    await client.control("DELETE", "webhooks")
    await register(client, receiver)
    await rename(client, "new")
    assert [one["outcome"] for one in await settled(client)] == ["lost", "lost", "delivered"]
    assert told(receiver) == ["new"]


async def test_a_delay(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="delay", path="webhooks", seconds=0.1, count=1)
    await rename(client, "a", "b")
    delayed, other = await settled(client)
    assert sorted(told(receiver)) == ["a", "b"]
    assert delayed["done_at"] - delayed["at"] >= 0.1
    assert other["outcome"] == "delivered"


async def test_faults_meet_only_the_records_that_they_are_meant_for(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="lost", entity_set="accounts", key="a2")
    for key in ("A1", "A2"):
        assert await rename(client, key, key=key) == [204], "the Web API is not met"
    assert [one["outcome"] for one in await settled(client)] == ["delivered", "lost"]


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"kind": "lost", "path": "token"}, "for webhooks only"),
        ({"kind": "status", "path": "webhooks"}, "webhooks cannot have status"),
        ({"kind": "lost", "method": "PATCH"}, "method"),
        ({"kind": "lost", "path": "elsewhere"}, "path"),
    ],
)
async def test_faults_that_cannot_be(client: Client, declared: dict[str, Any], says: str) -> None:
    answer = await client.control("POST", "faults", declared)
    assert (answer.status, says in answer.document["error"]) == (400, True)


# Synchronous


async def test_a_write_waits_for_a_synchronous_receiver(client: Client, receiver: Receiver) -> None:
    await rename(client, "a")
    await register(client, receiver, mode="synchronous")
    receiver.gate.clear()
    writing = asyncio.create_task(rename(client, "b"))
    await receiver.wait_for(1)
    assert await name_of(client) == "a", "nobody sees what does not hold yet"
    other = asyncio.create_task(rename(client, "c", key="A2"))
    receiver.gate.set()
    assert await writing == [204]
    assert await other == [204]
    assert [await name_of(client), await name_of(client, "A2")] == ["b", "c"]
    row = (await client("GET", PATH)).document
    assert row["@odata.etag"] == f'W/"{row["versionnumber"]}"'


async def test_two_at_once_make_one_record_of_a_key(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    answers = await asyncio.gather(*(rename(client, name) for name in "abc"))
    assert answers == [[204]] * 3
    assert sorted(one.body["MessageName"] for one in receiver.received) == ["Create", "Update", "Update"]
    assert (await client("GET", "accounts/$count")).body == b"1"


async def test_a_synchronous_receiver_can_refuse(client: Client, receiver: Receiver) -> None:
    await rename(client, "a")
    before = (await client("GET", PATH)).document
    await register(client, receiver, mode="synchronous")
    for method, body in [("PATCH", {"name": "b"}), ("DELETE", None)]:
        receiver.answers = [500]
        answer = await client(method, PATH, body)
        assert (answer.status, answer.code, "500" in answer.message) == (400, "0x80040265", True)
    assert (await client("GET", PATH)).document == before, "with the etag that it had"
    assert len(receiver.received) == 2, "what was sent cannot be recalled"
    (record,) = (await client.control("GET", "records/accounts")).document
    assert len(record["versions"]) == 1
    assert [one["outcome"] for one in await deliveries(client)] == ["failed", "failed"]


async def test_a_refused_creation_leaves_its_key_free(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    receiver.answers = [400]
    assert await rename(client, "a") == [400]
    assert (await client("GET", PATH)).status == 404
    assert await rename(client, "b") == [204]
    assert [one.body["MessageName"] for one in receiver.received] == ["Create", "Create"]


async def test_a_refusal_undoes_the_whole_of_a_bulk_request(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    targets = [{**TYPE, "name": name} for name in ("a", "b", "c")]
    receiver.answers = [200, 500]
    answer = await client("POST", "accounts/Microsoft.Dynamics.CRM.CreateMultiple", {"Targets": targets})
    assert answer.status == 400
    assert told(receiver) == ["a", "b"]
    assert (await client("GET", "accounts/$count")).body == b"0"


async def test_a_refusal_in_a_batch_undoes_its_part_only(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    part = f"--b\nContent-Type: application/http\n\nPOST {ROOT}/accounts HTTP/1.1\n\n" + '{"name": "%s"}\n'
    receiver.answers = [200, 500, 200]
    answer = await client.batch("".join(part % name for name in "abc") + "--b--", Prefer="odata.continue-on-error")
    assert [line.split()[1] for line in answer.body.decode().splitlines() if line.startswith("HTTP/1.1")] == [
        "204",
        "400",
        "204",
    ]
    rows = (await client("GET", "accounts?$select=name")).document["value"]
    assert [row["name"] for row in rows] == ["a", "c"]


async def test_what_is_refused_is_not_told_to_others(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="asynchronous", name="later")
    await register(client, receiver, mode="synchronous", name="first")
    receiver.answers = [500]
    assert await rename(client, "a") == [400]
    assert [one["mode"] for one in await settled(client)] == ["synchronous"]
    assert await rename(client, "b") == [204]
    assert [one["mode"] for one in await settled(client)] == ["synchronous", "synchronous", "asynchronous"]


async def test_a_synchronous_receiver_may_read_what_was_there_before(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    link = (await client("GET", "accounts?$select=name", Prefer="odata.track-changes")).document["@odata.deltaLink"]
    receiver.gate.clear()
    writing = asyncio.create_task(rename(client, "a"))
    await receiver.wait_for(1)
    answer = await client("GET", link.partition("v9.2/")[2])
    receiver.gate.set()
    await writing
    assert answer.document["value"] == []
    later = await client("GET", answer.document["@odata.deltaLink"].partition("v9.2/")[2])
    assert [row["name"] for row in later.document["value"]] == ["a"], "no change is passed over"


# Asynchronous deliveries and the writes that they tell of


async def test_writes_do_not_wait_for_receivers(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    receiver.gate.clear()
    assert set(await rename(client, *(f"n{n}" for n in range(30)))) == {204}
    await receiver.wait_for(2)
    assert {one["outcome"] for one in await deliveries(client)} == {"sending", "waiting"}
    receiver.gate.set()
    await receiver.wait_for(30)
    assert {one["outcome"] for one in await settled(client)} == {"delivered"}


async def test_what_waits_is_bounded(receiver: Receiver) -> None:
    (table,) = (one for one in TABLES if one.logical_name == "account")
    told_of = registration(GOOD | {"url": receiver.url}, {"account": table})
    after = {"modifiedon": "2024-01-01T00:00:00Z"}
    change = Change(Message.UPDATE, table, "6d81597f-0f9f-e711-8122-000d3aa2331c", {}, {}, after, 0.0)
    origin = Origin("user", "agent", "correlation", "request", None)
    made = [Delivery(Event(told_of, change, origin, f"operation {n}", {})) for n in range(4)]
    sender, unforeseen = Sender(now=lambda: 0.0, timeout_seconds=60), list[Exception]()
    background = Background(sender, unforeseen, at_once=1, most=2)
    receiver.gate.clear()
    background.send(made[0])
    await receiver.wait_for(1)
    for delivery in made[1:]:
        background.send(delivery)
    assert [one.outcome for one in made] == ["sending", "waiting", "waiting", "lost"]
    await background.stop()
    await sender.close()
    assert unforeseen == []


async def test_the_log_of_deliveries_is_bounded(start: StartClient, receiver: Receiver) -> None:
    client = await start(logged_deliveries=2)
    await register(client, receiver)
    await rename(client, "a", "b", "c")
    await receiver.wait_for(3)
    assert len(await deliveries(client)) == 2


async def test_stopping_interrupts_deliveries_and_starting_goes_on(receiver: Receiver) -> None:
    receiver.gate.clear()
    simulator = Simulator(SimulatorConfig(TABLES))
    async with Client.of(simulator) as client:
        await register(client, receiver)
        await fault(client, kind="delay", path="webhooks", seconds=3600, count=1)
        await rename(client, "delayed", "sending")
        await receiver.wait_for(1)
    before = {task for task in asyncio.all_tasks() if "webhooks" in repr(task)}
    assert before == set()
    receiver.gate.set()
    async with Client.of(simulator) as client:
        await receiver.wait_for(3)
        assert sorted(told(receiver)) == ["delayed", "sending", "sending"]
        assert {one["outcome"] for one in await settled(client)} == {"delivered"}
    assert simulator.unforeseen == []


# What the Web API shows of it


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


# Registering


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
