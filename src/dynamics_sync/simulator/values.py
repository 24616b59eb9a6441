"""Which values a column takes, and how it keeps them (Microsoft: "Web API types and operations")."""

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.tables import Column, ColumnKind, Table

_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EARLIEST = "1753-01-01"


def check_value(table: Table, column: Column, value: object) -> Any:
    """The value as it is stored: ids in lower case, moments in UTC and whole seconds.

    Raises:
        DataverseError: the column cannot take it.
    """
    if value is None:
        return None
    edm_type, convert = _KINDS[column.kind]
    try:
        stored = convert(value)
    except (ValueError, TypeError, OverflowError):
        raise errors.wrong_type(table.entity_set, value, edm_type) from None
    if column.options and stored not in column.options:
        raise errors.not_an_option(column.name, table.logical_name, value, column.options)
    if column.max_length is not None and len(str(stored)) > column.max_length:
        raise errors.text_too_long(column.name, table.logical_name, column.max_length)
    if column.kind in (ColumnKind.DATE, ColumnKind.DATETIME) and stored < _EARLIEST:
        raise errors.date_too_early(stored)
    return stored


def is_guid(value: object) -> bool:
    """Whether the value is a GUID as the Web API writes one."""
    return isinstance(value, str) and _GUID.fullmatch(value) is not None


def guid(value: object) -> str:
    """A GUID in the form that answers have; ValueError if it is none."""
    if not isinstance(value, str) or _GUID.fullmatch(value) is None:
        raise ValueError("not a GUID")
    return value.lower()


def moment(value: object) -> str:
    """A moment in UTC and whole seconds, which is how Dataverse keeps them; ValueError if it is none."""
    if not isinstance(value, str) or _MOMENT.fullmatch(value) is None:
        raise ValueError("not a moment")
    seconds, _, rest = value.partition(".")
    text = seconds + rest.lstrip("0123456789") if rest else seconds
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise TypeError("not a whole number of 32 bits")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("not a number")
    return value


def _scalar(value: object) -> Any:
    return value if isinstance(value, str | bool) else _number(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not a boolean")
    return value


def _date(value: object) -> str:
    if not isinstance(value, str) or _DATE.fullmatch(value) is None:
        raise ValueError("not a date")
    return date.fromisoformat(value).isoformat()


_KINDS: dict[ColumnKind, tuple[str, Callable[[object], Any]]] = {
    ColumnKind.TEXT: ("Edm.String", _text),
    ColumnKind.INTEGER: ("Edm.Int32", _integer),
    ColumnKind.DECIMAL: ("Edm.Decimal", _number),
    ColumnKind.MONEY: ("Edm.Decimal", _number),
    ColumnKind.BOOLEAN: ("Edm.Boolean", _boolean),
    ColumnKind.DATE: ("Edm.Date", _date),
    ColumnKind.DATETIME: ("Edm.DateTimeOffset", moment),
    ColumnKind.CHOICE: ("Edm.Int32", _integer),
    ColumnKind.GUID: ("Edm.Guid", guid),
    ColumnKind.LOOKUP: ("Edm.Guid", guid),
    ColumnKind.ANY: ("Edm.PrimitiveType", _scalar),
}
