"""Tables, columns and keys: what a simulated environment is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

JsonObject = dict[str, Any]


class ColumnKind(StrEnum):
    """Dataverse's column types, as far as the Web API shows them."""

    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    MONEY = "money"
    BOOLEAN = "boolean"
    DATE = "date"
    DATETIME = "datetime"
    CHOICE = "choice"
    GUID = "guid"
    LOOKUP = "lookup"
    ANY = "any"
    """No type of Dataverse's: takes every text, number and boolean, for tables of which only the names are known."""


@dataclass(frozen=True)
class Column:
    """One column.

    `max_length` counts characters of text. `options` are a choice's numbers; without any, every number is one.
    A lookup has a `navigation_property` (its own name if none is given), and refers to records of the entity set
    `lookup_target` (of any, if none is given).
    """

    name: str
    kind: ColumnKind = ColumnKind.TEXT
    required: bool = False
    max_length: int | None = None
    options: tuple[int, ...] = ()
    navigation_property: str | None = None
    lookup_target: str | None = None

    @cached_property
    def read_name(self) -> str:
        """The name in answers: a lookup reads back as `_name_value`."""
        return f"_{self.name}_value" if self.kind is ColumnKind.LOOKUP else self.name


@dataclass(frozen=True)
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

READ_ONLY = frozenset({"createdon", "modifiedon", "versionnumber"})
"""Not valid for create or update: Dataverse ignores what is sent for them."""


@dataclass(frozen=True)
class Table:
    """One Dataverse table. Every table has the system columns besides its own.

    `duplicates_by` names the columns of a duplicate-detection rule. `bulk` says whether CreateMultiple, UpdateMultiple
    and UpsertMultiple are there, `change_tracking` whether changes can be asked for: neither is so for every table.

    Raises:
        ValueError: two columns of one name, or a key or rule of columns that are not there.
    """

    logical_name: str
    entity_set: str
    primary_id: str
    columns: tuple[Column, ...]
    alternate_keys: tuple[AlternateKey, ...] = ()
    duplicates_by: tuple[str, ...] = ()
    bulk: bool = True
    change_tracking: bool = True

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len({*names, self.primary_id}) <= len(names):
            raise ValueError(f"table {self.logical_name!r} has two columns of one name")
        used = {name for key in self.alternate_keys for name in key.columns} | set(self.duplicates_by)
        if unknown := used - {*self.columns_by_name}:
            raise ValueError(f"table {self.logical_name!r} has a key or rule of unknown columns: {sorted(unknown)}")
        if not all(key.columns for key in self.alternate_keys):
            raise ValueError(f"table {self.logical_name!r} has an alternate key without columns")

    @cached_property
    def columns_by_name(self) -> Mapping[str, Column]:
        """All columns; one of the table's own hides a system column of its name."""
        return {column.name: column for column in (*SYSTEM_COLUMNS, *self.columns)}

    @cached_property
    def columns_by_navigation(self) -> Mapping[str, Column]:
        """Lookups by navigation property."""
        lookups = (column for column in self.columns if column.kind is ColumnKind.LOOKUP)
        return {column.navigation_property or column.name: column for column in lookups}

    @cached_property
    def columns_by_read_name(self) -> Mapping[str, Column]:
        """All columns by the names that answers have."""
        return {column.read_name: column for column in self.columns_by_name.values()}

    @cached_property
    def properties(self) -> frozenset[str]:
        """Every property that a row has."""
        return frozenset(self.columns_by_read_name) | {self.primary_id}

    @cached_property
    def key_columns(self) -> frozenset[str]:
        """Columns that are part of some alternate key."""
        return frozenset(name for key in self.alternate_keys for name in key.columns)

    @cached_property
    def required_columns(self) -> tuple[Column, ...]:
        """Columns without which there is no record."""
        return tuple(column for column in self.columns if column.required)

    @cached_property
    def _keys_by_columns(self) -> Mapping[frozenset[str], AlternateKey]:
        return {frozenset(key.columns): key for key in self.alternate_keys}

    def key_of(self, names: frozenset[str]) -> AlternateKey | None:
        """The alternate key of exactly these columns."""
        return self._keys_by_columns.get(names)


@dataclass(frozen=True, slots=True)
class SystemTable:
    """A table of the environment's own, which the Web API only shows. `columns` are its properties."""

    entity_set: str
    primary_id: str
    columns: tuple[str, ...]
    rows: Callable[[], list[JsonObject]]
