"""Golden exchanges of single records, after Microsoft's pages (the values are ours)."""

import re

import pytest

from .wire import ROOT, Client

A_GUID = "00000000-0000-0000-0000-0000000000a1"


async def test_create_answers_204_with_the_address(client: Client) -> None:
    answer = await client("POST", "accounts", {"name": "Alpine Ski House", "creditonhold": False, "revenue": 5.5})
    assert (answer.status, answer.body) == (204, b"")
    assert re.fullmatch(rf"{client.url}{ROOT}/accounts\([0-9a-f-]{{36}}\)", answer.headers["OData-EntityId"])
    assert answer.headers["OData-Version"] == "4.0"


async def test_create_with_representation_answers_201_without_an_entity_id(client: Client) -> None:
    answer = await client("POST", "accounts?$select=name", {"name": "Alpine"}, Prefer="return=representation")
    assert answer.status == 201
    assert answer.headers["Preference-Applied"] == "return=representation"
    assert "OData-EntityId" not in answer.headers
    assert set(answer.document) == {"@odata.context", "@odata.etag", "name", "accountid"}


async def test_every_answer_has_dataverses_headers(client: Client) -> None:
    for answer in [await client("GET", "WhoAmI"), await client("GET", "nothings"), await client("GET", "accounts")]:
        for name in ["x-ms-service-request-id", "REQ_ID", "x-ms-dop-hint", "OData-Version"]:
            assert answer.headers[name]
        assert answer.headers["x-ms-ratelimit-burst-remaining-xrm-requests"].isdigit()
        assert answer.headers["x-ms-ratelimit-time-remaining-xrm-requests"] == "1,200.00"
        assert answer.headers["Set-Cookie"].startswith("ARRAffinity=")


async def test_create_with_a_chosen_id_that_is_taken(client: Client) -> None:
    assert (await client("POST", "accounts", {"name": "a", "accountid": A_GUID})).status == 204
    answer = await client("POST", "accounts", {"name": "b", "accountid": A_GUID})
    assert (answer.status, answer.code, answer.message) == (412, "0x80040237", "Cannot insert duplicate key.")


async def test_create_with_an_alternate_key_that_is_taken(client: Client) -> None:
    await client("POST", "accounts", {"name": "a", "accountnumber": "A1"})
    answer = await client("POST", "accounts", {"name": "b", "accountnumber": "a1"})
    assert (answer.status, answer.code) == (412, "0x80060892")
    assert "account_number" in answer.message


async def test_upsert_by_a_key_of_two_columns_answers_alike_for_create_and_update(client: Client) -> None:
    path = "contacts(number=1,region='North West')"
    created = await client("PATCH", path, {"firstname": "Ann"})
    updated = await client("PATCH", path, {"firstname": "Bea"})
    assert created.status == updated.status == 204
    echoed = f"{client.url}{ROOT}/contacts(number=1,region='North%20West')"
    assert created.headers["OData-EntityId"] == updated.headers["OData-EntityId"] == echoed
    read = await client("GET", "contacts(region='North West',number=1)?$select=firstname,number,region")
    assert read.document["firstname"] == "Bea"
    assert (read.document["number"], read.document["region"]) == (1, "North West")


async def test_upsert_with_representation_answers_201_then_200_with_another_etag(client: Client) -> None:
    path = "contacts(email='a@example.com')?$select=contactid"
    first = await client("PATCH", path, {"firstname": "Ann"}, Prefer="return=representation")
    second = await client("PATCH", path, {"firstname": "Bea"}, Prefer="return=representation")
    assert (first.status, second.status) == (201, 200)
    assert first.document["contactid"] == second.document["contactid"]
    assert first.headers["ETag"] == first.document["@odata.etag"]
    assert second.headers["ETag"] not in (first.headers["ETag"], "")
    assert re.fullmatch(r'W/"\d+"', second.headers["ETag"])


async def test_upsert_by_id_takes_the_id(client: Client) -> None:
    answer = await client("PATCH", f"contacts({A_GUID.upper()})", {"firstname": "Ann"})
    assert answer.status == 204
    assert answer.headers["OData-EntityId"].endswith(f"/contacts({A_GUID})")
    assert (await client("GET", f"contacts({A_GUID})")).document["contactid"] == A_GUID


async def test_a_quote_in_a_key_is_doubled(client: Client) -> None:
    assert (await client("PATCH", "accounts(accountnumber='A''1')", {"name": "x"})).status == 204
    records = (await client.control("GET", "records/accounts")).document
    assert [record["key"] for record in records] == ["A'1"]


async def test_a_new_rows_body_wins_over_the_address_and_an_old_ones_is_dropped(client: Client) -> None:
    await client("PATCH", "accounts(accountnumber='A1')", {"name": "x", "accountnumber": "B1"})
    assert (await client("GET", "accounts(accountnumber='A1')")).status == 404
    await client("PATCH", "accounts(accountnumber='B1')", {"accountnumber": "C1"})
    assert (await client("GET", "accounts(accountnumber='B1')")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "contacts(number=1)",
        "contacts(nothing='x')",
        "accounts(x)",
        "accounts()",
        "accounts(accountnumber=null)",
        "accounts(accountnumber=A1)",
    ],
)
async def test_an_undeclared_key_is_refused(client: Client, path: str) -> None:
    answer = await client("PATCH", path, {})
    assert answer.status == 400
    assert answer.message.startswith("The key in the request URI is not valid for resource 'Microsoft.Dynamics.CRM.")


@pytest.mark.parametrize("character", list("/<>*%&:\\?+"))
async def test_forbidden_characters_in_a_key_are_refused_even_encoded(client: Client, character: str) -> None:
    answer = await client("PATCH", f"accounts(accountnumber='a%{ord(character):02X}b')", {"name": "x"})
    assert answer.status == 400


async def test_if_match_star_forbids_creation(client: Client) -> None:
    by_id = await client("PATCH", f"accounts({A_GUID})", {"name": "x"}, If_Match="*")
    assert (by_id.status, by_id.code) == (404, "0x80040217")
    assert by_id.message == f"account With Id = {A_GUID} Does Not Exist"
    by_key = await client("PATCH", "accounts(accountnumber='A1')", {"name": "x"}, If_Match="*")
    assert (by_key.status, by_key.code) == (404, "0x80060891")
    assert by_key.message == "A record with the specified key values does not exist in account entity"


async def test_if_none_match_star_forbids_an_update(client: Client) -> None:
    assert (await client("PATCH", f"accounts({A_GUID})", {"name": "x"}, If_None_Match="*")).status == 204
    answer = await client("PATCH", f"accounts({A_GUID})", {"name": "y"}, If_None_Match="*")
    assert (answer.status, answer.message) == (412, "A record with matching key values already exists.")


async def test_if_none_match_null_is_no_condition(client: Client) -> None:
    for _ in range(2):
        assert (await client("PATCH", f"accounts({A_GUID})", {"name": "x"}, If_None_Match="null")).status == 204
    assert (await client("GET", f"accounts({A_GUID})", If_None_Match="null")).status == 200


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_stale_etag_is_refused(client: Client, method: str) -> None:
    path = f"accounts({A_GUID})"
    stale = (await client("PATCH", path, {"name": "x"}, Prefer="return=representation")).headers["ETag"]
    fresh = (await client("PATCH", path, {"name": "y"}, Prefer="return=representation")).headers["ETag"]
    body = {"name": "z"} if method == "PATCH" else None
    answer = await client(method, path, body, If_Match=stale)
    assert (answer.status, answer.code) == (412, "0x80060882")
    assert answer.message == "The version of the existing record doesn't match the RowVersion property provided."
    assert (await client(method, path, body, If_Match=fresh)).status == 204


async def test_a_conditional_get_answers_304_if_nothing_changed(client: Client) -> None:
    path = f"accounts({A_GUID})"
    etag = (await client("PATCH", path, {"name": "x"}, Prefer="return=representation")).headers["ETag"]
    assert (await client("GET", path, If_None_Match=etag)).status == 304
    await client("PATCH", path, {"name": "x"})
    assert (await client("GET", path, If_None_Match=etag)).status == 200


async def test_delete(client: Client) -> None:
    await client("PATCH", "accounts(accountnumber='A1')", {"name": "x"})
    assert (await client("DELETE", "accounts(accountnumber='A1')")).status == 204
    assert (await client("DELETE", "accounts(accountnumber='A1')")).status == 404


async def test_duplicate_detection_only_when_it_is_asked_for(client: Client) -> None:
    await client("POST", "accounts", {"name": "Same"})
    answer = await client("POST", "accounts", {"name": "Same"}, **{"MSCRM.SuppressDuplicateDetection": "false"})
    assert (answer.status, answer.code) == (412, "0x80040333")
    assert (await client("POST", "accounts", {"name": "Same"})).status == 204


async def test_one_column_put_get_and_delete(client: Client) -> None:
    path = f"accounts({A_GUID})"
    await client("PATCH", path, {"name": "x"})
    assert (await client("PUT", f"{path}/revenue", {"value": 7})).status == 204
    assert (await client("GET", f"{path}/revenue")).document["value"] == 7
    assert (await client("DELETE", f"{path}/revenue")).status == 204
    assert (await client("GET", f"{path}/revenue")).status == 204
    assert (await client("PUT", f"{path}/nothing", {"value": 7})).status == 404


@pytest.mark.parametrize(
    "reference",
    ["/contacts({id})", "contacts({id})", "/contacts(email='c@example.com')", "{url}/api/data/v9.2/contacts({id})"],
)
async def test_a_lookup_is_bound_by_id_or_key(client: Client, reference: str) -> None:
    await client("PATCH", f"contacts({A_GUID})", {"email": "c@example.com"})
    value = reference.format(id=A_GUID, url=client.url)
    answer = await client("POST", "accounts", {"name": "x", "PrimaryContact@odata.bind": value})
    assert answer.status == 204
    path = answer.headers["OData-EntityId"].partition("v9.2/")[2]
    assert (await client("GET", path)).document["_primarycontactid_value"] == A_GUID
    assert (await client("DELETE", f"{path}/PrimaryContact/$ref")).status == 204
    assert (await client("GET", path)).document["_primarycontactid_value"] is None


async def test_a_navigation_property_is_case_sensitive(client: Client) -> None:
    answer = await client("POST", "accounts", {"name": "x", "primarycontact@odata.bind": f"/contacts({A_GUID})"})
    assert (answer.status, answer.code) == (400, "0x80048d19")
    assert "An undeclared property 'primarycontact'" in answer.message


async def test_a_lookup_to_a_record_that_is_not_there(client: Client) -> None:
    answer = await client("POST", "accounts", {"name": "x", "PrimaryContact@odata.bind": f"/contacts({A_GUID})"})
    assert (answer.status, answer.code) == (404, "0x80040217")
    wrong = await client("POST", "accounts", {"name": "x", "PrimaryContact@odata.bind": f"/tasks({A_GUID})"})
    assert wrong.status == 400


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("nothing", 1, "0x80048d19"),
        ("name", 1, "0x80048d19"),
        ("name", "x" * 21, "0x80044331"),
        ("name", None, "0x80040203"),
        ("numberofemployees", "12", "0x80048d19"),
        ("numberofemployees", 2**31, "0x80048d19"),
        ("numberofemployees", True, "0x80048d19"),
        ("revenue", "1.5", "0x80048d19"),
        ("revenue", [1], "0x80048d19"),
        ("creditonhold", 1, "0x80048d19"),
        ("opened", "2024-13-01", "0x80048d19"),
        ("opened", "2024-01-01T00:00:00Z", "0x80048d19"),
        ("opened", "1066-10-14", "0x80040239"),
        ("lastcall", "2024-01-01", "0x80048d19"),
        ("industrycode", 4, "0x80044330"),
        ("industrycode", "1", "0x80048d19"),
        ("externalguid", "x", "0x80048d19"),
        ("statecode", 7, "0x80044330"),
        ("accountnumber", "a/b", "0x80060888"),
        ("primarycontactid", A_GUID, "0x80060888"),
        ("_primarycontactid_value", A_GUID, "0x80060888"),
    ],
)
async def test_a_value_that_does_not_fit_is_refused(client: Client, column: str, value: object, code: str) -> None:
    answer = await client("POST", "accounts", {"name": "x", column: value})
    assert (answer.status, answer.code) == (400, code)
    if isinstance(value, str) and code == "0x80048d19":
        assert value in answer.message, "Dataverse quotes record data, so clients must not pass messages on"


async def test_a_required_column_must_be_there(client: Client) -> None:
    answer = await client("PATCH", f"accounts({A_GUID})", {"revenue": 1})
    assert (answer.status, answer.code) == (400, "0x80040203")


async def test_moments_read_back_in_utc_and_whole_seconds(client: Client) -> None:
    await client("PATCH", f"accounts({A_GUID})", {"name": "x", "lastcall": "2024-01-01T01:30:00.987+02:00"})
    assert (await client("GET", f"accounts({A_GUID})")).document["lastcall"] == "2023-12-31T23:30:00Z"


async def test_deactivating_takes_the_status_reason_along(client: Client) -> None:
    path = f"accounts({A_GUID})"
    await client("PATCH", path, {"name": "x"})
    read = (await client("GET", path)).document
    assert (read["statecode"], read["statuscode"]) == (0, 1)
    await client("PATCH", path, {"statecode": 1})
    read = (await client("GET", path)).document
    assert (read["statecode"], read["statuscode"]) == (1, 2)
    answer = await client("PATCH", path, {"statecode": 0, "statuscode": 2})
    assert (answer.status, answer.code) == (400, "0x80048408")


async def test_system_columns_that_cannot_be_written_are_ignored(client: Client) -> None:
    await client("PATCH", f"accounts({A_GUID})", {"name": "x", "createdon": "2001-01-01T00:00:00Z", "versionnumber": 1})
    read = (await client("GET", f"accounts({A_GUID})")).document
    assert read["createdon"] > "2020"
    assert f'W/"{read["versionnumber"]}"' == read["@odata.etag"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "nothings", 404, "0x8006088a"),
        ("GET", "accounts(", 404, "0x8006088a"),
        ("POST", f"accounts({A_GUID})", 405, ""),
        ("PUT", "accounts", 405, ""),
        ("POST", "WhoAmI", 404, ""),
        ("GET", f"accounts({A_GUID})/name/x", 404, "0x8006088a"),
        ("POST", "accounts/Microsoft.Dynamics.CRM.Nothing", 404, "0x8006088a"),
    ],
)
async def test_other_addresses(client: Client, method: str, path: str, status: int, code: str) -> None:
    answer = await client(method, path)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"name": NaN}', b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_object(client: Client, body: bytes) -> None:
    answer = await client.send_anything(
        "POST", f"{client.url}{ROOT}/accounts", data=body, headers={"Authorization": f"Bearer {client.token}"}
    )
    assert (answer.status, answer.code) == (400, "0x80048d19")


async def test_an_earlier_version_of_the_api_is_served_too(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token}"}
    assert (await client.send_anything("GET", f"{client.url}/api/data/v9.0/WhoAmI", headers=headers)).status == 200
    other = await client.send_anything("GET", f"{client.url}/api/data/v8.2/WhoAmI", headers=headers)
    assert (other.status, other.code) == (404, "")


async def test_details_of_an_error_for_those_who_ask(client: Client) -> None:
    plain = await client("GET", "nothings", Prefer='odata.include-annotations="other"')
    assert set(plain.document["error"]) == {"code", "message"}
    full = await client("GET", "nothings", Prefer='odata.include-annotations="*"')
    assert full.document["error"]["@Microsoft.PowerApps.CDS.ErrorDetails.SubErrorCode"] == str(0x8006088A)


async def test_addresses_name_the_host_as_the_client_does(client: Client) -> None:
    answer = await client("POST", "accounts", {"name": "x"}, Host="simulator:8081")
    assert answer.headers["OData-EntityId"].startswith("http://simulator:8081/api/data/v9.2/accounts(")
    answer = await client("POST", "accounts", {"name": "x"}, Host="<>")
    assert answer.headers["OData-EntityId"].startswith(client.url)
