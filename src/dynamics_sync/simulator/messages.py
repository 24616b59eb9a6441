"""One request and one reply, the same for a request of its own and for a part of a batch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import below_root
from dynamics_sync.simulator.tables import JsonObject


@dataclass
class Request:
    """A Web API request. `path` is decoded and relative to the root; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    base: str
    """Scheme and host, for addresses in replies."""
    keys: list[str] = field(default_factory=list)
    """The keys or ids that it writes, for the request log."""
    user_id: str = ""
    """Who asks."""

    @cached_property
    def prefer(self) -> dict[str, str]:
        """The preferences of all `Prefer` values, by name in lower case."""
        wishes = (wish.strip().partition("=") for wish in self.headers.get("prefer", "").split(","))
        return {name.strip().lower(): value.strip().strip('"') for name, _, value in wishes if name}

    @cached_property
    def entity_set(self) -> str:
        """The first name of the path."""
        return self.path.partition("(")[0].partition("/")[0]

    def json(self) -> JsonObject:
        """The body as a JSON object.

        Raises:
            DataverseError: it is none.
        """
        return self._document.copy()

    @cached_property
    def _document(self) -> JsonObject:
        try:
            document = json.loads(self.body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise errors.bad_payload(self.entity_set, "The payload is not valid JSON.") from None
        if not isinstance(document, dict):
            raise errors.bad_payload(self.entity_set, "The payload is not a JSON object.")
        return document


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `document` is sent as JSON, `text` as it is."""

    status: int
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    wrote: str | None = None
    """Address of the record that was written, which a later part of a change set may refer to."""

    @property
    def body(self) -> bytes:
        """What is sent."""
        if self.text is not None:
            return self.text.encode()
        return b"" if self.document is None else json.dumps(self.document).encode()

    @property
    def content_type(self) -> str | None:
        """Of the body, if there is one."""
        if self.text is not None:
            return "text/plain"
        return None if self.document is None else "application/json; odata.metadata=minimal"


def error_reply(error: errors.DataverseError, request: Request | None = None) -> Reply:
    """An error as an answer, with the details that `odata.include-annotations="*"` asks for.

    Microsoft: "Compose HTTP requests and handle errors", on including additional details with errors.
    """
    document: JsonObject = {"code": error.code, "message": error.message}
    if request is not None and request.prefer.get("odata.include-annotations") == "*":
        document |= {
            "@Microsoft.PowerApps.CDS.ErrorDetails.OperationStatus": "0",
            "@Microsoft.PowerApps.CDS.ErrorDetails.SubErrorCode": _decimal(error.code),
            "@Microsoft.PowerApps.CDS.HelpLink": "http://go.microsoft.com/fwlink/?LinkID=398563",
            "@Microsoft.PowerApps.CDS.InnerError.Message": error.message,
        }
    return Reply(error.status, {"error": document}, error.headers)


def _decimal(code: str) -> str:
    try:
        return str(int(code, 16))
    except ValueError:
        return "0"


def request_from(method: str, target: str, headers: Mapping[str, str], body: bytes, base: str) -> Request:
    """A request from a request line's target: an encoded path with its query.

    Raises:
        DataverseError: it does not lie below the root.
    """
    encoded_path, _, query = target.partition("?")
    path = unquote(encoded_path)
    relative = below_root(path)
    if relative is None:
        raise errors.no_such_resource(path)
    return Request(method.upper(), relative, dict(parse_qsl(query, keep_blank_values=True)), headers, body, base)


def request_target(address: str) -> str:
    """The path and query of an absolute address; a relative one as it is.

    Raises:
        DataverseError: it is no address.
    """
    if not address.lower().startswith(("http://", "https://")):
        return address
    try:
        parts = urlsplit(address)
    except ValueError:
        raise errors.malformed(f"Invalid URI: '{address}'.") from None
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
