"""CreateMultiple, UpdateMultiple, UpsertMultiple, BulkDelete (Microsoft: "Use bulk operation messages")."""

from typing import Any

from .wire import Answer, Client

TYPE = {"@odata.type": "Microsoft.Dynamics.CRM.account"}


async def bulk(client: Client, message: str, *targets: dict[str, Any]) -> Answer:
    return await client("POST", f"accounts/Microsoft.Dynamics.CRM.{message}Multiple", {"Targets": list(targets)})


async def names(client: Client) -> list[str]:
    return sorted(row["name"] for row in (await client("GET", "accounts")).document["value"])


def by_key(key: str, **body: Any) -> dict[str, Any]:
    return {**TYPE, "@odata.id": f"accounts(accountnumber='{key}')", **body}


async def test_create_multiple_answers_with_ids_in_order(client: Client) -> None:
    answer = await bulk(client, "Create", {**TYPE, "name": "a"}, {**TYPE, "name": "b"})
    assert answer.status == 200
    assert answer.document["@odata.context"].endswith("#Microsoft.Dynamics.CRM.CreateMultipleResponse")
    read = [(await client("GET", f"accounts({one})")).document["name"] for one in answer.document["Ids"]]
    assert read == ["a", "b"]


async def test_update_multiple_answers_204_and_keeps_the_first_of_a_duplicate(client: Client) -> None:
    ids = (await bulk(client, "Create", {**TYPE, "name": "a"}, {**TYPE, "name": "b"})).document["Ids"]
    targets = [{**TYPE, "accountid": ids[n], "name": name} for n, name in [(0, "first"), (0, "second"), (1, "third")]]
    answer = await bulk(client, "Update", *targets)
    assert (answer.status, answer.body) == (204, b"")
    assert await names(client) == ["first", "third"]


async def test_upsert_multiple_creates_and_updates_by_alternate_key(client: Client) -> None:
    assert (await bulk(client, "Upsert", by_key("A1", name="a"), by_key("A2", name="b"))).status == 204
    assert (await bulk(client, "Upsert", by_key("A2", name="c"), by_key("A3", name="d"))).status == 204
    assert await names(client) == ["a", "c", "d"]


async def test_upsert_multiple_refuses_a_duplicate_target(client: Client) -> None:
    assert (await bulk(client, "Upsert", by_key("A1", name="a"), by_key("a1", name="b"))).status == 400
    assert await names(client) == []


async def test_the_key_column_in_the_body_fails_on_the_way_to_a_create(client: Client) -> None:
    answer = await bulk(client, "Upsert", by_key("A1", name="a", accountnumber="A1"))
    assert (answer.status, answer.code) == (400, "0x80040216")


async def test_each_target_needs_its_type(client: Client) -> None:
    for wrong in (None, 5, "Microsoft.Dynamics.CRM.contact"):
        answer = await bulk(client, "Create", {**TYPE, "name": "b"}, {"name": "a", "@odata.type": wrong})
        assert (answer.status, answer.code) == (400, "0x80048d19")
    assert await names(client) == []


async def test_one_bad_row_and_nothing_is_stored(client: Client) -> None:
    await bulk(client, "Upsert", by_key("A1", name="before"))
    bad = by_key("A3", name="x" * 99)
    answer = await bulk(client, "Upsert", by_key("A1", name="after"), by_key("A2", name="b"), bad)
    assert (answer.status, answer.code) == (400, "0x80044331")
    assert await names(client) == ["before"]
    (record,) = (await client.control("GET", "records/accounts")).document
    assert [version["attributes"]["name"] for version in record["versions"]] == ["before"]
    assert (await bulk(client, "Upsert", by_key("A2", name="b"))).status == 204, "the key of what was undone is free"


async def test_updating_a_record_that_is_not_there(client: Client) -> None:
    missing = {**TYPE, "accountid": "00000000-0000-0000-0000-0000000000a1", "name": "a"}
    assert (await bulk(client, "Update", missing)).status == 404


async def test_a_table_without_bulk_messages(client: Client) -> None:
    answer = await client("POST", "tasks/Microsoft.Dynamics.CRM.CreateMultiple", {"Targets": []})
    assert (answer.status, answer.code) == (404, "0x8006088a")


async def test_the_request_log_lists_every_key(client: Client) -> None:
    await client.control("DELETE", "requests")
    await bulk(client, "Upsert", by_key("A1", name="a"), by_key("A2", name="b"))
    (logged,) = (await client.control("GET", "requests")).document
    assert (logged["entity_set"], logged["keys"], logged["status"]) == ("accounts", ["A1", "A2"], 204)
    await client.control("DELETE", "requests")
    created = await bulk(client, "Create", {**TYPE, "name": "a", "accountnumber": "A3"}, {**TYPE, "name": "b"})
    (logged,) = (await client.control("GET", "requests")).document
    assert logged["keys"] == ["A3", created.document["Ids"][1]]
