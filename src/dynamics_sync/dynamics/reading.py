"""Questions to the Dataverse Web API: what a table is, what it holds, what changed.

Sources: Microsoft's pages "Query data using the Web API", "Page results using OData", "Filter rows using OData", "Use
change tracking to synchronize data with external systems" and "Query table definitions using the Web API".
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic
from urllib.parse import quote, urlsplit

from dynamics_sync.core.outcome import DEFAULT_PAUSE_SECONDS, Mismatch, Throttled, Transient, Unauthorized
from dynamics_sync.dynamics.answers import answer_from
from dynamics_sync.dynamics.calls import API_PATH, REQUEST_HEADERS
from dynamics_sync.dynamics.tokens import Tokens
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import Definition, Failed, Found, Held, Page, Refused, T, View
from dynamics_sync.transport.addresses import may_be_sent, origin_of, target_of
from dynamics_sync.transport.client import HttpClient
from dynamics_sync.transport.connection import Response
from dynamics_sync.transport.errors import NoAnswerError

MOST_BYTES = 64 * 1024 * 1024
"""Of one answer: a page of a thousand records has a few megabytes at most."""

MOST_KEYS = 100
MOST_CHARACTERS = 6000
"""Keys in one question, and the characters that they may take: an address has 32,768 at most (Microsoft: "Compose HTTP
requests and handle errors"), and what stands between may allow less."""


class UnexpectedAnswerError(Exception):
    """The answer is not what the contract says."""


class ForeignLinkError(Exception):
    """A link in the answer leads elsewhere. Dynamics may be well, and have another name than we know it by."""


class DataverseReader:
    """The questions that are asked of one environment."""

    def __init__(self, *, url: str, client: HttpClient, tokens: Tokens, clock: Clock) -> None:
        self._root = url + API_PATH + "/"
        self._client = client
        self._tokens = tokens
        self._clock = clock

    @property
    def environment(self) -> str:
        return self._root

    async def token(self) -> str:
        return await self._tokens.get()

    def forget(self, token: str) -> None:
        self._tokens.forget(token)

    def definition(self, entity_set: str) -> "WebQuestion[Definition | None]":
        address = (
            "EntityDefinitions?$select=LogicalName,PrimaryIdAttribute,ChangeTrackingEnabled"
            f"&$filter={quote(f'EntitySetName eq {_literal(entity_set)}')}"
        )
        return self._question(address, _definition, entity_set)

    def who_am_i(self) -> "WebQuestion[str]":
        return self._question("WhoAmI", lambda document: _text(document, "UserId").lower(), "WhoAmI")

    def has_messages(self, logical_name: str, names: Sequence[str]) -> "WebQuestion[bool]":
        named = " or ".join(f"sdkmessageid/name eq {_literal(name)}" for name in names)
        condition = f"({named}) and primaryobjecttypecode eq {_literal(logical_name)}"
        address = f"sdkmessagefilters?$select=sdkmessagefilterid&$filter={quote(condition)}"
        return self._question(address, lambda document: len(_rows(document)) >= len(names), logical_name)

    def lookups(self, logical_name: str) -> "WebQuestion[Mapping[str, str]]":
        address = (
            f"EntityDefinitions(LogicalName={quote(_literal(logical_name))})/ManyToOneRelationships"
            "?$select=ReferencingAttribute,ReferencingEntityNavigationPropertyName"
        )
        return self._question(address, _lookups, logical_name)

    def first_page(self, view: View, size: int, *, tracked: bool) -> "WebQuestion[Page]":
        return self.following(view, f"{self._root}{view.entity_set}?{_select(view)}", size, tracked=tracked)

    def following(self, view: View, link: str, size: int, *, tracked: bool) -> "WebQuestion[Page]":
        preferences = [*(["odata.track-changes"] if tracked else []), f"odata.maxpagesize={size}"]
        return self._question(link, self._page_of(view), view.entity_set, ",".join(preferences))

    def with_keys(self, view: View, keys: Sequence[str]) -> "WebQuestion[Page]":
        condition = "Microsoft.Dynamics.CRM.In(PropertyName=@p1,PropertyValues=@p2)"
        values = quote(_values(keys), safe="")
        address = f"{view.entity_set}?{_select(view)}&$filter={condition}&@p1='{view.key}'&@p2={values}"
        return self._question(address, self._page_of(view), view.entity_set)

    def batches(self, keys: Sequence[str]) -> Sequence[Sequence[str]]:
        batches: list[list[str]] = []
        characters = 0
        for key in keys:
            length = len(quote(_values([key]), safe=""))
            if not batches or len(batches[-1]) == MOST_KEYS or characters + length > MOST_CHARACTERS:
                batches.append([])
                characters = 0
            batches[-1].append(key)
            characters += length
        return batches

    def with_id(self, view: View, record_id: str) -> "WebQuestion[Page]":
        address = f"{view.entity_set}?{_select(view)}&$filter={view.primary_id}%20eq%20{quote(record_id, safe='')}"
        return self._question(address, self._page_of(view), view.entity_set)

    def _question(
        self, address: str, parse: Callable[[Any], T], about: str, prefer: str | None = None
    ) -> "WebQuestion[T]":
        link = address if address.startswith("http") else self._root + address
        return WebQuestion(self._client, self._clock, link, parse, about, prefer)

    def _page_of(self, view: View) -> Callable[[Any], Page]:
        def parse(document: Any) -> Page:
            rows = _rows(document)
            kept = [row for row in rows if "reason" not in row]
            return Page(
                held=[_held(view, row) for row in kept],
                deleted=[_text(row, "id").lower() for row in rows if "reason" in row],
                next_link=self._link(document, "@odata.nextLink"),
                delta_link=self._link(document, "@odata.deltaLink"),
            )

        return parse

    def _link(self, document: Mapping[str, object], name: str) -> str | None:
        """A link that an answer gives. It is asked with our token, and so must not lead anywhere else."""
        link = document.get(name)
        if link is None:
            return None
        if not isinstance(link, str):
            raise UnexpectedAnswerError
        try:
            is_ours = "@" not in urlsplit(link).netloc and origin_of(link) == origin_of(self._root)
        except ValueError:
            is_ours = False
        if not is_ours:
            raise ForeignLinkError
        if " " in link or not may_be_sent(link):
            raise UnexpectedAnswerError
        return link


@dataclass(frozen=True, slots=True)
class WebQuestion(Generic[T]):
    """One GET."""

    client: HttpClient
    clock: Clock
    link: str
    parse: Callable[[Any], T]
    about: str
    prefer: str | None

    async def ask(self, token: str) -> Found[T] | Failed:
        headers = REQUEST_HEADERS | {"Accept-Encoding": "gzip", "Authorization": f"Bearer {token}"}
        if self.prefer is not None:
            headers["Prefer"] = self.prefer
        try:
            response = await self.client.request("GET", target_of(self.link), headers=headers, enough=MOST_BYTES)
        except NoAnswerError as error:
            return Transient(error.code)
        if response.status != 200:
            return self._failure(response)
        if len(response.body) > MOST_BYTES:
            return Refused(response.status, "page_too_large")
        try:
            return Found(self.parse(json.loads(response.body)))
        except (ValueError, RecursionError, UnexpectedAnswerError):
            return Mismatch()
        except ForeignLinkError:
            return Refused(response.status, "foreign_link")

    def _failure(self, response: Response) -> Failed:
        status = response.status
        answer = answer_from(status, response.headers, response.body, self.clock.now())
        if status in (408, 429):
            wait = answer.retry_after_seconds
            return Throttled(answer.code, DEFAULT_PAUSE_SECONDS if wait is None else wait)
        if status == 401:
            return Unauthorized(answer.code)
        if status >= 500:
            return Transient(answer.code, answer.retry_after_seconds)
        return Refused(status, answer.code) if answer.is_known_error else Mismatch()


def _select(view: View) -> str:
    return "$select=" + ",".join(quote(name, safe="") for name in dict.fromkeys((view.key, *view.properties)))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _values(keys: Sequence[str]) -> str:
    """In double quotes, as single ones may stand in a key (Microsoft: "Filter rows", on single quotes)."""
    return json.dumps(list(keys), separators=(",", ":"))


def _rows(document: Any) -> list[Mapping[str, Any]]:
    rows = document.get("value") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnexpectedAnswerError
    return rows


def _text(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UnexpectedAnswerError
    return value


def _held(view: View, row: Mapping[str, object]) -> Held:
    key = row.get(view.key)
    return Held(
        id=_text(row, view.primary_id).lower(),
        key=None if key is None or key == "" else str(key),
        etag=_text(row, "@odata.etag"),
        attributes={name: row.get(name) for name in view.properties},
    )


def _definition(document: Any) -> Definition | None:
    for row in _rows(document):
        return Definition(
            _text(row, "LogicalName"), _text(row, "PrimaryIdAttribute"), row.get("ChangeTrackingEnabled") is True
        )
    return None


def _lookups(document: Any) -> Mapping[str, str]:
    return dict(_lookup(row) for row in _rows(document))


def _lookup(row: Mapping[str, object]) -> tuple[str, str]:
    attribute = _text(row, "ReferencingAttribute")
    return _text(row, "ReferencingEntityNavigationPropertyName"), f"_{attribute}_value"
