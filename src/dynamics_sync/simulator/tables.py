"""Tables, columns and keys: what a simulated environment is made of, and which values it takes."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from dynamics_sync.simulator import errors

JsonObject = dict[str, Any]


class ColumnKind(StrEnum):
    """Dataverse's column types, as far as the Web API shows them."""

    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    DATE = "date"
    DATETIME = "datetime"
    CHOICE = "choice"
    GUID = "guid"
    LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `options` are a choice's numbers; `navigation_property` and `refers_to` a lookup's."""

    name: str
    kind: ColumnKind = ColumnKind.TEXT
    required: bool = False
    max_length: int | None = None
    options: tuple[int, ...] = ()
    navigation_property: str = ""
    refers_to: str = ""

    @property
    def read_name(self) -> str:
        """The name in answers: a lookup reads back as `_name_value`."""
        return f"_{self.name}_value" if self.kind is ColumnKind.LOOKUP else self.name


@dataclass(frozen=True, slots=True)
class AlternateKey:
    """One or more columns that identify a record."""

    name: str
    columns: tuple[str, ...]


SYSTEM_COLUMNS = (
    Column("statecode", ColumnKind.CHOICE, options=(0, 1)),
    Column("statuscode", ColumnKind.CHOICE, options=(1, 2)),
    Column("createdon", ColumnKind.DATETIME),
    Column("modifiedon", ColumnKind.DATETIME),
    Column("versionnumber", ColumnKind.INTEGER),
)


@dataclass(frozen=True, slots=True)
class Table:
    """One Dataverse table. `duplicates_by` names columns of a duplicate-detection rule."""

    logical_name: str
    entity_set: str
    primary_id: str
    columns: tuple[Column, ...]
    alternate_keys: tuple[AlternateKey, ...] = ()
    duplicates_by: tuple[str, ...] = ()
    bulk: bool = True
    """Whether CreateMultiple, UpdateMultiple and UpsertMultiple are there."""

    def column(self, name: str) -> Column | None:
        """The column of that logical name."""
        return next((column for column in (*self.columns, *SYSTEM_COLUMNS) if column.name == name), None)

    def navigation(self, name: str) -> Column | None:
        """The lookup with that navigation property; the name is case-sensitive."""
        return next((column for column in self.columns if column.navigation_property == name and name), None)

    def key_for(self, names: frozenset[str]) -> AlternateKey | None:
        """The alternate key of exactly these columns."""
        return next((key for key in self.alternate_keys if frozenset(key.columns) == names), None)


def check_value(table: Table, column: Column, value: object) -> object:
    """The value as it is stored.

    Raises:
        DataverseError: the column cannot take it.
    """
    if value is None:
        return None
    if not _FITS[column.kind](value):
        raise errors.bad_payload(
            table.entity_set, f"Cannot convert the literal '{value}' to the expected type of '{column.name}'."
        )
    if column.kind is ColumnKind.CHOICE and column.options and value not in column.options:
        raise errors.not_an_option(column.name, table.logical_name, value, column.options)
    if column.max_length is not None and isinstance(value, str) and len(value) > column.max_length:
        raise errors.text_too_long(column.name, table.logical_name, column.max_length)
    return value


def load_tables(path: Path) -> tuple[Table, ...]:
    """Tables declared in a TOML file.

    Raises:
        ValueError: it is no such file; the message says where.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(_table(declared) for declared in document["tables"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not declare tables: {error!r} is missing or malformed") from None


def _table(declared: Mapping[str, Any]) -> Table:
    logical_name = str(declared["logical_name"])
    columns = tuple(
        Column(
            name,
            ColumnKind(column.get("kind", "text")),
            bool(column.get("required", False)),
            column.get("max_length"),
            tuple(column.get("options", ())),
            column.get("navigation_property", ""),
            column.get("refers_to", ""),
        )
        for name, column in declared["columns"].items()
    )
    keys = tuple(AlternateKey(name, tuple(names)) for name, names in declared.get("alternate_keys", {}).items())
    return Table(
        logical_name,
        str(declared["entity_set"]),
        str(declared.get("primary_id", f"{logical_name}id")),
        columns,
        keys,
        tuple(declared.get("duplicates_by", ())),
        bool(declared.get("bulk", True)),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_date(value: object) -> bool:
    return (
        _parses(value, date.fromisoformat)
        and isinstance(value, str)
        and re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None
    )


def _is_datetime(value: object) -> bool:
    return _parses(value, datetime.fromisoformat)


def is_guid(value: object) -> bool:
    """Whether the value is a GUID as the Web API writes one."""
    return isinstance(value, str) and _GUID.fullmatch(value) is not None


_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _parses(value: object, parse: Any) -> bool:
    try:
        parse(value)
    except (ValueError, TypeError):
        return False
    return True


_FITS = {
    ColumnKind.TEXT: _is_text,
    ColumnKind.INTEGER: _is_integer,
    ColumnKind.DECIMAL: _is_number,
    ColumnKind.BOOLEAN: lambda value: isinstance(value, bool),
    ColumnKind.DATE: _is_date,
    ColumnKind.DATETIME: _is_datetime,
    ColumnKind.CHOICE: _is_integer,
    ColumnKind.GUID: is_guid,
    ColumnKind.LOOKUP: is_guid,
}


def lower_guid(value: str) -> str:
    """One form for one id."""
    return str(UUID(value))
