"""Receivers that are asked before a change holds, and may refuse it."""

import asyncio

from .receiver import Receiver, deliveries, name_of, register, rename, settled, told
from .wire import ROOT, Client

PATH = "accounts(accountnumber='A1')"
TYPE = {"@odata.type": "Microsoft.Dynamics.CRM.account"}


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
