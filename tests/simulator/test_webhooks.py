"""Which changes are told of, and whose they are said to be."""

from .receiver import Receiver, by_key, deliveries, register, settled
from .wire import ROOT, Client, StartClient

RECORD = "6d81597f-0f9f-e711-8122-000d3aa2331c"
PATH = "accounts(accountnumber='A1')"
TYPE = {"@odata.type": "Microsoft.Dynamics.CRM.account"}


async def messages(client: Client, receiver: Receiver) -> list[tuple[str, str]]:
    """Which messages arrived, and of which account numbers, in the order of arrival."""
    await settled(client)
    return [(one.body["MessageName"], one.attributes.get("name", "")) for one in receiver.received]


async def test_an_upsert_that_creates_is_a_creation(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await client("PATCH", PATH, {"name": "a", "numberofemployees": 1})
    (created,) = await receiver.wait_for(1)
    assert created.body["MessageName"] == "Create"
    assert created.attributes["accountnumber"] == "A1"
    assert by_key(created.body["OutputParameters"]) == {"id": created.body["PrimaryEntityId"]}
    await client("PATCH", PATH, {"numberofemployees": 2})
    _, updated = await receiver.wait_for(2)
    assert updated.body["MessageName"] == "Update"
    assert "name" not in updated.attributes
    assert "accountnumber" not in updated.attributes
    assert updated.attributes["numberofemployees"] == 2


async def test_each_way_to_write_tells_of_it(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, mode="synchronous")
    address = (await client("POST", "accounts", {"name": "a"})).headers["OData-EntityId"]
    path = "accounts" + address.rpartition("accounts")[2]
    await client("PUT", f"{path}/name", {"value": "b"})
    await client("DELETE", f"{path}/revenue")
    await client("DELETE", f"{path}/PrimaryContact/$ref")
    await client("DELETE", path)
    assert [one.body["MessageName"] for one in receiver.received] == ["Create", "Update", "Update", "Update", "Delete"]
    assert [next(iter(one.attributes)) for one in receiver.received[1:4]] == ["name", "revenue", "primarycontactid"]


async def test_reading_and_failing_tell_of_nothing(client: Client, receiver: Receiver) -> None:
    await client("PATCH", PATH, {"name": "a"})
    await register(client, receiver)
    await client("GET", PATH)
    assert (await client("PATCH", PATH, {"nothing": 1})).status == 400
    assert (await client("PATCH", PATH, {"name": "b"}, If_Match='W/"1"')).status == 412
    assert await deliveries(client) == []


async def test_bulk_tells_of_each_row(client: Client, receiver: Receiver) -> None:
    await client("PATCH", PATH, {"name": "a"})
    await register(client, receiver)
    targets = [{**TYPE, "@odata.id": f"accounts(accountnumber='A{n}')", "name": f"n{n}"} for n in (1, 2, 3)]
    await client("POST", "accounts/Microsoft.Dynamics.CRM.UpsertMultiple", {"Targets": targets})
    found = sorted(await messages(client, receiver))
    assert found == [("Create", "n2"), ("Create", "n3"), ("Update", "n1")]
    assert len({one.body["CorrelationId"] for one in receiver.received}) == 1
    assert len({one["operation_id"] for one in await deliveries(client)}) == 3


async def test_a_bulk_request_that_fails_tells_of_nothing(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    targets = [{**TYPE, "name": "a"}, {**TYPE, "name": "x" * 99}]
    answer = await client("POST", "accounts/Microsoft.Dynamics.CRM.CreateMultiple", {"Targets": targets})
    assert answer.status == 400
    assert await deliveries(client) == []


def part(method: str, path: str, body: str = "{}", content_id: int | None = None) -> str:
    identified = "" if content_id is None else f"Content-ID: {content_id}\n"
    return f"Content-Type: application/http\n{identified}\n{method} {ROOT}/{path} HTTP/1.1\n\n{body}\n"


async def test_a_batch_tells_of_each_part_that_holds(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    failing = part("POST", "accounts", '{"nothing": 1}')
    change_set = (
        "Content-Type: multipart/mixed; boundary=c\n\n--c\n"
        + part("POST", "accounts", '{"name": "in the set"}', 1)
        + "--c\n"
        + part("PATCH", "$1", '{"name": "changed"}', 2).replace(f"{ROOT}/$1", "$1")
        + "--c--\n"
    )
    failed_set = (
        "Content-Type: multipart/mixed; boundary=d\n\n--d\n"
        + part("POST", "accounts", '{"name": "rolled back"}', 1)
        + "--d\n"
        + part("POST", "accounts", '{"nothing": 1}', 2)
        + "--d--\n"
    )
    parts = [part("POST", "accounts", '{"name": "alone"}'), failing, change_set, failed_set]
    answer = await client.batch("".join(f"--b\n{one}" for one in parts) + "--b--", Prefer="odata.continue-on-error")
    assert answer.status == 200
    found = sorted(await messages(client, receiver))
    assert found == [("Create", "alone"), ("Create", "in the set"), ("Update", "changed")]
    assert len({one.body["CorrelationId"] for one in receiver.received}) == 1
    assert len({one.body["RequestId"] for one in receiver.received}) == 2, "a change set is one request"


async def test_only_what_was_registered_for(client: Client, receiver: Receiver) -> None:
    await register(client, receiver, messages=["Update", "Delete"], filtering_attributes=["name", "primarycontactid"])
    await client("PATCH", "contacts(email='x')", {"firstname": "x"})
    await client("PATCH", PATH, {"name": "a"})
    await client("PATCH", PATH, {"numberofemployees": 1})
    await client("PATCH", PATH, {"PrimaryContact@odata.bind": "/contacts(email='x')"})
    await client("PATCH", PATH, {"name": "b"})
    await client("DELETE", PATH)
    told = [one["message"] for one in await settled(client)]
    assert told == ["Update", "Update", "Delete"]


async def test_what_is_lifted_is_told_no_more(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await client("PATCH", PATH, {"name": "a"})
    await receiver.wait_for(1)
    assert (await client.control("DELETE", "webhooks")).status == 204
    await client("PATCH", PATH, {"name": "b"})
    assert len(await settled(client)) == 1
    assert (await client.control("GET", "webhooks")).document == []


async def test_two_clients_are_two_users(start: StartClient, receiver: Receiver) -> None:
    client = await start(clients={"demo": "demo", "other": "other"})
    await register(client, receiver, mode="synchronous")
    await client("PATCH", PATH, {"name": "a"})
    first = (await client("GET", "WhoAmI")).document["UserId"]
    form = {"grant_type": "client_credentials", "client_id": "other", "client_secret": "other"}
    answer = await client.send_anything(
        "POST", f"{client.url}/t/oauth2/v2.0/token", data={**form, "scope": f"{client.url}/.default"}
    )
    client.token = answer.document["access_token"]
    await client("PATCH", PATH, {"name": "b"})
    other = (await client("GET", "WhoAmI")).document["UserId"]
    in_a_batch = await client.batch(f"--b\n{part('GET', 'WhoAmI')}--b--")
    assert other in in_a_batch.body.decode()
    assert first != other
    assert [one.body["InitiatingUserId"] for one in receiver.received] == [first, other]


async def test_a_person_edits_in_dynamics(client: Client, receiver: Receiver) -> None:
    await client("PATCH", PATH, {"name": "a"})
    await client("PATCH", "contacts(email='x')", {"firstname": "x"})
    await register(client, receiver, mode="synchronous")
    attributes = {"name": "b", "PrimaryContact@odata.bind": "/contacts(email='x')"}
    edit = {"attributes": attributes, "user": "kari"}
    assert (await client.control("PATCH", "records/accounts/A1", edit)).status == 204
    assert (await client("GET", PATH)).document["name"] == "b"
    assert (await client.control("DELETE", "records/accounts/A1", {"user": RECORD})).status == 204
    assert (await client.control("POST", "records/accounts", {"attributes": {"name": "c"}})).status == 204
    assert [one.body["MessageName"] for one in receiver.received] == ["Update", "Delete", "Create"]
    kari, by_id, somebody = (one.body["InitiatingUserId"] for one in receiver.received)
    assert by_id == RECORD, "an id stands for itself"
    assert len({kari, somebody, (await client("GET", "WhoAmI")).document["UserId"]}) == 3


async def test_a_person_finds_a_record_by_a_key_that_looks_like_an_id(client: Client) -> None:
    path = PATH.replace("A1", RECORD)
    await client("PATCH", path, {"name": "a"})
    assert (await client.control("PATCH", f"records/accounts/{RECORD}", {"attributes": {"name": "b"}})).status == 204
    assert (await client("GET", path)).document["name"] == "b"


async def test_what_a_person_gets_wrong(client: Client) -> None:
    await client("PATCH", PATH, {"name": "a"})
    for method, path, body, status in [
        ("PATCH", "records/accounts/A2", {"attributes": {"name": "b"}}, 404),
        ("PATCH", "records/nothing/A1", {"attributes": {"name": "b"}}, 404),
        ("PATCH", "records/accounts/A1", {"attributes": {"nothing": "b"}}, 400),
        ("PATCH", "records/accounts/A1", {"attributes": []}, 400),
        ("PATCH", "records/accounts/A1", {"name": "b"}, 400),
        ("PATCH", "records/accounts", {"attributes": {}}, 405),
    ]:
        answer = await client.control(method, path, body)
        assert (answer.status, bool(answer.document["error"])) == (status, True), (path, body)
    assert (await client("GET", PATH)).document["name"] == "a"
