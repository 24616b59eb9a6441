"""One request and one reply, the same for a request of its own and for a part of a batch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.tables import JsonObject

ROOT = "/api/data/v9.2"


@dataclass(frozen=True, slots=True)
class Request:
    """A Web API request. `path` is decoded and relative to the root; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    base: str
    """Scheme and host that the client used, for addresses in replies."""
    keys: list[str] = field(default_factory=list)
    """The keys or ids that it wrote, for the simulator's own log."""

    @property
    def prefer(self) -> dict[str, str]:
        """The preferences of all `Prefer` values."""
        wishes = (wish.strip().partition("=") for wish in self.headers.get("prefer", "").split(","))
        return {name.strip(): value.strip('"') for name, _, value in wishes if name}

    def json(self, entity_set: str) -> JsonObject:
        """The body as a JSON object.

        Raises:
            DataverseError: it is none.
        """
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            raise errors.bad_payload(entity_set, "the payload is not valid JSON.") from None
        if not isinstance(document, dict):
            raise errors.bad_payload(entity_set, "an object was expected.")
        return document


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `document` is sent as JSON."""

    status: int
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"" if self.document is None else json.dumps(self.document).encode()


def error_reply(error: errors.DataverseError) -> Reply:
    return Reply(error.status, {"error": {"code": error.code, "message": error.message}}, error.headers)


def request_from(method: str, address: str, headers: Mapping[str, str], body: bytes, base: str) -> Request:
    """A request from an address, absolute or relative.

    Raises:
        DataverseError: the address does not lie below the root.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise errors.malformed("The request URI is not valid.") from None
    path = unquote(parts.path)
    if path.startswith(ROOT):
        path = path.removeprefix(ROOT)
    elif path.startswith("/") and not address.startswith("/$"):
        raise errors.no_such_segment(path.strip("/").split("/")[0])
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Request(method.upper(), path.strip("/"), query, headers, body, base)
