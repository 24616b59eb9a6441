"""`$batch` (Microsoft: "Execute batch operations using the Web API")."""

import pytest

from .wire import ROOT, Client

A_GUID = "00000000-0000-0000-0000-0000000000a1"


def operation(method: str, address: str, body: str = "", content_id: int | None = None) -> str:
    """One part, without the boundary before it."""
    head = "Content-Type: application/http\nContent-Transfer-Encoding: binary\n"
    head += f"Content-ID: {content_id}\n" if content_id is not None else ""
    return f"{head}\n{method} {address} HTTP/1.1\nContent-Type: application/json; type=entry\n\n{body}\n"


def batch(*parts: str, boundary: str = "b") -> str:
    return "".join(f"--{boundary}\n{part}" for part in parts) + f"--{boundary}--\n"


def change_set(*parts: str) -> str:
    return "Content-Type: multipart/mixed; boundary=c\n\n" + batch(*parts, boundary="c")


def task(subject: str, content_id: int | None = None) -> str:
    return operation("POST", f"{ROOT}/tasks", f'{{"subject":"{subject}"}}', content_id)


async def subjects(client: Client) -> list[str]:
    return [row["subject"] for row in (await client("GET", "tasks")).document["value"]]


async def test_three_creates_and_a_get_are_answered_in_order(client: Client) -> None:
    answer = await client.batch(
        batch(task("one"), task("two"), task("three"), operation("GET", "tasks?$select=subject"))
    )
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("multipart/mixed; boundary=batchresponse_")
    text = answer.body.decode()
    assert text.count("HTTP/1.1 204 No Content") == 3
    assert text.count("OData-EntityId: http") == 3
    assert text.index("HTTP/1.1 200 OK") > text.rindex("HTTP/1.1 204")
    assert await subjects(client) == ["one", "two", "three"]


async def test_without_continue_on_error_the_first_failure_ends_it(client: Client) -> None:
    answer = await client.batch(batch(task("one"), task("x" * 201), task("three")))
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("multipart/mixed")
    assert b"0x80044331" in answer.body
    assert await subjects(client) == ["one"], "what was done before stays done"


async def test_with_continue_on_error_each_part_fails_alone(client: Client) -> None:
    parts = batch(task("x" * 201), task("two"), task("three"))
    answer = await client.batch(parts, Prefer="odata.continue-on-error")
    assert answer.status == 200
    text = answer.body.decode()
    assert text.index("HTTP/1.1 400 Bad Request") < text.index("HTTP/1.1 204")
    assert "REQ_ID: " in text
    assert await subjects(client) == ["two", "three"]


async def test_a_change_set_is_atomic(client: Client) -> None:
    answer = await client.batch(batch(change_set(task("one", 1), task("x" * 201, 2))))
    assert answer.status == 400
    assert answer.body.count(b"HTTP/1.1 ") == 1, "one part for the whole set"
    assert await subjects(client) == []


async def test_content_ids_refer_to_what_was_made_before(client: Client) -> None:
    contact = operation("POST", f"{ROOT}/contacts", '{"firstname":"Ann","email":"$1"}', 1)
    account = operation("POST", f"{ROOT}/accounts", '{"name":"x","PrimaryContact@odata.bind":"$1"}', 2)
    answer = await client.batch(
        batch(
            change_set(
                contact,
                account,
                operation("PATCH", "$1", '{"region":"N"}', 3),
                operation("PUT", "$1/region", '{"value":"S"}', 4),
            )
        )
    )
    assert answer.status == 200, answer.body
    assert b"changesetresponse_" in answer.body
    for content_id in (1, 2, 3, 4):
        assert f"Content-ID: {content_id}\r\n".encode() in answer.body
    (found,) = (await client("GET", "contacts")).document["value"]
    assert (found["region"], found["email"]) == ("S", "$1")
    (bound,) = (await client("GET", "accounts")).document["value"]
    assert bound["_primarycontactid_value"] == found["contactid"]


async def test_a_forward_reference_is_refused(client: Client) -> None:
    account = operation("POST", f"{ROOT}/accounts", '{"name":"x","PrimaryContact@odata.bind":"$2"}', 1)
    contact = operation("POST", f"{ROOT}/contacts", '{"firstname":"Ann"}', 2)
    answer = await client.batch(batch(change_set(account, contact)))
    assert answer.status == 400
    assert b"Content-ID Reference: '$2' does not exist in the batch context." in answer.body


async def test_no_get_in_a_change_set_and_no_batch_in_a_batch(client: Client) -> None:
    assert (await client.batch(batch(change_set(operation("GET", "tasks", "", 1))))).status == 400
    assert (await client.batch(batch(operation("POST", f"{ROOT}/$batch", batch(task("x")))))).status == 400


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
@pytest.mark.parametrize("boundary", ["b", '"b"'])
@pytest.mark.parametrize("address", ["tasks", f"{ROOT}/tasks", "{url}" + f"{ROOT}/tasks"])
async def test_lenient_reading(client: Client, ends: str, boundary: str, address: str) -> None:
    text = "\n\n" + batch(operation("POST", address.format(url=client.url), '{"subject":"x"}')).rstrip("\n")
    answer = await client.batch(text.replace("\n", ends).encode(), boundary)
    assert answer.status == 200, answer.body
    assert await subjects(client) == ["x"]


@pytest.mark.parametrize(
    "body", [b"", b"--b--", b"--b\r\n\r\n", b"nothing", b"--b\r\nContent-Type: application/http\r\n\r\nx"]
)
async def test_malformed_batches(client: Client, body: bytes) -> None:
    assert (await client.batch(body)).status == 400


async def test_a_batch_needs_a_boundary(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "multipart/mixed"}
    answer = await client.send_anything("POST", f"{client.url}{ROOT}/$batch", data=b"x", headers=headers)
    assert (answer.status, answer.code) == (400, "0x80060888")


async def test_at_most_a_thousand_operations(client: Client) -> None:
    assert (await client.batch(batch(*[task("x")] * 1001))).status == 400
    assert (await client.batch(batch(change_set(*[task("x", n) for n in range(1001)])))).status == 400
    assert (await client.batch(batch(*[task("x")] * 1000))).status == 200


async def test_the_request_log_lists_every_key(client: Client) -> None:
    await client.control("DELETE", "requests")
    parts = [
        operation("PATCH", f"{ROOT}/accounts(accountnumber='A1')", '{"name":"a"}'),
        operation("GET", f"{ROOT}/accounts(accountnumber='A1')"),
        operation("POST", f"{ROOT}/accounts", '{"name":"b","accountnumber":"B1"}'),
        change_set(operation("PATCH", f"{ROOT}/contacts({A_GUID})", '{"firstname":"a"}', 1)),
    ]
    assert (await client.batch(batch(*parts))).status == 200
    (logged,) = (await client.control("GET", "requests")).document
    assert (logged["entity_set"], logged["keys"]) == ("$batch", ["A1", A_GUID, "B1"])
