"""The portal beside the simulated Dynamics: signed events in, a public listing out."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from standardwebhooks import Webhook

from dynamics_sync.simulator import PORTAL_SECRET, Simulator, SimulatorConfig

from .wire import TABLES

MENTOR = "m1"


class Sender:
    """Somebody who tells the portal things."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def send(
        self,
        version: int,
        *,
        delivery: str | None = None,
        contract: str = "1",
        secret: str = PORTAL_SECRET,
        age: timedelta = timedelta(),
        headers: dict[str, str] | None = None,
        **attributes: object,
    ) -> tuple[int, Any]:
        """Status and body of the answer."""
        names = {"1": "peer_mentor_id", "2": "mentor_id"}
        told = {names[contract]: MENTOR, "status": "active", "issued_on": None, "expires_on": "2099-12-31"}
        data = {"contract": contract, "key": "k", "version": version, "attributes": told | attributes}
        body = json.dumps({"type": "certification.changed", "timestamp": "", "data": data})
        at, name = datetime.now(UTC) - age, delivery or f"msg_{version}"
        signed = {
            "webhook-id": name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(secret).sign(name, at, body),
            "idempotency-key": name,
        }
        url = f"{self._url}/portal/v1/events"
        async with self._http.post(url, data=body, headers=signed | (headers or {})) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def control(self, what: str, /, **wish: object) -> int:
        async with self._http.post(f"{self._url}/_simulator/{what}", json=wish) as response:
            return response.status

    async def listed(self) -> list[str]:
        async with self._http.get(f"{self._url}/portal/mentors") as response:
            return list((await response.json())["mentors"])


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Simulator(SimulatorConfig(TABLES)) as simulator, aiohttp.ClientSession() as http:
        yield Sender(http, simulator.url)
        assert simulator.unforeseen == []


async def test_what_it_takes_is_listed_while_it_is_valid(sender: Sender) -> None:
    assert await sender.send(1) == (200, {"contract": "1", "id": "msg_1", "accepted": True})
    assert await sender.listed() == [MENTOR]


@pytest.mark.parametrize(
    "attributes",
    [
        {"status": "revoked"},
        {"status": "pending"},
        {"expires_on": "2020-01-01"},
        {"expires_on": None},
        {"issued_on": "2099-01-01"},
    ],
)
async def test_nobody_is_listed_who_is_not_valid_today(sender: Sender, attributes: dict[str, object]) -> None:
    assert (await sender.send(1, **attributes))[0] == 200
    assert await sender.listed() == []


async def test_what_comes_late_changes_nothing(sender: Sender) -> None:
    await sender.send(2, status="revoked")
    assert (await sender.send(1))[0] == 200
    assert await sender.listed() == []


async def test_a_repeated_delivery_is_answered_alike_and_changes_nothing(sender: Sender) -> None:
    first = await sender.send(1)
    assert await sender.send(2, delivery="msg_1", status="revoked") == first
    assert await sender.listed() == [MENTOR]


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "whsec_" + "b3RoZXIg" * 4},
        {"age": timedelta(minutes=6)},
        {"age": -timedelta(minutes=6)},
        {"headers": {"webhook-signature": "nonsense"}},
        {"headers": {"webhook-id": "msg_2"}},
        {"headers": {"webhook-timestamp": "soon"}},
    ],
)
async def test_what_is_not_signed_now_and_by_the_secret_is_refused(sender: Sender, wrong: dict[str, Any]) -> None:
    assert await sender.send(1, **wrong) == (401, {"contract": "1", "error": "the signature is not valid"})
    assert await sender.listed() == []


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"headers": {"idempotency-key": "other"}}, 400),
        ({"contract": "2"}, 422),
        ({"status": ["active"], "expires_on": 7}, 422),
        ({"peer_mentor_id": None, "expires_on": "soon"}, 422),
    ],
)
async def test_what_is_not_as_agreed_is_refused(sender: Sender, wrong: dict[str, Any], status: int) -> None:
    assert (await sender.send(1, **wrong))[0] == status
    assert await sender.listed() == []


async def test_it_drifts_and_comes_back(sender: Sender) -> None:
    await sender.control("portal", contract="2")
    assert await sender.send(1) == (422, {"contract": "2", "problem": "contract 2 is wanted"})
    assert await sender.send(2, contract="2") == (200, {"contract": "2", "receipt": "msg_2"})
    await sender.control("portal", answers="2")
    assert await sender.send(3) == (200, {"contract": "2", "receipt": "msg_3"})
    await sender.control("portal", log_in_page=True)
    assert "Sign in" in (await sender.send(4))[1]
    await sender.control("portal")
    assert (await sender.send(5))[1]["accepted"] is True
    for unknown in ({"contract": "3"}, {"contracts": "2"}, {"log_in_page": 1}, {"secret": ""}):
        assert await sender.control("portal", **unknown) == 400


async def test_a_fault_meets_the_portal_alone_and_one_key_of_it(sender: Sender) -> None:
    await sender.control("faults", kind="status", status=503)
    assert (await sender.send(1))[0] == 200
    await sender.control("faults", kind="status", status=503, path="portal", key="other")
    assert (await sender.send(2))[0] == 200
    await sender.control("faults", kind="status", status=503, path="portal", key="k")
    assert (await sender.send(3))[0] == 503
