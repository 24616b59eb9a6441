"""What was agreed with a portal: which rows are sent in which form, and what it answers. A versioned JSON file.

The form of the file is described in `docs/portal.md`; `contracts/v1.json` is one.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import JsonValue, SourceTable, check_distinct, problems_of
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.portal.schemas import Schema

Event = dict[str, object]
"""A request's body: `type`, `timestamp` and `data`, as Standard Webhooks recommends."""

DeclaredSchema = Annotated[Schema, BeforeValidator(Schema)]


class ContractTable(SourceTable):
    """One source table and the events that it becomes."""

    changed: str
    """The type of the event that tells a row's present state."""
    deleted: str | None = None
    """The type of the event that tells that a row is gone; None where that is not told."""

    @model_validator(mode="after")
    def _attributes_are_distinct(self) -> Self:
        names = [column.to for column in self.columns.values()]
        for name, column in self.columns.items():
            if column.lookup is not None:
                raise ValueError(f"column {name!r} is a lookup, which only Dynamics has")
            if names.count(column.to) > 1:
                raise ValueError(f"two columns are sent as {column.to!r}")
        return self

    def attributes(self, row: Mapping[str, object]) -> dict[str, JsonValue]:
        """A row as it is sent.

        Raises:
            UnsendableError: a value has no form in JSON.
        """
        return {column.attribute: column.encode(name, row[name]) for name, column in self.columns.items()}


class Contract(BaseModel):
    """One version of what was agreed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    title: ClassVar[str] = "The portal's contract"

    version: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(pattern=r"^/[^?#\s]*$")]
    """Where events are sent, below the portal's address."""
    tables: Annotated[tuple[ContractTable, ...], Field(min_length=1)]
    request: DeclaredSchema
    """What every event fits."""
    answer: DeclaredSchema
    """What the body of every success fits."""
    answer_id: str | None = None
    """The name of the answer's property that repeats the webhook's id; None where none does."""
    refusal: DeclaredSchema | None = None
    """What the body of every refusal (4xx) fits; None where that was not agreed."""

    @model_validator(mode="after")
    def _sources_are_distinct(self) -> Self:
        check_distinct(self.tables)
        return self

    def event(self, operation: SyncOperation, row: Mapping[str, object] | None, now: datetime) -> Event | None:
        """What tells the portal of a record's present state, None being that it is gone; None where nothing does.

        Raises:
            KeyError: the table is not the contract's.
            UnsendableError: a value has no form in JSON.
        """
        table = self._tables[operation.source_table]
        data: Event = {"contract": self.version, "key": operation.record_key, "version": operation.version}
        if row is not None:
            data["attributes"] = table.attributes(row)
        kind = table.deleted if row is None else table.changed
        if kind is None:
            return None
        at = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"type": kind, "timestamp": at, "data": data}

    def knows(self, source: str) -> bool:
        """Whether rows of that table are sent."""
        return source in self._tables

    @property
    def _tables(self) -> dict[str, ContractTable]:
        return {table.source: table for table in self.tables}


def read_contract(path: Path | None) -> Contract:
    """The contract of a file, or the one that ships.

    Raises:
        MappingError: it cannot be read or used; the message names each place that is wrong.
    """
    origin = str(path or "that ships")
    try:
        if path is None:
            text = files("dynamics_sync.portal").joinpath("contracts/v1.json").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        return Contract.model_validate(json.loads(text))
    except OSError:
        raise MappingError(
            f"The portal's contract {origin} cannot be read. Correct DYNAMICS_SYNC_PORTAL_CONTRACT."
        ) from None
    except ValidationError as error:
        problems = problems_of(error, "contract")
        raise MappingError(
            f"The portal's contract {origin} cannot be used:\n{problems}\nCorrect it and start again."
        ) from None
    except (ValueError, RecursionError):
        raise MappingError(
            f"The portal's contract {origin} is not valid JSON in UTF-8. Correct it and start again."
        ) from None
