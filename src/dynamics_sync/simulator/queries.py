"""Reading: one record, or a page of a table (Microsoft: "Query data using the Web API")."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.filters import parse_filter
from dynamics_sync.simulator.messages import ROOT, Reply, Request
from dynamics_sync.simulator.store import Record
from dynamics_sync.simulator.tables import SYSTEM_COLUMNS, JsonObject, Table

MAX_PAGE = 5000

_KNOWN_OPTIONS = {"$select", "$filter", "$orderby", "$top", "$count", "$expand", "$skiptoken"}


def read_record(request: Request, table: Table, record: Record) -> Reply:
    """One record; 304 if the client has that version."""
    if request.headers.get("if-none-match") == record.etag:
        return Reply(304, headers={"ETag": record.etag})
    return Reply(200, entity(request, table, record), {"ETag": record.etag})


def entity(request: Request, table: Table, record: Record) -> JsonObject:
    """A record as a single answer shows it."""
    select = _select(request, table)
    context = f"{request.base}{ROOT}/$metadata#{table.entity_set}{_context_columns(select)}/$entity"
    return {"@odata.context": context, **_row(table, record, select)}


def read_page(request: Request, table: Table, records: Sequence[Record]) -> Reply:
    """A page of a table."""
    select = _select(request, table)
    return read_rows(
        request,
        table.entity_set,
        [_row(table, record, ()) for record in records],
        properties(table),
        [*select, table.primary_id] if select else select,
    )


def read_rows(
    request: Request, entity_set: str, rows: list[JsonObject], known: set[str], select: Sequence[str]
) -> Reply:
    """A page of any rows: filtered, ordered, counted, cut."""
    for option in request.query:
        if option.startswith("$") and option not in _KNOWN_OPTIONS:
            raise errors.malformed(f"The query parameter {option} is not supported.")
    if text := request.query.get("$filter"):
        matches = parse_filter(text, request.query, known.__contains__)
        rows = [row for row in rows if matches(row)]
    rows = _ordered(rows, request.query.get("$orderby", ""), known)
    document: JsonObject = {"@odata.context": f"{request.base}{ROOT}/$metadata#{entity_set}{_context_columns(select)}"}
    if request.query.get("$count") == "true":
        document["@odata.count"] = min(len(rows), MAX_PAGE)
    page, next_link = _page(request, rows)
    document["value"] = [_selected(row, select) for row in page]
    if next_link is not None:
        document["@odata.nextLink"] = next_link
    applied = request.headers.get("prefer", "")
    return Reply(200, document, {"Preference-Applied": applied} if "maxpagesize" in applied else {})


def properties(table: Table) -> set[str]:
    """Every property that a row has."""
    return {column.read_name for column in (*table.columns, *SYSTEM_COLUMNS)} | {table.primary_id}


def _page(request: Request, rows: list[JsonObject]) -> tuple[list[JsonObject], str | None]:
    start = _whole_number(request, "$skiptoken", 0)
    wished = request.prefer.get("odata.maxpagesize", "")
    if wished.isdigit() and int(wished) > 0:
        size = min(int(wished), MAX_PAGE)
    elif "$top" in request.query:
        return rows[: _whole_number(request, "$top", MAX_PAGE)], None
    else:
        size = MAX_PAGE
    if start + size >= len(rows):
        return rows[start:], None
    query = {**request.query, "$skiptoken": str(start + size)}
    return rows[start : start + size], f"{request.base}{ROOT}/{request.path}?{urlencode(query, quote_via=quote)}"


def _whole_number(request: Request, option: str, default: int) -> int:
    text = request.query.get(option, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise errors.malformed(f"Invalid value '{text}' for {option} query option found.")
    return int(text)


def _ordered(rows: list[JsonObject], orderby: str, known: set[str]) -> list[JsonObject]:
    for term in reversed([term.split() for term in orderby.split(",") if term.strip()]):
        if term[0] not in known or len(term) > 2 or term[-1] not in (term[0], "asc", "desc"):
            raise errors.malformed(f"Syntax error in the $orderby expression at '{term[0]}'.")
        rows = sorted(rows, key=_sort_key(term[0]), reverse=term[-1] == "desc")
    return rows


def _sort_key(name: str) -> Callable[[JsonObject], tuple[bool, str, Any]]:
    def key(row: JsonObject) -> tuple[bool, str, Any]:
        value = row.get(name)
        return (value is not None, type(value).__name__, 0 if value is None else value)

    return key


def _select(request: Request, table: Table) -> Sequence[str]:
    names = [name.strip() for name in request.query.get("$select", "").split(",") if name.strip()]
    for name in names:
        if name not in properties(table):
            raise errors.malformed(f"Could not find a property named '{name}' on type '{table.logical_name}'.")
    return names


def _context_columns(select: Sequence[str]) -> str:
    return f"({','.join(select)})" if select else ""


def _row(table: Table, record: Record, select: Sequence[str]) -> JsonObject:
    row = {"@odata.etag": record.etag, **record.attributes, table.primary_id: record.id}
    return _selected(row, [*select, table.primary_id] if select else select)


def _selected(row: JsonObject, select: Sequence[str]) -> JsonObject:
    """An answer always has the etag and the primary id, whatever was selected."""
    return {name: value for name, value in row.items() if name in select or name.startswith("@")} if select else row
