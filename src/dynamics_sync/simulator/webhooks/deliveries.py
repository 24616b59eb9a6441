"""One delivery: what is sent where, what was answered, and whether it is sent once more."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import uuid4

import aiohttp

from dynamics_sync.simulator.tables import JsonObject
from dynamics_sync.simulator.webhooks.context import Event, body

SENT_ONCE_MORE = (502, 503, 504)
"""The answers after which there is one more attempt. After no other one, and after no silence."""


class Outcome(StrEnum):
    """How far a delivery is."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"
    LOST = "lost"
    """Never sent: on purpose, or because too many were waiting."""


@dataclass(slots=True)
class Delivery:
    """One event on its way to one receiver. Times are seconds since the epoch."""

    event: Event
    is_oversized: bool = False
    """Trimmed on purpose."""
    id: str = field(default_factory=lambda: str(uuid4()))
    outcome: Outcome = Outcome.WAITING
    status: int | None = None
    """The last answer; None while there is none, and where none came."""
    attempts: int = 0
    problem: str = ""
    """What went wrong, in words that hold neither an address nor an answer."""
    done_at: float | None = None

    def document(self) -> JsonObject:
        """As `/_simulator/webhooks/deliveries` shows it. Neither secrets nor the body are in it."""
        change = self.event.change
        return {
            "id": self.id,
            "registration": self.event.registration.id,
            "mode": self.event.registration.mode,
            "at": change.at,
            "done_at": self.done_at,
            "message": change.message,
            "entity": change.table.logical_name,
            "record_id": change.record_id,
            "operation_id": self.event.operation_id,
            "outcome": self.outcome,
            "status": self.status,
            "attempts": self.attempts,
            "problem": self.problem,
        }


class Sender:
    """Sends deliveries, each with at most one more attempt."""

    def __init__(self, now: Callable[[], float], timeout_seconds: float) -> None:
        self._now = now
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._requests = 0
        self.organization = ""
        """The environment's host, which receivers are told."""

    async def send(self, delivery: Delivery) -> None:
        """Send, and note what became of it. A receiver's fault is never an exception."""
        delivery.outcome = Outcome.SENDING
        content, is_trimmed = body(delivery.event, delivery.is_oversized)
        await self._attempt(delivery, content, is_trimmed)
        if delivery.status in SENT_ONCE_MORE:
            await self._attempt(delivery, content, is_trimmed)
        answered_well = delivery.status is not None and 200 <= delivery.status < 300
        delivery.outcome = Outcome.DELIVERED if answered_well else Outcome.FAILED
        if delivery.status is not None and not answered_well:
            delivery.problem = f"The receiver answered {delivery.status}."
        delivery.done_at = self._now()

    async def close(self) -> None:
        """Close the connections; the next delivery opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _attempt(self, delivery: Delivery, content: bytes, is_trimmed: bool) -> None:
        """Only the status counts. A redirection is not followed: it is no 2xx."""
        if self._session is None:
            # A connection that is kept could be closed by the receiver just when it is used again: that is no failure.
            connector = aiohttp.TCPConnector(force_close=True)
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, timeout=self._timeout)
        delivery.attempts += 1
        delivery.status = None
        address, headers = delivery.event.registration.address, self._headers(delivery.event, is_trimmed)
        try:
            async with self._session.post(address, data=content, headers=headers, allow_redirects=False) as answer:
                delivery.status = answer.status
        except TimeoutError:
            delivery.problem = "The receiver did not answer in time."
        except (aiohttp.ClientError, OSError):
            delivery.problem = "The receiver cannot be reached."

    def _headers(self, event: Event, is_trimmed: bool) -> dict[str, str]:
        """`x-request-id` stands in older documentation only, and here in every other request; it is the request's own,
        so a further attempt has another one."""
        self._requests += 1
        headers = {
            **event.registration.headers,
            "Content-Type": "application/json; charset=utf-8",
            "x-ms-dynamics-organization": self.organization,
            "x-ms-dynamics-entity-name": event.change.table.logical_name,
            "x-ms-dynamics-request-name": event.change.message,
            "x-ms-correlation-request-id": event.origin.correlation_id,
        }
        if self._requests % 2 == 1:
            headers["x-request-id"] = str(uuid4())
        if is_trimmed:
            headers["x-ms-dynamics-msg-size-exceeded"] = "True"
        return headers
