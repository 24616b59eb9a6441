"""What `POST /_simulator/webhooks` declares: an address, and the messages of a table that it is told of."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar
from uuid import uuid4

from yarl import URL

from dynamics_sync.simulator.records import Change, Message
from dynamics_sync.simulator.tables import JsonObject, Table

Choice = TypeVar("Choice", bound=StrEnum)

_FIELDS = (
    "url",
    "entity",
    "messages",
    "authentication",
    "mode",
    "pre_image",
    "post_image",
    "filtering_attributes",
    "name",
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[ -~]*", re.ASCII)


class AuthenticationKind(StrEnum):
    """How a receiver is shown that Dataverse is asking. All are secrets that never change; nothing is signed."""

    HTTP_HEADER = "HttpHeader"
    WEBHOOK_KEY = "WebhookKey"
    HTTP_QUERY_STRING = "HttpQueryString"


class Mode(StrEnum):
    """When it is sent: before the change holds, or some time after it."""

    SYNCHRONOUS = "synchronous"
    ASYNCHRONOUS = "asynchronous"


@dataclass(frozen=True, slots=True)
class Registration:
    """A service endpoint, and a step for each of its messages. `steps` are the steps' ids.

    With `filtering_attributes`, an update is told of only if it gives one of them. `pre_image` and `post_image` name
    the columns that the receiver is shown as they were before a change, and as they are after it.
    """

    id: str
    name: str
    url: URL
    table: Table
    steps: Mapping[Message, str]
    mode: Mode
    kind: AuthenticationKind
    _secrets: Mapping[str, str] = field(repr=False)
    pre_image: tuple[str, ...] = ()
    post_image: tuple[str, ...] = ()
    filtering_attributes: tuple[str, ...] = ()

    def is_told_of(self, change: Change) -> bool:
        """Whether a change is one of those that it is registered for."""
        if change.table is not self.table or change.message not in self.steps:
            return False
        if change.message is not Message.UPDATE or not self.filtering_attributes:
            return True
        given = {self.table.columns_by_read_name[name].name for name in change.given}
        return not given.isdisjoint(self.filtering_attributes)

    @property
    def address(self) -> URL:
        """Where to send, with the secrets that belong there."""
        match self.kind:
            case AuthenticationKind.WEBHOOK_KEY:
                return self.url.update_query({"code": next(iter(self._secrets.values()))})
            case AuthenticationKind.HTTP_QUERY_STRING:
                return self.url.update_query(dict(self._secrets))
            case AuthenticationKind.HTTP_HEADER:
                return self.url

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that show who is asking."""
        return self._secrets if self.kind is AuthenticationKind.HTTP_HEADER else {}

    def document(self) -> JsonObject:
        """As `/_simulator/webhooks` shows it: without the secrets, which cannot be read in Dataverse either."""
        return {
            "id": self.id,
            "name": self.name,
            "url": str(self.url),
            "entity": self.table.logical_name,
            "messages": list(self.steps),
            "steps": dict(self.steps),
            "authentication": {"kind": self.kind, "names": list(self._secrets)},
            "mode": self.mode,
            "pre_image": list(self.pre_image),
            "post_image": list(self.post_image),
            "filtering_attributes": list(self.filtering_attributes),
        }


def registration(declared: Mapping[str, Any], tables: Mapping[str, Table]) -> Registration:
    """What was declared; `tables` by logical name.

    Raises:
        ValueError: a field is missing, unknown or has a wrong value; the message says which.
    """
    if unknown := set(declared) - set(_FIELDS):
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}; known are {', '.join(_FIELDS)}")
    table = tables.get(_text(declared, "entity"))
    if table is None:
        raise ValueError(f"entity must be one of {', '.join(tables)}")
    kind, secrets = _authentication(declared.get("authentication"))
    endpoint_id = str(uuid4())
    return Registration(
        id=endpoint_id,
        name=_text(declared, "name", f"webhook {endpoint_id[:8]}"),
        url=_url(_text(declared, "url")),
        table=table,
        steps={message: str(uuid4()) for message in _messages(declared.get("messages", list(Message)))},
        mode=_one_of(Mode, "mode", declared.get("mode", Mode.ASYNCHRONOUS)),
        kind=kind,
        _secrets=secrets,
        pre_image=_columns(declared, "pre_image", table),
        post_image=_columns(declared, "post_image", table),
        filtering_attributes=_columns(declared, "filtering_attributes", table),
    )


def _authentication(declared: Any) -> tuple[AuthenticationKind, Mapping[str, str]]:
    if not isinstance(declared, dict) or set(declared) != {"kind", "values"}:
        raise ValueError("authentication must be an object of kind and values")
    kind = _one_of(AuthenticationKind, "authentication.kind", declared["kind"])
    values = declared["values"]
    if not isinstance(values, dict) or not values or not all(isinstance(one, str) and one for one in values.values()):
        raise ValueError("authentication.values must be an object of texts, one at least")
    if kind is AuthenticationKind.WEBHOOK_KEY and len(values) > 1:
        raise ValueError("authentication.values of a WebhookKey must have one value, which is sent as ?code=")
    if kind is AuthenticationKind.HTTP_HEADER:
        for name, value in values.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"authentication.values: {name!r} and its value cannot be a header")
    return kind, values


def _url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("url is no address") from None
    if url.scheme not in ("http", "https") or not url.host or url.user is not None:
        raise ValueError("url must be an http or https address without credentials")
    return url


def _messages(declared: Any) -> list[Message]:
    if not isinstance(declared, list) or not declared:
        raise ValueError(f"messages must be a list of {', '.join(Message)}")
    return [_one_of(Message, "messages", one) for one in declared]


def _columns(declared: Mapping[str, Any], name: str, table: Table) -> tuple[str, ...]:
    columns = declared.get(name, [])
    if not isinstance(columns, list) or not all(isinstance(one, str) for one in columns):
        raise ValueError(f"{name} must be a list of columns")
    for column in columns:
        if column not in table.columns_by_name:
            raise ValueError(f"{name}: {table.logical_name} has no column {column!r}")
    return tuple(columns)


def _text(declared: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = declared.get(name, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text")
    return value


def _one_of(choices: type[Choice], name: str, value: object) -> Choice:
    if value not in list(choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}")
    return choices(str(value))
