"""Microsoft's own client (PowerPlatform-Dataverse-Client) against the simulator, over plain http.

It was written by others against the real service, so it shows what a client expects that ours does not know of.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from PowerPlatform.Dataverse.aio import AsyncDataverseClient
from PowerPlatform.Dataverse.core.errors import HttpError
from PowerPlatform.Dataverse.models.upsert import UpsertItem

from .wire import Client


class Credential:
    """Hands over the token of a signed-in client."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None: ...

    async def __aenter__(self) -> "Credential":
        return self

    async def __aexit__(self, *error: object) -> None: ...


@pytest.fixture
async def dataverse(client: Client) -> AsyncIterator[AsyncDataverseClient]:
    assert client.token is not None
    async with AsyncDataverseClient(client.url, Credential(client.token)) as dataverse:
        yield dataverse


async def all_names(dataverse: AsyncDataverseClient) -> list[str]:
    return sorted(row["name"] for row in await dataverse.records.list("account", select=["name"]))


async def test_create_retrieve_update_delete(dataverse: AsyncDataverseClient) -> None:
    record_id = await dataverse.records.create("account", {"name": "Ann", "revenue": 1.5})
    record = await dataverse.records.retrieve("account", record_id, select=["name", "revenue"])
    assert record is not None
    assert (record["name"], record["revenue"]) == ("Ann", 1.5)
    await dataverse.records.update("account", record_id, {"name": "Bea"})
    changed = await dataverse.records.retrieve("account", record_id)
    assert changed is not None
    assert changed["name"] == "Bea"
    await dataverse.records.delete("account", record_id)
    assert await all_names(dataverse) == []
    with pytest.raises(HttpError) as refused:
        await dataverse.records.update("account", record_id, {"name": "Cat"})
    assert refused.value.status_code == 404
    assert refused.value.details["service_error_code"] == "0x80040217"


async def test_many_at_once(dataverse: AsyncDataverseClient) -> None:
    ids = await dataverse.records.create("account", [{"name": f"n{n}"} for n in range(5)])
    assert len(ids) == 5
    await dataverse.records.update("account", ids[:2], [{"name": "u0"}, {"name": "u1"}])
    await dataverse.records.update("account", ids[2:4], {"numberofemployees": 7})
    assert await all_names(dataverse) == ["n2", "n3", "n4", "u0", "u1"]
    listed = await dataverse.records.list(
        "account", filter="numberofemployees eq 7", select=["name"], orderby=["name desc"]
    )
    assert [row["name"] for row in listed] == ["n3", "n2"]
    assert await dataverse.records.delete("account", ids[:3])
    assert await all_names(dataverse) == ["n3", "n4"]


async def test_paging(dataverse: AsyncDataverseClient) -> None:
    await dataverse.records.create("account", [{"name": f"n{n}"} for n in range(5)])
    rows = await dataverse.records.list("account", select=["name"], page_size=2, count=True)
    assert len(list(rows)) == 5
    assert len(list(await dataverse.records.list("account", top=3))) == 3


async def test_upsert_one_and_many(dataverse: AsyncDataverseClient) -> None:
    await dataverse.records.upsert("account", [UpsertItem({"accountnumber": "A'1"}, {"name": "one"})])
    two = [UpsertItem({"accountnumber": key}, {"name": f"of {key}"}) for key in ("A'1", "A2")]
    await dataverse.records.upsert("account", [*two])
    assert await all_names(dataverse) == ["of A'1", "of A2"]
    pair = UpsertItem({"number": 1, "region": "N"}, {"firstname": "x"})
    await dataverse.records.upsert("contact", [pair])
    (contact,) = await dataverse.records.list("contact")
    assert (contact["number"], contact["region"]) == (1, "N")


async def test_batch_with_a_change_set(dataverse: AsyncDataverseClient) -> None:
    batch = dataverse.batch.new()
    async with batch.changeset() as changes:
        contact = changes.records.create("contact", {"firstname": "Ann"})
        changes.records.create("account", {"name": "x", "PrimaryContact@odata.bind": contact})
        changes.records.update("contact", contact, {"region": "N"})
    batch.records.create("account", {"name": "y"})
    batch.records.list("account", select=["name"])
    result = await batch.execute()
    assert not result.has_errors, result.failed
    assert [response.status_code for response in result.responses] == [204, 204, 204, 204, 200]
    (found,) = await dataverse.records.list("contact")
    assert found["region"] == "N"
    (bound,) = await dataverse.records.list("account", filter="name eq 'x'")
    assert bound["_primarycontactid_value"] == found["contactid"]


@pytest.mark.parametrize(("go_on", "stored"), [(True, ["a", "b"]), (False, ["a"])])
async def test_batch_with_an_error(dataverse: AsyncDataverseClient, go_on: bool, stored: list[str]) -> None:
    batch = dataverse.batch.new()
    for name in ("a", "x" * 21, "b"):
        batch.records.create("account", {"name": name})
    result = await batch.execute(continue_on_error=go_on)
    assert [(one.status_code, one.error_code) for one in result.failed] == [(400, "0x80044331")]
    assert await all_names(dataverse) == stored


async def test_bulk_in_a_batch(dataverse: AsyncDataverseClient) -> None:
    batch = dataverse.batch.new()
    batch.records.create("account", [{"name": "a"}, {"name": "b"}])
    batch.records.upsert("account", [UpsertItem({"accountnumber": "A1"}, {"name": "c"})])
    assert not (await batch.execute()).has_errors
    assert await all_names(dataverse) == ["a", "b", "c"]


async def test_throttling_is_understood(client: Client, dataverse: AsyncDataverseClient) -> None:
    await dataverse.records.list("account")
    await client.control("POST", "faults", {"kind": "status", "status": 429, "retry_after": 7, "count": 1})
    with pytest.raises(HttpError) as refused:
        await dataverse.records.list("account")
    assert refused.value.is_transient
    assert refused.value.details["retry_after"] == 7


async def test_keys_of_a_table(dataverse: AsyncDataverseClient) -> None:
    keys = await dataverse.tables.get_alternate_keys("contact")
    assert [key.key_attributes for key in keys] == [["number", "region"], ["email"]]
