"""Faults on purpose, the request log and the stored records."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from .wire import ROOT, Client, StartClient, eventually

PATH = "accounts(accountnumber='A1')"


async def fault(client: Client, **declared: Any) -> None:
    assert (await client.control("POST", "faults", declared)).status == 201


async def versions(client: Client) -> int:
    return sum(len(record["versions"]) for record in (await client.control("GET", "records/accounts")).document)


async def requests(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.control("GET", "requests")).document
    return found


async def test_an_outage_holds_until_it_is_lifted(client: Client) -> None:
    await fault(client, kind="status", status=503, retry_after=5)
    for _ in range(3):
        answer = await client("PATCH", PATH, {"name": "x"})
        assert (answer.status, answer.retry_after, answer.document["error"]["code"]) == (503, 5, "")
    assert (await client.control("DELETE", "faults")).status == 204
    assert (await client("PATCH", PATH, {"name": "x"})).status == 204
    assert await versions(client) == 1


async def test_a_status_has_dataverses_body_or_the_one_that_is_given(client: Client) -> None:
    await fault(client, kind="status", status=429, count=1)
    assert (await client("GET", "WhoAmI")).code == "0x80072322"
    await fault(client, kind="status", status=500, code="0x80044150", message="Generic SQL error.", count=1)
    answer = await client("GET", "WhoAmI")
    assert (answer.status, answer.code, answer.message) == (500, "0x80044150", "Generic SQL error.")


async def test_count_ends_a_fault(client: Client) -> None:
    await fault(client, kind="status", status=500, count=2)
    assert [(await client("GET", "WhoAmI")).status for _ in range(3)] == [500, 500, 200]
    assert (await client.control("GET", "faults")).document == []


async def test_share_is_repeatable_by_seed(start: StartClient) -> None:
    async def outcomes(seed: int) -> list[int]:
        client = await start(seed=seed)
        await fault(client, kind="status", status=502, share=0.3)
        return [(await client("GET", "WhoAmI")).status for _ in range(100)]

    first = await outcomes(7)
    assert 15 < first.count(502) < 45
    assert first == await outcomes(7)
    assert first != await outcomes(8)


async def test_faults_meet_only_what_they_are_meant_for(client: Client) -> None:
    await fault(client, kind="status", status=500, entity_set="accounts", key="A1", method="PATCH")
    assert (await client("PATCH", PATH, {"name": "x"})).status == 500
    assert (await client("GET", PATH)).status == 404
    assert (await client("PATCH", "accounts(accountnumber='A2')", {"name": "x"})).status == 204
    assert (await client("PATCH", "contacts(email='A1')", {})).status == 204


async def test_a_key_is_met_in_bulk_and_in_a_part_of_a_batch(client: Client) -> None:
    await fault(client, kind="status", status=400, key="A2", entity_set="accounts")
    base = {"@odata.type": "Microsoft.Dynamics.CRM.account", "name": "x"}
    targets = [{**base, "@odata.id": f"accounts(accountnumber='A{n}')"} for n in (1, 2)]
    assert (await client("POST", "accounts/Microsoft.Dynamics.CRM.UpsertMultiple", {"Targets": targets})).status == 400
    parts = "".join(
        f"--b\nContent-Type: application/http\n\nPATCH {ROOT}/accounts(accountnumber='A{n}') HTTP/1.1\n\n"
        '{"name":"x"}\n'
        for n in (1, 2, 3)
    )
    answer = await client.batch(parts + "--b--", Prefer="odata.continue-on-error")
    text = answer.body.decode()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("HTTP/1.1")] == ["204", "400", "204"]
    assert await versions(client) == 2


async def test_what_is_meant_for_all_requests_meets_a_batch_as_a_whole(client: Client) -> None:
    await fault(client, kind="status", status=502, share=0.5)
    parts = "--b\nContent-Type: application/http\n\nGET WhoAmI HTTP/1.1\n\n\n" * 10 + "--b--"
    answers = [await client.batch(parts) for _ in range(20)]
    assert {answer.status for answer in answers} == {200, 502}
    assert {answer.body.count(b"HTTP/1.1 200") for answer in answers} == {0, 10}


async def test_a_reset_that_meets_a_part_of_a_batch_cuts_the_whole(client: Client) -> None:
    await fault(client, kind="reset", key="A1", count=1)
    part = f"--b\nContent-Type: application/http\n\nPATCH {ROOT}/{PATH} HTTP/1.1\n\n" + '{"name":"x"}\n--b--'
    with pytest.raises(aiohttp.ClientError):
        await client.batch(part)
    assert await versions(client) == 0
    assert (await client.batch(part)).status == 200


async def test_a_code_of_ones_own_in_a_part_of_a_batch(client: Client) -> None:
    await fault(client, kind="status", status=409, key="A1", code="not a number")
    part = f"--b\nContent-Type: application/http\n\nPATCH {ROOT}/{PATH} HTTP/1.1\n\n" + '{"name":"x"}\n--b--'
    answer = await client.batch(part, Prefer='odata.include-annotations="*"')
    assert answer.status == 409
    assert b"not a number" in answer.body


async def test_a_delay_and_a_lost_answer_that_meet_a_part_of_a_batch(client: Client) -> None:
    part = f"--b\nContent-Type: application/http\n\nPATCH {ROOT}/{PATH} HTTP/1.1\n\n" + '{"name":"x"}\n--b--'
    await fault(client, kind="delay", key="A1", seconds=0.05, count=1)
    began = time.perf_counter()
    assert (await client.batch(part)).status == 200
    assert time.perf_counter() - began >= 0.05
    await fault(client, kind="reset_after_write", key="A1", count=1)
    with pytest.raises(aiohttp.ClientError):
        await client.batch(part)
    assert await versions(client) == 2


async def test_reset_before_and_after_the_write(client: Client) -> None:
    for kind, stored in [("reset", 0), ("reset_after_write", 1)]:
        await fault(client, kind=kind, count=1, method="PATCH")
        with pytest.raises(aiohttp.ClientError):
            await client("PATCH", PATH, {"name": "x"})
        assert await versions(client) == stored
    assert [one["status"] for one in await requests(client)] == [None, None]
    assert all(one["done_at"] is not None for one in await requests(client))


async def test_a_delayed_write_happens_even_if_the_client_has_gone(client: Client) -> None:
    await fault(client, kind="delay", seconds=0.1, count=1)
    timeout = aiohttp.ClientTimeout(total=0.02)
    headers = {"Authorization": f"Bearer {client.token}"}
    with pytest.raises(TimeoutError):
        await client.session.patch(f"{client.url}{ROOT}/{PATH}", json={"name": "x"}, headers=headers, timeout=timeout)
    (pending,) = await requests(client)
    assert (pending["status"], pending["done_at"], pending["keys"]) == (None, None, ["A1"])

    async def is_written() -> bool:
        return await versions(client) == 1

    await eventually(is_written)


async def test_a_time_out_lasts_until_the_client_goes_or_it_is_lifted(client: Client) -> None:
    await fault(client, kind="timeout")
    waiting = asyncio.create_task(client("PATCH", PATH, {"name": "x"}))

    async def has_arrived() -> bool:
        return bool(await requests(client))

    await eventually(has_arrived)
    assert not waiting.done()
    await client.control("DELETE", "faults")
    with pytest.raises(aiohttp.ClientError):
        await waiting
    assert await versions(client) == 0


async def test_a_time_out_ends_when_the_client_goes(client: Client) -> None:
    await fault(client, kind="timeout", count=1)
    headers = {"Authorization": f"Bearer {client.token}"}
    with pytest.raises(TimeoutError):
        await client.session.get(
            f"{client.url}{ROOT}/WhoAmI", headers=headers, timeout=aiohttp.ClientTimeout(total=0.02)
        )
    assert (await client("GET", "WhoAmI")).status == 200

    async def is_let_go() -> bool:
        return (await requests(client))[0]["done_at"] is not None

    await eventually(is_let_go)


async def test_garbled_is_a_page_instead_of_an_answer(client: Client) -> None:
    await fault(client, kind="garbled", count=1)
    answer = await client("PATCH", PATH, {"name": "x"})
    assert answer.status == 200
    assert answer.body.startswith(b"<!DOCTYPE html>")
    assert await versions(client) == 0


async def test_faults_of_the_token_endpoint(client: Client) -> None:
    await fault(client, kind="status", status=503, path="token", count=1, retry_after=2)
    assert (await client("GET", "WhoAmI")).status == 200, "the Web API is not met"
    answer = await client.sign_in()
    assert (answer.status, answer.retry_after, answer.document["error"]) == (503, 2, "temporarily_unavailable")
    await fault(client, kind="garbled", path="token", count=1)
    assert (await client.sign_in("wrong")).document is None
    assert (await client.sign_in()).status == 200


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({}, "kind"),
        ({"kind": "earthquake"}, "kind must be one of status, delay"),
        ({"kind": "status", "status": "503"}, "status"),
        ({"kind": "status", "status": 99}, "status must lie between"),
        ({"kind": "status", "status": True}, "status"),
        ({"kind": "status", "share": 1.5}, "share"),
        ({"kind": "status", "count": 0}, "count"),
        ({"kind": "delay", "seconds": -1}, "seconds"),
        ({"kind": "status", "retry_after": -1}, "retry_after"),
        ({"kind": "status", "path": "elsewhere"}, "path"),
        ({"kind": "status", "stauts": 503}, "unknown field 'stauts'"),
        ([], "object"),
        ("x", "object"),
    ],
)
async def test_malformed_faults_are_refused_and_say_why(client: Client, declared: Any, says: str) -> None:
    answer = await client.control("POST", "faults", declared)
    assert answer.status == 400
    assert says in answer.document["error"]
    assert (await client.control("GET", "faults")).document == []


async def test_other_control_addresses(client: Client) -> None:
    assert (await client.control("PUT", "faults")).status == 404
    assert (await client.control("GET", "nothing")).status == 404
    assert "accounts, contacts, tasks" in (await client.control("GET", "records/nothing")).document["error"]
    assert (await client.control("POST", "credentials", {"secret": "x"})).status == 400
    assert (await client.send_anything("GET", client.url)).status == 404
    assert await requests(client) == [], "only Web API requests are logged"


async def test_the_request_log(client: Client) -> None:
    before = time.time()
    await client("PATCH", PATH, {"name": "secret"})
    await client("POST", "contacts", {"email": "a@example.com"})
    await client("GET", PATH)
    await client("PATCH", PATH, {"nothing": "secret"})
    logged = await requests(client)
    assert [(one["method"], one["entity_set"], one["keys"], one["status"]) for one in logged] == [
        ("PATCH", "accounts", ["A1"], 204),
        ("POST", "contacts", ["a@example.com"], 204),
        ("GET", "accounts", [], 200),
        ("PATCH", "accounts", ["A1"], 400),
    ]
    assert all(before <= one["at"] <= one["done_at"] <= time.time() for one in logged)
    assert "secret" not in str(logged)
    await client.control("DELETE", "requests")
    assert await requests(client) == []


async def test_the_request_log_is_bounded(start: StartClient) -> None:
    client = await start(logged_requests=2)
    for n in range(4):
        await client("GET", f"accounts?$top={n}")
    assert len(await requests(client)) == 2


async def test_records_show_every_version(client: Client) -> None:
    await client("PATCH", PATH, {"name": "one"})
    await client("PATCH", PATH, {"name": "two"})
    await client("PATCH", "contacts(number=1,region='N')", {"firstname": "x"})
    (record,) = (await client.control("GET", "records/accounts")).document
    assert (record["key"], record["attributes"]["name"]) == ("A1", "two")
    assert [version["attributes"]["name"] for version in record["versions"]] == ["one", "two"]
    assert len({version["etag"] for version in record["versions"]}) == 2
    assert record["versions"][0]["at"] <= record["versions"][1]["at"]
    (contact,) = (await client.control("GET", "records/contacts")).document
    assert contact["key"] == [1, "N"]
