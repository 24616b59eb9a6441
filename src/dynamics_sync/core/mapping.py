"""A row of a table, in the terms of a Dataverse table: declared in TOML, checked once, applied to each record.

The form of the file is described in `docs/mapping.md`; `certifications/mapping.toml` is one.
"""

import re
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from math import isfinite
from typing import Annotated, Any, ClassVar, Protocol, Self
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dynamics_sync.core.errors import MappingError

FORBIDDEN_KEY_CHARACTERS = frozenset("/<>*%&:\\?+")
"""Dataverse cannot take these in an alternate key's value, not even encoded (Microsoft: "Define alternate keys")."""

JsonValue = str | int | float | bool | None


class UnsendableError(Exception):
    """The record cannot be read, or has no form in Dynamics. Carries a code of ours and the name of the column or
    table, never a value."""

    def __init__(self, code: str, name: str) -> None:
        super().__init__(code, name)
        self.code = code
        self.name = name


class DeleteRule(StrEnum):
    """What the deletion of a row means in Dynamics."""

    DEACTIVATE = "deactivate"
    DELETE = "delete"
    IGNORE = "ignore"


class ColumnKind(StrEnum):
    """How a value is written."""

    AUTO = "auto"
    """As its PostgreSQL type suggests."""
    DATE = "date"
    """A calendar day; a point in time becomes the day that it is in `time_zone`."""
    DATETIME = "datetime"
    """A point in time, in UTC."""


class Owner(StrEnum):
    """Which side is right where both have changed."""

    POSTGRES = "postgres"
    DYNAMICS = "dynamics"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lookup(_Model):
    """A reference to a record of another Dataverse table."""

    entity_set: str
    alternate_key: str | None = None
    """The referred table's alternate key; None where the value is its id."""


class Column(_Model):
    """Where a column's value goes: an attribute, or a navigation property for a lookup."""

    to: str
    kind: ColumnKind = ColumnKind.AUTO
    choices: dict[str, int] | None = None
    lookup: Lookup | None = None
    time_zone: str = "UTC"
    owner: Owner = Owner.POSTGRES
    """Whose value holds where both sides have changed it (R19)."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum([self.choices is not None, self.lookup is not None, self.kind is not ColumnKind.AUTO]) > 1:
            raise ValueError("choices, lookup and kind exclude one another")
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, ValueError):
            raise ValueError(f"{self.time_zone!r} is no time zone") from None
        return self

    def property_name(self, lookups: MappingOf[str, str]) -> str:
        """The attribute's name in answers of the Web API.

        Args:
            lookups: the property that each lookup reads back as (`_hlf_team_value`), by navigation property.
        """
        return self.to if self.lookup is None else lookups[self.to]

    @cached_property
    def attribute(self) -> str:
        """What it is called where it is written."""
        return self.to if self.lookup is None else f"{self.to}@odata.bind"

    @cached_property
    def encode(self) -> Callable[[str, object], JsonValue]:
        """Gives a value as the Web API takes it, from the column's name and its value.

        Raises:
            UnsendableError: the value has no number among the choices, or another type than declared.
        """
        if self.lookup is not None:
            return self._reference
        if self.choices is not None:
            return self._choice
        return {ColumnKind.AUTO: _plain, ColumnKind.DATE: self._date, ColumnKind.DATETIME: _point_in_time}[self.kind]

    def _reference(self, name: str, value: object) -> str | None:
        if value is None or self.lookup is None:
            return None
        if self.lookup.alternate_key is None:
            return f"/{self.lookup.entity_set}({_guid(name, value)})"
        return "/" + keyed_address(self.lookup.entity_set, self.lookup.alternate_key, str(value), name)

    def _choice(self, name: str, value: object) -> int | None:
        if value is None or self.choices is None:
            return None
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text not in self.choices:
            raise UnsendableError("mapping.unknown_choice", name)
        return self.choices[text]

    def _date(self, name: str, value: object) -> str | None:
        if value is None:
            return None
        if isinstance(value, datetime):
            return aware(value).astimezone(ZoneInfo(self.time_zone)).date().isoformat()
        if isinstance(value, date):
            return value.isoformat()
        raise UnsendableError("mapping.wrong_type", name)


def _column(value: object) -> object:
    """`status = "hlf_status"` is short for `status = { to = "hlf_status" }`."""
    return {"to": value} if isinstance(value, str) else value


class SourceTable(_Model):
    """A table whose rows are sent: what identifies one, and which columns go where."""

    source: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_$]*\.[A-Za-z_][A-Za-z0-9_$]*$")]
    key: str
    columns: Annotated[dict[str, Annotated[Column, BeforeValidator(_column)]], Field(min_length=1)]

    @property
    def quoted_source(self) -> str:
        """The table's name as SQL takes it: quoted where it has capitals."""
        return ".".join(part if part == part.lower() else f'"{part}"' for part in self.source.split("."))


class SourceTables(Protocol):
    """All tables of one target: a mapping's, or a portal's contract's."""

    title: ClassVar[str]
    """What declares them, for messages."""

    @property
    def tables(self) -> Sequence[SourceTable]: ...


class TableMapping(SourceTable):
    """One source table and the Dataverse table that it feeds."""

    entity_set: str
    logical_name: str
    alternate_key: str
    bulk: bool = True
    """Whether many records may go into one request, where Dynamics takes that for the table."""
    on_delete: DeleteRule = DeleteRule.DEACTIVATE
    active: dict[str, bool | int] = {"statecode": 0, "statuscode": 1}
    inactive: dict[str, bool | int] = {"statecode": 1, "statuscode": 2}

    @model_validator(mode="after")
    def _attributes_are_distinct(self) -> Self:
        if self.active.keys() != self.inactive.keys():
            raise ValueError("active and inactive must write the same attributes, so that each undoes the other")
        seen: dict[str, str] = {self.alternate_key.lower(): f"the alternate key {self.alternate_key}"}
        seen |= {name.lower(): "the rule for deletions" for name in self.states}
        for name, column in self.columns.items():
            if (other := seen.get(column.to.lower())) is not None:
                raise ValueError(f"column {name!r} is mapped to {column.to!r}, which {other} already writes")
            seen[column.to.lower()] = f"column {name!r}"
        return self

    @property
    def states(self) -> MappingOf[str, bool | int]:
        """The attributes that say of each record that it is active."""
        return self.active if self.on_delete is DeleteRule.DEACTIVATE else {}

    def properties(self, lookups: MappingOf[str, str]) -> tuple[str, ...]:
        """What has to be read of a record to see how it is, besides its id and key."""
        columns = (column.property_name(lookups) for column in self.columns.values())
        return tuple(dict.fromkeys((*columns, *self.states)))

    def address(self, record_key: str) -> str:
        """The record's address below the Web API's root, by alternate key.

        Raises:
            UnsendableError: the key holds a character that Dataverse cannot take.
        """
        return keyed_address(self.entity_set, self.alternate_key, record_key, self.key)

    def body(self, row: MappingOf[str, object]) -> dict[str, JsonValue]:
        """The attributes to write for a row. A table that deactivates also says that the record is active:
        a row that comes back must not stay inactive in Dynamics.

        Raises:
            UnsendableError: a value has no form in Dynamics.
        """
        body: dict[str, JsonValue] = dict(self.states)
        for name, column in self.columns.items():
            body[column.attribute] = column.encode(name, row[name])
        return body


class Mapping(_Model):
    """All tables that go to Dynamics."""

    title: ClassVar[str] = "The mapping"

    tables: Annotated[tuple[TableMapping, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sources_are_distinct(self) -> Self:
        check_distinct(self.tables)
        return self

    def table(self, source: str) -> TableMapping | None:
        """The mapping of a source table, or None where there is none."""
        return next((table for table in self.tables if table.source == source), None)


def check_distinct(tables: Sequence[SourceTable]) -> None:
    """Make sure that each table is named once; ValueError if not."""
    sources = [table.source for table in tables]
    for source in sources:
        if sources.count(source) > 1:
            raise ValueError(f"table {source!r} is mapped twice")


def problems_of(error: ValidationError, whole: str) -> str:
    """A line for each place of a declaration that is wrong; `whole` is what the declaration itself is called."""
    return "\n".join(
        f"  {'.'.join(str(part) for part in problem['loc']) or whole}: " + problem["msg"].removeprefix("Value error, ")
        for problem in error.errors(include_input=False)
    )


def parse_mapping(document: MappingOf[str, Any], origin: str) -> Mapping:
    """Check a parsed TOML document. `origin` names the file in messages.

    Raises:
        MappingError: it is not a mapping; the message names each place that is wrong.
    """
    try:
        return Mapping.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, "mapping")
        raise MappingError(f"The mapping {origin} cannot be used:\n{problems}\nCorrect it and start again.") from None


_AS_IT_IS = re.compile(r"[A-Za-z0-9._~-]+")
"""What most keys are: nothing in it is forbidden, or would be quoted."""


def keyed_address(entity_set: str, alternate_key: str, value: str, column: str) -> str:
    """`hlf_certifications(hlf_externalid='…')`: a quote in the value is doubled, then the value percent-encoded."""
    if not _AS_IT_IS.fullmatch(value):
        if not value or not FORBIDDEN_KEY_CHARACTERS.isdisjoint(value):
            raise UnsendableError("mapping.forbidden_key", column)
        value = quote(value.replace("'", "''"), safe="")
    return f"{entity_set}({alternate_key}='{value}')"


def _plain(name: str, value: object) -> JsonValue:
    match value:
        case None | str() | int():
            return value
        case float() if isfinite(value):
            return value
        case Decimal() if isfinite(value):
            return _number(name, value)
        case datetime():
            return aware(value).astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
    raise UnsendableError("mapping.wrong_type", name)


def _point_in_time(name: str, value: object) -> JsonValue:
    if value is not None and not isinstance(value, datetime):
        raise UnsendableError("mapping.wrong_type", name)
    return _plain(name, value)


def _number(name: str, value: Decimal) -> float:
    """JSON numbers are read as binary ones of 64 bits by most software: a number that these round is not sent."""
    number = float(value)
    if Decimal(repr(number)) != value:
        raise UnsendableError("mapping.too_precise", name)
    return number


def aware(value: datetime) -> datetime:
    """A point in time without a zone counts as UTC."""
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _guid(name: str, value: object) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise UnsendableError("mapping.wrong_type", name) from None
