"""`POST /webhooks/dynamics/v1`: what Dynamics tells is stored as it came, and nothing else is done before the answer.

Dataverse waits 60 s, and tries once more only after 502, 503 and 504 (Microsoft: "Use webhooks to create external
handlers for server events"). So whatever is authentic is stored, whether or not anybody understands it, and where it
cannot be stored the answer is 503.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynamics_sync.dynamics.webhooks.delivery import delivery_from
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.inbox_ports import Delivery
from dynamics_sync.web.secrets import WebhookSecrets

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

PATH = "/webhooks/dynamics/v1"

MOST_BYTES = 1024 * 1024
"""Dataverse leaves parts out of what is longer than 256 KB."""

MOST_AT_ONCE = 32
"""Deliveries that are held in memory at once; the others wait, unread."""

ROOM_SECONDS = 10.0
"""How long they wait, before they are asked to come again."""

BODY_SECONDS = 20.0
"""How long a body may take to arrive."""

PATIENCE_SECONDS = 1.0
"""How long an answer waits for a database that does not answer at all. One that does is given 50 ms."""

TOLD_EVERY_SECONDS = 10.0
"""Refusals are told together: whoever knocks often shall not fill the log."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """What the endpoint works with."""

    secrets: WebhookSecrets
    receive: Callable[[Delivery], Awaitable[None]]
    """Stores a delivery; DatabaseError where it may not be stored."""
    stored: Callable[[], None]
    """Called when there is something to apply."""


class _TooLongError(Exception):
    """The body is longer than any that Dataverse sends."""


class _IncompleteError(Exception):
    """The sender left, or stood still, before the body was complete."""


def add_webhooks(app: "FastAPI", webhooks: Webhooks) -> None:
    """Put the endpoint into an application."""
    # Slow to import: commands that serve no pages do without.
    import fastapi
    from fastapi.responses import JSONResponse

    room = asyncio.Semaphore(MOST_AT_ONCE)
    refusals = _Refusals()

    @app.post(PATH, status_code=202, responses=_RESPONSES, openapi_extra=_DESCRIBED)
    async def take(request: fastapi.Request) -> JSONResponse:
        if not webhooks.secrets.admit(request.scope["headers"], request.scope["query_string"]):
            refusals.note()
            return JSONResponse({"status": "refused"}, status_code=401)
        status = await _take(request, webhooks, room)
        if status == 202:
            webhooks.stored()
        return JSONResponse({"status": _TOLD[status]}, status_code=status)


async def _take(request: "Request", webhooks: Webhooks, room: asyncio.Semaphore) -> int:
    """Store what a sender that knows the secret has to say; the status of the answer."""
    try:
        async with asyncio.timeout(ROOM_SECONDS):
            await room.acquire()
    except TimeoutError:
        return 503
    storing = None
    try:
        body = await _body_of(request)
        headers = webhooks.secrets.without_secret(dict(request.headers))
        storing = asyncio.ensure_future(webhooks.receive(delivery_from(headers, body)))
        storing.add_done_callback(lambda _: room.release())
        return 202 if await _is_stored(storing) else 503
    except _TooLongError:
        return 413
    except _IncompleteError:
        return 400
    finally:
        if storing is None:
            room.release()


async def _body_of(request: "Request") -> bytes:
    """The body, never more of it than may be kept."""
    from starlette.requests import ClientDisconnect

    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 9 or int(declared) > MOST_BYTES):
        raise _TooLongError
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise _TooLongError
    except (ClientDisconnect, TimeoutError):
        raise _IncompleteError from None
    return bytes(body)


async def _is_stored(storing: "asyncio.Future[None]") -> bool:
    """Whether it surely is. What is still under way may be stored later: its next try is then the same delivery."""
    await asyncio.wait([storing], timeout=PATIENCE_SECONDS)
    error = storing.exception() if storing.done() else TimeoutError()
    if error is not None:
        emit("inbox.not_stored", "error", exception_type=type(error).__name__)
    return error is None


class _Refusals:
    """Counts senders without the secret."""

    def __init__(self) -> None:
        self._count = 0
        self._told_at = float("-inf")

    def note(self) -> None:
        self._count += 1
        if time.monotonic() - self._told_at >= TOLD_EVERY_SECONDS:
            emit("inbox.refused", "warning", count=self._count)
            self._count, self._told_at = 0, time.monotonic()


_TOLD = {202: "stored", 400: "incomplete", 413: "too long", 503: "not stored"}

_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"description": "Stored."},
    400: {"description": "The request ended before its body did."},
    401: {"description": "The secret is missing or wrong."},
    413: {"description": f"The body is longer than {MOST_BYTES} bytes."},
    503: {"description": "Not stored: send it once more."},
}

_DESCRIBED: dict[str, Any] = {
    "summary": "What Dataverse's webhooks send: a RemoteExecutionContext, in JSON.",
    "requestBody": {"required": False, "content": {"application/json": {"schema": {}}}},
}
