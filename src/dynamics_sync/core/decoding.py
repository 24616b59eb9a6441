"""The way back: an attribute of Dynamics as the value of a column, by the same mapping that writes it.

`decode` undoes `Column.encode` wherever that loses nothing: `decode(encode(x)) == x`. Where it does lose something,
such as the hour of a point in time that is sent as a day, `agrees` tells that the row holds it already.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from dynamics_sync.core.incoming import Reference, moment
from dynamics_sync.core.mapping import Column, ColumnKind, UnsendableError, aware

MIDNIGHT = time(0, 0)
MOST_DIGITS = 1000
INTEGERS = ("smallint", "integer", "bigint")
FLOATS = ("real", "double precision")
POINT_IN_TIME, LOCAL_TIME = "timestamp with time zone", "timestamp without time zone"


class UndecodableError(Exception):
    """The value has no form here. Carries a code of ours and the column's name, never the value."""

    def __init__(self, code: str, name: str) -> None:
        super().__init__(code, name)
        self.code = code
        self.name = name


def decode(name: str, column: Column, type_name: str, value: object) -> object:
    """The column's value.

    Args:
        type_name: the column's type, as PostgreSQL's `format_type` writes it.
        value: as `core.incoming.Attributes` has it, or as the Web API has.

    Raises:
        UndecodableError: the mapping has no text for a choice's number, or the value is of another form than expected.
    """
    if value is None:
        return None
    if isinstance(value, float | Decimal) and not _is_reasonable(value):
        raise UndecodableError("inbox.wrong_type", name)
    if column.lookup is not None:
        return _referred(name, column, value)
    if column.choices is not None:
        return _chosen(name, column.choices, value)
    if type_name in (POINT_IN_TIME, LOCAL_TIME, "date"):
        return _in_time(name, column, type_name, value)
    return _plain(name, type_name, value)


def agrees(name: str, column: Column, here: object, there: object) -> bool:
    """Whether two values of a column are one in Dynamics: it keeps whole seconds, and takes an empty text for none."""
    try:
        sent = [column.encode(name, value) for value in (here, there)]
    except UnsendableError:
        return False
    if isinstance(here, datetime) and isinstance(there, datetime) and column.kind is not ColumnKind.DATE:
        apart = aware(here) - aware(there)
        return abs(apart.total_seconds()) < 1
    first, second = (None if value == "" else value for value in sent)
    return first == second


def _referred(name: str, column: Column, value: object) -> UUID:
    """By id only: what another record's alternate key is, the value does not tell."""
    if column.lookup is None or column.lookup.alternate_key is not None:
        raise UndecodableError("inbox.lookup_by_key", name)
    try:
        return UUID(value.id if isinstance(value, Reference) else str(value))
    except ValueError:
        raise UndecodableError("inbox.wrong_type", name) from None


def _chosen(name: str, choices: Mapping[str, int], value: object) -> str:
    texts = [text for text, number in choices.items() if number == value and not isinstance(value, bool)]
    if not texts:
        raise UndecodableError("inbox.unknown_choice", name)
    return texts[0]


def _in_time(name: str, column: Column, type_name: str, value: object) -> date | datetime:
    at = moment(value)
    if at is None:
        raise UndecodableError("inbox.wrong_type", name)
    zone = ZoneInfo(column.time_zone)
    try:
        if column.kind is ColumnKind.DATE or type_name == "date":
            # A day comes as midnight in UTC; any other hour is a moment of some day in the column's zone.
            day = at.date() if at.time() == MIDNIGHT else at.astimezone(zone).date()
            if type_name == "date":
                return day
            at = datetime.combine(day, MIDNIGHT, zone).astimezone(UTC)
    except OverflowError:
        raise UndecodableError("inbox.wrong_type", name) from None
    return at if type_name == POINT_IN_TIME else at.replace(tzinfo=None)


def _plain(name: str, type_name: str, value: Any) -> object:
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if type_name == "boolean" and isinstance(value, bool):
        return value
    if type_name in INTEGERS and is_number and value == int(value):
        return int(value)
    if type_name == "numeric" and is_number:
        return value if isinstance(value, Decimal) else Decimal(repr(value))
    if type_name in FLOATS and is_number:
        return float(value)
    if type_name == "uuid" and isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            raise UndecodableError("inbox.wrong_type", name) from None
    is_text = type_name not in ("boolean", "numeric", "uuid", *INTEGERS, *FLOATS)
    if is_text and isinstance(value, str) and _is_storable(value):
        return value
    raise UndecodableError("inbox.wrong_type", name)


def _is_reasonable(value: float | Decimal) -> bool:
    """No column holds more digits, and who writes 1e999999999 shall not have it written out."""
    if isinstance(value, float):
        return isfinite(value)
    return value.is_finite() and abs(value.adjusted()) < MOST_DIGITS


def _is_storable(text: str) -> bool:
    """PostgreSQL's texts hold neither NUL nor half a character."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
