"""Addresses below the Web API's root: `accounts(<guid>)`, `accounts(k1='x',k2=2)`, `accounts/$count`, …"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.tables import Table, check_value, is_guid, lower_guid

FORBIDDEN_IN_KEYS = frozenset("/<>*%&:\\?+")
"""Microsoft: "Define alternate keys to reference rows"."""

_SEGMENT = re.compile(r"(?P<name>[^(]+)(?:\((?P<key>.*)\))?", re.DOTALL)
_PAIR = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*=\s*(?:'(?P<text>(?:[^']|'')*)'|(?P<bare>[^',]+))\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a path: a name, and what stood in its parentheses."""

    name: str
    key: str | None


def split_path(path: str) -> list[Segment]:
    """The segments of a decoded path; slashes within quotes do not divide."""
    parts, quoted, current = [], False, ""
    for character in path.strip("/"):
        quoted ^= character == "'"
        if character == "/" and not quoted:
            parts.append(current)
            current = ""
        else:
            current += character
    parts.append(current)
    segments = []
    for part in parts:
        match = _SEGMENT.fullmatch(part)
        if match is None:
            raise errors.no_such_segment(part)
        segments.append(Segment(match["name"], match["key"]))
    return segments


@dataclass(frozen=True, slots=True)
class Locator:
    """Which record: by id, or by the columns of an alternate key."""

    id: str | None
    key: str = ""
    values: Mapping[str, Any] | None = None


def locator(table: Table, key: str) -> Locator:
    """What the parentheses say.

    Raises:
        DataverseError: it is no id and no declared key, or a value cannot stand in a key.
    """
    if is_guid(key):
        return Locator(lower_guid(key))
    values = _pairs(table, key)
    if set(values) == {table.primary_id} and is_guid(values[table.primary_id]):
        return Locator(lower_guid(values[table.primary_id]))
    alternate = table.key_for(frozenset(_column_name(table, name) for name in values))
    if alternate is None:
        raise errors.invalid_key(table.logical_name)
    by_column = {_column_name(table, name): value for name, value in values.items()}
    for name, value in by_column.items():
        column = table.column(name)
        if isinstance(value, str) and FORBIDDEN_IN_KEYS & set(value):
            raise errors.invalid_key(table.logical_name)
        if column is not None:
            check_value(table, column, value)
    return Locator(None, alternate.name, by_column)


def key_text(table: Table, where: Locator) -> str:
    """What a request's log and `OData-EntityId` show: the id, or the key's value or values."""
    if where.id is not None:
        return where.id
    values = where.values or {}
    return ",".join(str(value) for value in values.values())


def _column_name(table: Table, name: str) -> str:
    """A lookup in a key is written as `_name_value`."""
    lookup = next((column.name for column in table.columns if column.read_name == name), None)
    return lookup or name


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
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?\d{1,18}\.\d{1,18}", text):
        return float(text)
    return lower_guid(text) if is_guid(text) else text
