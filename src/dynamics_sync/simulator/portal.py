"""A portal that is told of certifications by webhooks, and lists the mentors who are valid today.

Written from the Standard Webhooks specification (standardwebhooks.com), whose library verifies each request, its time
included. It keeps the newest version of each key, and answers a delivery that comes again as it did the first time.
`Drift` is how its contract changes under whoever sends to it.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from dynamics_sync.simulator.connections import GARBLED, break_off, cut
from dynamics_sync.simulator.faults import Fault, FaultKind, Faults

PORTAL_SECRET = "whsec_c2ltdWxhdG9yIHBvcnRhbCBzZWNyZXQgMDE="  # noqa: S105 - everybody may know it
LISTED_STATUSES = ("active", "expiring")

MENTOR = {"1": "peer_mentor_id", "2": "mentor_id"}
"""What each version of the contract calls the mentor."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """How the portal is now, whatever was agreed.

    Raises:
        ValueError: there is no such contract.
    """

    contract: str = "1"
    """The version of the requests that it takes."""
    answers: str | None = None
    """The version of its answers; None for the same."""
    log_in_page: bool = False
    """It answers with a page to sign in at, and takes nothing."""
    redirect: bool = False
    """It sends everybody to such a page."""

    def __post_init__(self) -> None:
        for version in (self.contract, self.answer_version):
            if version not in MENTOR:
                raise ValueError(f"there is no contract {version!r}; there is {', '.join(MENTOR)}")

    @property
    def answer_version(self) -> str:
        return self.answers or self.contract

    def acceptance(self, webhook_id: str) -> Json:
        """The body of a success."""
        if self.answer_version == "1":
            return {"contract": "1", "id": webhook_id, "accepted": True}
        return {"contract": self.answer_version, "receipt": webhook_id}

    def refusal(self, why: str) -> Json:
        """The body of a refusal."""
        name = "error" if self.answer_version == "1" else "problem"
        return {"contract": self.answer_version, name: why}


@dataclass(slots=True)
class Delivery:
    """One request, as `GET /_simulator/portal` shows it. Times are seconds since the epoch."""

    at: float
    id: str | None = None
    key: str | None = None
    version: int | None = None
    status: int | None = None
    """None while it is under way, and where the connection was cut."""
    done_at: float | None = None
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """What it was last told of a certification."""

    version: int
    attributes: Mapping[str, Any] | None


class RefusedError(Exception):
    """A request that the portal does not take."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass
class Portal:
    """What it was told, and whom it lists."""

    now: Callable[[], float]
    faults: Faults
    secrets: tuple[str, ...] = (PORTAL_SECRET,)
    """Any of them signs."""
    drift: Drift = Drift()
    deliveries: list[Delivery] = field(default_factory=list)
    _known: dict[str, _Known] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    async def events(self, http: web.Request) -> web.Response:
        """`POST /portal/v1/events`."""
        delivery = Delivery(self.now(), http.headers.get("webhook-id"))
        self.deliveries.append(delivery)
        body = await http.read()
        fault = self.faults.take_for_portal(http.method, _key_of(body))
        if fault is not None and fault.kind in (FaultKind.TIMEOUT, FaultKind.RESET, FaultKind.GARBLED):
            return await break_off(http, self.faults, fault)
        if fault is not None and fault.kind is FaultKind.DELAY:
            await asyncio.sleep(fault.seconds)
        response = self._faulty(fault) or self._take(body, http.headers, delivery)
        delivery.done_at = self.now()
        if fault is not None and fault.kind is FaultKind.RESET_AFTER_WRITE:
            return cut(http)
        delivery.status = response.status
        return response

    async def mentors(self, _: web.Request) -> web.Response:
        """`GET /portal/mentors`: who is on the public listing, by the dates that it was told, today."""
        today = datetime.fromtimestamp(self.now(), UTC).date()
        listed = {
            known.attributes["mentor"]
            for known in self._known.values()
            if known.attributes is not None and _is_valid(known.attributes, today)
        }
        return web.json_response({"mentors": sorted(listed)})

    def change(self, wish: Mapping[str, Any]) -> None:
        """Be another portal from now on: what is not named is as at first.

        Raises:
            ValueError: a field is unknown or has a wrong type.
        """
        drift = {name: value for name, value in wish.items() if name != "secret"}
        if unknown := set(drift) - {each.name for each in fields(Drift)}:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        for name, value in drift.items():
            if not isinstance(value, str if name in ("contract", "answers") else bool):
                raise ValueError(f"{name} has a wrong type")
        self.drift = Drift(**drift)
        if "secret" in wish:
            self.secrets = (_secret(wish["secret"]),)

    def _faulty(self, fault: Fault | None) -> web.Response | None:
        if fault is None or fault.kind is not FaultKind.STATUS:
            return None
        after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
        return web.json_response(self.drift.refusal("a fault on purpose"), status=fault.status, headers=after)

    def _take(self, body: bytes, headers: Mapping[str, str], delivery: Delivery) -> web.Response:
        if self.drift.redirect:
            return web.Response(status=302, headers={"Location": "/portal/log-in"})
        if self.drift.log_in_page:
            return web.Response(text=GARBLED, content_type="text/html")
        try:
            event = self._verified(body, headers)
            self._apply(event, delivery)
        except RefusedError as refused:
            return web.json_response(self.drift.refusal(refused.why), status=refused.status)
        return web.json_response(self.drift.acceptance(delivery.id or ""))

    def _verified(self, body: bytes, headers: Mapping[str, str]) -> Json:
        """The event, if it was signed with one of the secrets within the last five minutes."""
        for secret in self.secrets:
            try:
                Webhook(secret).verify(body, dict(headers), json_parse=False)
                break
            except (WebhookVerificationError, ValueError):
                continue
        else:
            raise RefusedError(401, "the signature is not valid")
        if headers.get("idempotency-key") != headers["webhook-id"]:
            raise RefusedError(400, "idempotency-key must be the webhook's id")
        event = _parsed(body)
        if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
            raise RefusedError(422, "there is no data")
        return event

    def _apply(self, event: Json, delivery: Delivery) -> None:
        data = event["data"]
        if data.get("contract") != self.drift.contract:
            raise RefusedError(422, f"contract {self.drift.contract} is wanted")
        key, version, attributes = data.get("key"), data.get("version"), data.get("attributes")
        if not isinstance(key, str) or not isinstance(version, int):
            raise RefusedError(422, "key and version are wanted")
        delivery.key, delivery.version = key, version
        delivery.is_repeated = delivery.id in self._seen
        told = None if event.get("type") == "certification.deleted" else self._read(attributes)
        if not delivery.is_repeated and ((old := self._known.get(key)) is None or version > old.version):
            self._known[key] = _Known(version, told)
        self._seen.add(delivery.id or "")

    def _read(self, attributes: Any) -> Mapping[str, Any]:
        mentor = MENTOR[self.drift.contract]
        try:
            dates = {name: attributes[name] and date.fromisoformat(attributes[name]) for name in DATES}
            return {"mentor": str(attributes[mentor]), "status": attributes["status"], **dates}
        except (KeyError, TypeError, ValueError):
            raise RefusedError(422, f"{mentor}, status, {' and '.join(DATES)} are wanted") from None


DATES = ("issued_on", "expires_on")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _secret(given: object) -> str:
    if not isinstance(given, str) or not given.removeprefix("whsec_"):
        raise ValueError("secret must be whsec_ and base64")
    Webhook(given)  # ValueError if it is no base64
    return given


def _key_of(body: bytes) -> str | None:
    """Of an event that nobody has verified yet, for faults that are meant for one key."""
    match _parsed(body):
        case {"data": {"key": str() as key}}:
            return key
    return None


def _is_valid(attributes: Mapping[str, Any], today: date) -> bool:
    """Without a last day it is not known to be valid, so that it is not."""
    begun = attributes["issued_on"] is None or attributes["issued_on"] <= today
    ended = attributes["expires_on"] is None or attributes["expires_on"] < today
    return attributes["status"] in LISTED_STATUSES and begun and not ended
