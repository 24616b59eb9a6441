"""Reading: one record, or a page of a table (Microsoft: "Query data using the Web API", "Page results")."""

from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT
from dynamics_sync.simulator.filters import parse_filter
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.records import Record
from dynamics_sync.simulator.tables import JsonObject, Table

MAX_PAGE = 5000
"""Rows in a page and in `$count`, at most."""

_KNOWN_OPTIONS = {"$select", "$filter", "$orderby", "$top", "$count", "$skiptoken", "$format"}


def read_record(request: Request, table: Table, record: Record) -> Reply:
    """One record; 304 if the client has that version."""
    check_options(request)
    if request.headers.get("if-none-match") == record.etag:
        return Reply(304, headers={"ETag": record.etag})
    return Reply(200, entity(request, table, record), {"ETag": record.etag})


def entity(request: Request, table: Table, record: Record) -> JsonObject:
    """A record as a single answer shows it."""
    selected = select(request, table.properties, table.logical_name)
    context = f"{request.base}{ROOT}/$metadata#{table.entity_set}{context_columns(selected)}/$entity"
    return {"@odata.context": context, **row(table, record, selected)}


def read_page(request: Request, table: Table, records: Sequence[Record]) -> Reply:
    """A page of a table."""
    rows = [row(table, record, ()) for record in records]
    selected = select(request, table.properties, table.logical_name)
    always = [table.primary_id] if selected else []
    return read_rows(request, table.entity_set, rows, table.properties, [*selected, *always])


def read_count(request: Request, table: Table, records: Sequence[Record]) -> Reply:
    """`$count`: a number as plain text."""
    rows = [row(table, record, ()) for record in records]
    return Reply(200, text=str(min(len(_filtered(request, rows, table.properties)), MAX_PAGE)))


def read_rows(
    request: Request, entity_set: str, rows: list[JsonObject], known: Collection[str], selected: Sequence[str]
) -> Reply:
    """A page of any rows: filtered, ordered, counted, cut."""
    check_options(request)
    rows = _ordered(_filtered(request, rows, known), request.query.get("$orderby", ""), known)
    document: JsonObject = {"@odata.context": f"{request.base}{ROOT}/$metadata#{entity_set}{context_columns(selected)}"}
    if request.query.get("$count") == "true":
        document["@odata.count"] = min(len(rows), MAX_PAGE)
    page, next_link = _page(request, rows)
    document["value"] = [_selected(one, selected) for one in page]
    if next_link is not None:
        document["@odata.nextLink"] = next_link
    size = request.prefer.get("odata.maxpagesize", "")
    return Reply(200, document, {"Preference-Applied": f"odata.maxpagesize={size}"} if _is_count(size) else {})


def check_options(request: Request) -> None:
    """Refuse query options that are not served, instead of ignoring them."""
    for option in request.query:
        if option == "$skip":
            raise errors.malformed("Skip Clause is not supported in CRM")
        if option.startswith("$") and option not in _KNOWN_OPTIONS:
            raise errors.malformed(f"The query parameter {option} is not supported.")


def select(request: Request, known: Collection[str], type_name: str) -> list[str]:
    """The names of `$select`; DataverseError 400 if there is no such property."""
    names = [name.strip() for name in request.query.get("$select", "").split(",") if name.strip()]
    if "*" in names:
        return []
    for name in names:
        if name not in known:
            raise errors.no_such_property(name, type_name)
    return names


def row(table: Table, record: Record, selected: Sequence[str]) -> JsonObject:
    """A record's properties, with etag and id whatever was selected."""
    whole = {"@odata.etag": record.etag, **record.attributes, table.primary_id: record.id}
    return _selected(whole, [*selected, table.primary_id]) if selected else whole


def page_size(request: Request) -> int:
    """How many rows a page has, at most."""
    wished = request.prefer.get("odata.maxpagesize", "")
    return min(int(wished), MAX_PAGE) if _is_count(wished) else MAX_PAGE


def context_columns(selected: Sequence[str]) -> str:
    """The selection as `@odata.context` shows it."""
    return f"({','.join(selected)})" if selected else ""


def _filtered(request: Request, rows: list[JsonObject], known: Collection[str]) -> list[JsonObject]:
    text = request.query.get("$filter")
    if text is None:
        return rows
    matches = parse_filter(text, request.query, known.__contains__)
    return [one for one in rows if matches(one)]


def _page(request: Request, rows: list[JsonObject]) -> tuple[list[JsonObject], str | None]:
    """With `odata.maxpagesize`, `$top` is ignored."""
    start = _whole_number(request, "$skiptoken", 0)
    if "$top" in request.query and not _is_count(request.prefer.get("odata.maxpagesize", "")):
        return rows[: _whole_number(request, "$top", MAX_PAGE)], None
    size = page_size(request)
    if start + size >= len(rows):
        return rows[start:], None
    query = {**request.query, "$skiptoken": str(start + size)}
    address = f"{request.base}{ROOT}/{quote(request.path)}?{urlencode(query, quote_via=quote, safe='$,')}"
    return rows[start : start + size], address


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0


def _whole_number(request: Request, option: str, default: int) -> int:
    text = request.query.get(option, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise errors.malformed(f"Invalid value '{text}' for {option} query option found.")
    return int(text)


def _ordered(rows: list[JsonObject], orderby: str, known: Collection[str]) -> list[JsonObject]:
    for term in reversed([term.split() for term in orderby.split(",") if term.strip()]):
        if term[0] not in known or len(term) > 2 or (len(term) == 2 and term[1] not in ("asc", "desc")):
            raise errors.malformed(f"Syntax error in the $orderby expression at '{' '.join(term)}'.")
        rows = sorted(rows, key=_sort_key(term[0]), reverse=term[-1] == "desc")
    return rows


def _sort_key(name: str) -> Callable[[JsonObject], tuple[bool, str, Any]]:
    """Rows without a value come first; text is ordered without regard to case, as it is compared."""

    def key(one: JsonObject) -> tuple[bool, str, Any]:
        value = one.get(name)
        if isinstance(value, str):
            return True, "text", value.lower()
        if isinstance(value, int | float):
            return True, "number", value
        return value is not None, "", 0

    return key


def _selected(whole: JsonObject, names: Sequence[str]) -> JsonObject:
    return {name: value for name, value in whole.items() if name in names or name[0] == "@"} if names else whole
