"""Addresses below the Web API's root: `accounts(<guid>)`, `accounts(k1='x',k2=2)`, `accounts/$count`, …"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.tables import ColumnKind, Table
from dynamics_sync.simulator.values import check_value, guid, is_guid

ROOT = "/api/data/v9.2"
FORBIDDEN_IN_KEYS = frozenset("/<>*%&:\\?+")
"""Microsoft: "Define alternate keys to reference rows"."""

_ROOT = re.compile(r"/api/data/v9\.[0-2](?=/|$)")
_SEGMENTS = re.compile(r"(?:[^/']|'[^']*')+|'[^/]*")
_SEGMENT = re.compile(r"(?P<name>[^(]+)(?:\((?P<key>.*)\))?", re.DOTALL)
_PAIR = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*=\s*(?:'(?P<text>(?:[^']|'')*)'|(?P<bare>[^',]+))\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a path: a name, and what stood in its parentheses."""

    name: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Locator:
    """Which record: by id, or by the columns of an alternate key."""

    id: str | None
    key: str = ""
    values: Mapping[str, Any] | None = None


class _Unquoted(str):
    """What stands in a key without quotes and is no number: an id or a date, but never text."""

    __slots__ = ()


def below_root(path: str) -> str | None:
    """What follows the Web API's root; None if the path lies elsewhere. v9.0 and v9.1 are served as v9.2 is."""
    match = _ROOT.match(path)
    return None if match is None else path[match.end() :].strip("/")


def split_path(path: str) -> list[Segment]:
    """The segments of a decoded path; slashes within quotes do not divide."""
    segments = []
    for part in _SEGMENTS.findall(path):
        match = _SEGMENT.fullmatch(part)
        if match is None:
            raise errors.no_such_segment(part)
        segments.append(Segment(match["name"], match["key"]))
    if not segments:
        raise errors.no_such_segment(path)
    return segments


def locator(table: Table, key: str) -> Locator:
    """What the parentheses say.

    Raises:
        DataverseError: it is no id and no declared key, or a value cannot stand in a key.
    """
    if is_guid(key):
        return Locator(guid(key))
    values = _pairs(table, key)
    if set(values) == {table.primary_id} and is_guid(values[table.primary_id]):
        return Locator(guid(values[table.primary_id]))
    return key_locator(table, values)


def key_locator(table: Table, values: Mapping[str, Any]) -> Locator:
    """The alternate key that has these columns; lookups are written as `_name_value`.

    Raises:
        DataverseError: there is no such key, or a value cannot stand in a key.
    """
    by_column: dict[str, Any] = {}
    for name, value in values.items():
        column = table.columns_by_read_name.get(name) or table.columns_by_name.get(name)
        if column is None:
            raise errors.invalid_key(table.logical_name)
        if column.kind is ColumnKind.TEXT and isinstance(value, _Unquoted):
            raise errors.invalid_key(table.logical_name)
        check_key_characters(column.name, value)
        by_column[column.name] = check_value(table, column, value)
    alternate = table.key_of(frozenset(by_column))
    if alternate is None or None in by_column.values():
        raise errors.invalid_key(table.logical_name)
    return Locator(None, alternate.name, by_column)


def check_key_characters(column: str, value: object) -> None:
    """Refuse what a GET or PATCH by key could never find."""
    if isinstance(value, str) and not FORBIDDEN_IN_KEYS.isdisjoint(value):
        raise errors.forbidden_in_key(column, value)


def key_text(where: Locator) -> str:
    """What the request log shows: the id, or the key's value or values."""
    return where.id if where.id is not None else ",".join(str(value) for value in (where.values or {}).values())


def record_address(base: str, table: Table, key: str) -> str:
    """A record's address for `OData-EntityId`: with its id, or echoing the key form of the request."""
    encoded = quote(key, safe="=',()@")
    return f"{base}{ROOT}/{table.entity_set}({encoded})"


def _pairs(table: Table, key: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    position = 0
    while position < len(key):
        match = _PAIR.match(key, position)
        if match is None or match["name"] in values:
            raise errors.invalid_key(table.logical_name)
        values[match["name"]] = match["text"].replace("''", "'") if match["text"] is not None else _bare(match["bare"])
        position = match.end()
    if not values:
        raise errors.invalid_key(table.logical_name)
    return values


def _bare(text: str) -> Any:
    text = text.strip()
    if re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?\d{1,18}\.\d{1,18}", text, re.ASCII):
        return float(text)
    return None if text == "null" else _Unquoted(text)
