"""What tells one delivery from another, before anybody knows whether it can be understood.

Sources: Microsoft's pages "Use webhooks to create external handlers for server events" and
"IExecutionContext.OperationId": the id of the system job that runs an asynchronous step; empty for a synchronous one.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from re import compile as pattern
from typing import Any

from dynamics_sync.core.incoming import moment
from dynamics_sync.dynamics.webhooks.documents import document_from, guid
from dynamics_sync.sync.inbox_ports import Delivery

SIZE_EXCEEDED = "x-ms-dynamics-msg-size-exceeded"

KEPT_HEADERS = (
    "x-ms-correlation-request-id",
    "x-ms-dynamics-entity-name",
    SIZE_EXCEEDED,
    "x-ms-dynamics-organization",
    "x-ms-dynamics-request-name",
    "x-request-id",
)
"""All others are dropped: one of them may be the secret."""

SYNCHRONOUS = 0

TELLING_APART = ("MessageName", "PrimaryEntityName", "PrimaryEntityId", "OperationCreatedOn")

MOST_CHARACTERS = 200
"""Of a header's value."""

_NAME = pattern(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def delivery_from(headers: Mapping[str, str], body: bytes) -> Delivery:
    """Describe whatever came. Never raises.

    Args:
        headers: by name in small letters.
    """
    kept = {name: _printable(headers[name]) for name in KEPT_HEADERS if name in headers}
    document = document_from(body) or {}
    entity = _name(document.get("PrimaryEntityName")) or _name(kept.get("x-ms-dynamics-entity-name"))
    return Delivery(
        delivery_id=_identity(kept, document, body),
        headers=kept,
        body=body,
        entity_name=entity.lower() if entity else None,
        message=_name(document.get("MessageName")) or _name(kept.get("x-ms-dynamics-request-name")),
        record_id=guid(document.get("PrimaryEntityId")),
        operation_at=moment(document.get("OperationCreatedOn")),
        correlation_id=guid(document.get("CorrelationId")) or guid(kept.get("x-ms-correlation-request-id")),
    )


def _identity(headers: Mapping[str, str], document: Mapping[str, Any], body: bytes) -> str:
    """A system job is one run of one step for one record, so its id would do. The rest is for senders that use one id
    twice: to store a delivery once more does no harm, to take two for one loses a change.

    A synchronous step has no job, and a request's id is shared by all that the request caused. There, equal bodies of
    one request are one delivery.
    """
    operation = guid(document.get("OperationId"))
    if operation is not None and document.get("Mode") != SYNCHRONOUS:
        told = [document.get(part) for part in TELLING_APART]
        step = document.get("OwningExtension")
        told.append(step.get("Id") if isinstance(step, dict) else None)
        texts = [part if isinstance(part, str) else None for part in told]
        return f"operation {operation} {_digest(json.dumps(texts).encode())}"
    if request := headers.get("x-request-id") or operation:
        return f"request {_digest(request.encode())} {_digest(body)}"
    return f"body {_digest(body)}"


def _digest(value: bytes) -> str:
    return blake2b(value, digest_size=16).hexdigest()


def _printable(value: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in value[:MOST_CHARACTERS])


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None
