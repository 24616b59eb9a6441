"""The portal's contract, secrets and answers: what is taken, what is refused, and what is never told."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from standardwebhooks import Webhook, WebhookVerificationError

from dynamics_sync.core.errors import ConfigurationError, MappingError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    Accepted,
    Conflict,
    Mismatch,
    Outcome,
    Rejected,
    Throttled,
    Transient,
    Unauthorized,
)
from dynamics_sync.portal.answers import MAX_BYTES, meaning
from dynamics_sync.portal.contract import Contract, read_contract
from dynamics_sync.portal.gateway import portal_address
from dynamics_sync.portal.signing import Signer, webhook_id
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import target_names
from dynamics_sync.targets import portal_of
from dynamics_sync.transport.connection import Response

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SECRET, OTHER_SECRET = "whsec_" + "YWJj" * 8, "whsec_" + "eHl6" * 8
ID = "msg_1"
ROW = {"peer_mentor_id": uuid4(), "status": "active", "issued_on": None, "expires_on": date(2027, 1, 31)}
SHIPPED = read_contract(None)
EXAMPLE = Path(__file__).parents[2] / "examples" / "portal-contract.json"


def change_of(version: int = 7, key: str | None = None) -> SyncOperation:
    return SyncOperation("public.certifications", key or str(uuid4()), version=version, target="portal")


def answer(status: int = 200, body: object = None, kind: str = "application/json", **headers: str) -> Response:
    given = {"contract": "1", "id": ID, "accepted": True} if body is None else body
    content = given if isinstance(given, bytes) else json.dumps(given).encode()
    return Response(status, CIMultiDictProxy(CIMultiDict({"Content-Type": kind, **headers})), content)


REFUSAL = {"contract": "1", "error": "Kari Nordmann is unknown"}


@pytest.mark.parametrize("contract", [SHIPPED, read_contract(EXAMPLE)], ids=["that ships", "the example"])
@pytest.mark.parametrize("row", [ROW, None], ids=["changed", "deleted"])
def test_a_certification_fits_its_contract(contract: Contract, row: dict[str, object] | None) -> None:
    event = contract.event(change_of(), row, NOW)
    assert event is not None
    assert contract.request.place_in(event) is None


def test_a_change_says_what_the_row_holds_and_a_deletion_nothing_of_it() -> None:
    changed = SHIPPED.event(change_of(key="k"), ROW, NOW)
    attributes = {name: value and str(value) for name, value in ROW.items()}
    data: dict[str, Any] = {"contract": "1", "key": "k", "version": 7}
    assert changed == {
        "type": "certification.changed",
        "timestamp": "2026-11-25T12:00:00.000Z",
        "data": {**data, "attributes": attributes},
    }
    deleted = SHIPPED.event(change_of(key="k"), None, NOW)
    assert deleted == {"type": "certification.deleted", "timestamp": "2026-11-25T12:00:00.000Z", "data": data}


def test_what_does_not_fit_is_told_by_its_place_and_never_by_its_value() -> None:
    event = SHIPPED.event(change_of(version=0, key="Kari"), {**ROW, "status": "Nordmann"}, NOW)
    place = SHIPPED.request.place_in(event) or ""
    assert set(place.split("; ")) == {"$.data.key", "$.data.version", "$.data.attributes.status"}


@pytest.mark.parametrize(
    ("answered", "outcome"),
    [
        (answer(), Accepted()),
        (answer(202), Accepted()),
        (answer(kind="application/problem+json"), Accepted()),
        (answer(500, b"<html>", "text/html"), Transient("http_500")),
        (answer(503, REFUSAL, **{"Retry-After": "7"}), Transient("http_503", 7.0)),
        (answer(429, REFUSAL, **{"Retry-After": "9"}), Throttled("http_429", 9.0)),
        (answer(408, b""), Throttled("http_408", 5.0)),
        (answer(401, b""), Unauthorized("http_401")),
        (answer(412, REFUSAL), Conflict("http_412")),
        (answer(422, REFUSAL), Rejected("http_422")),
        (answer(410, REFUSAL), Rejected("http_410")),
    ],
)
def test_an_answer_within_the_contract(answered: Response, outcome: Outcome) -> None:
    assert meaning(answered, SHIPPED, ID, NOW) == outcome


@pytest.mark.parametrize(
    ("answered", "place"),
    [
        (answer(body={"contract": "2", "id": ID, "accepted": True}), "/properties/contract/const"),
        (answer(body={"contract": "1", "id": ID, "accepted": False}), "/properties/accepted/const"),
        (answer(body={"contract": "1", "id": "msg_2", "accepted": True}), "id is not the id"),
        (answer(body={"contract": "1", "id": ID}), "/required (accepted)"),
        (answer(body=[]), "/type"),
        (answer(body=b"{"), "no JSON"),
        (answer(body=b"[" * 50_000), "no JSON"),
        (answer(body=b'"' + b"x" * MAX_BYTES + b'"'), "longer than 64 KiB"),
        (answer(body=b"\xff\xfe\xfd"), "no JSON"),
        (answer(kind="text/html"), "no JSON by its content type"),
        (answer(204, b"", "application/octet-stream"), "no JSON by its content type"),
        (answer(302), "status 302"),
        (answer(304), "status 304"),
        (answer(404, b"<html>", "text/html"), "status 404: no JSON by its content type"),
        (answer(422, {"contract": "2", "error": "no"}), "status 422: /properties/contract/const"),
    ],
)
def test_an_answer_outside_the_contract_says_where_in_the_contracts_own_words(answered: Response, place: str) -> None:
    outcome = meaning(answered, SHIPPED, ID, NOW)
    assert isinstance(outcome, Mismatch)
    assert place in (outcome.place or "")


def test_of_an_answer_no_name_and_no_value_is_told() -> None:
    strict = json.loads(EXAMPLE.read_text())
    strict["answer"]["additionalProperties"] = {"type": "integer"}
    contract = Contract.model_validate(strict)
    body = {"contract": "2", "receipt": ID, "Kari Nordmann": "kari@example.org"}
    outcome = meaning(answer(body=body), contract, ID, NOW)
    assert outcome == Mismatch(place="answer: /additionalProperties/type")


def test_the_receivers_library_verifies_either_secret_and_refuses_another_body_or_an_old_signature() -> None:
    now = datetime.now(UTC)
    headers = Signer(f"{SECRET} {OTHER_SECRET}").headers(ID, "{}", now)
    for secret in (SECRET, OTHER_SECRET):
        assert Webhook(secret).verify("{}", headers) == {}
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify("[]", headers)
    old = Signer(SECRET).headers(ID, "{}", now - timedelta(minutes=6))
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(SECRET).verify("{}", old)


def test_a_delivery_has_one_id_however_often_it_is_made_and_no_other_has_it() -> None:
    first = change_of(key="a")
    others = [
        change_of(key="b"),
        change_of(version=8, key="a"),
        SyncOperation("public.certifications", "a", version=7, target="other"),
        SyncOperation("public.others", "a", version=7, target="portal"),
    ]
    assert webhook_id(first) == webhook_id(change_of(key="a"))
    assert len({webhook_id(each) for each in [first, *others]}) == 5


@pytest.mark.parametrize(
    "secret", ["", "YWJj" * 8, "whsec_YWJj", "whsec_" + "YWJj" * 30, "whsec_n0t base64", f"{SECRET} {SECRET} {SECRET}"]
)
def test_a_secret_that_is_none_is_refused_and_not_quoted(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="DYNAMICS_SYNC_PORTAL_SECRET") as refusal:
        Signer(secret)
    assert not secret or secret not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://portal.example.org", "https://portal.example.org/e"),
        ("https://portal.example.org/api/", "https://portal.example.org/api/e"),
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081/e"),
    ],
)
def test_events_go_to_the_contracts_path_below_the_portals_address(url: str, address: str) -> None:
    assert portal_address(url, "/e") == address


@pytest.mark.parametrize(
    "url", ["http://portal.example.org", "portal.example.org", "https://u:p@x.org", "https://x.org/?a=1", ""]
)
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DYNAMICS_SYNC_PORTAL_URL"):
        portal_address(url, "/e")


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda contract: contract.pop(name)


def table(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda contract: contract["tables"][0].update(fields)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("version"), "version: Field required"),
        (without("answer"), "answer: Field required"),
        (lambda contract: contract.update(path="events"), "path: "),
        (lambda contract: contract.update(answer={"type": "objekt"}), "answer: no JSON Schema: $.type"),
        (lambda contract: contract.update(answer=[]), "answer: a JSON Schema is wanted"),
        (lambda contract: contract.update(answer={"$ref": "https://example.org/x"}), "leads nowhere"),
        (lambda contract: contract.update(request={"$ref": "#/$defs/x"}), "request: $ref '#/$defs/x' leads nowhere"),
        (lambda contract: contract.update(respones={}), "respones: Extra inputs"),
        (lambda contract: contract["tables"].append(contract["tables"][0]), "mapped twice"),
        (table(columns={"a": "x", "b": "x"}), "two columns are sent as 'x'"),
        (table(columns={"a": {"to": "x", "lookup": {"entity_set": "y"}}}), "a lookup, which only Dynamics has"),
    ],
)
def test_a_contract_that_cannot_be_used_is_refused_with_the_place(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], words: str
) -> None:
    document = json.loads(EXAMPLE.read_text())
    spoil(document)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))
    with pytest.raises(MappingError) as refusal:
        read_contract(path)
    assert str(refusal.value).startswith(f"The portal's contract {path} cannot be used:")
    assert words in str(refusal.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 50_000, b"\xff"], ids=["empty", "half", "deep", "not UTF-8"])
def test_a_contract_that_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text)
    with pytest.raises(MappingError, match="not valid JSON"):
        read_contract(path)


def test_a_contract_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="DYNAMICS_SYNC_PORTAL_CONTRACT"):
        read_contract(tmp_path / "absent.json")


GIVEN = {"portal_url": "https://portal.example.org", "portal_secret": SECRET}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"portal_url": GIVEN["portal_url"]}, "DYNAMICS_SYNC_PORTAL_SECRET must be set too"),
        ({"portal_secret": SECRET}, "DYNAMICS_SYNC_PORTAL_URL must be set too"),
        ({"portal_contract": "absent.json"}, "DYNAMICS_SYNC_PORTAL_URL and DYNAMICS_SYNC_PORTAL_SECRET must be set"),
        (GIVEN | {"portal_url": "http://portal.example.org"}, "DYNAMICS_SYNC_PORTAL_URL must look like https://"),
        (GIVEN | {"portal_secret": "s3cret"}, "DYNAMICS_SYNC_PORTAL_SECRET must be whsec_"),
        (GIVEN | {"portal_contract": "absent.json"}, "The portal's contract absent.json cannot be read"),
    ],
)
def test_settings_that_make_no_portal_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        portal_of(load_settings(**given))


def test_without_settings_there_is_no_portal_and_with_them_there_are_two_targets() -> None:
    assert portal_of(load_settings()) is None
    assert target_names(load_settings()) == ("dynamics",)
    assert portal_of(load_settings(**GIVEN)) is not None
    assert target_names(load_settings(**GIVEN)) == ("dynamics", "portal")
    assert SECRET not in repr(load_settings(**GIVEN))
