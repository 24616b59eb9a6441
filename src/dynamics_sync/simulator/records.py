"""What is stored: records and their versions, what went, and what the event pipeline is told of a change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dynamics_sync.simulator.tables import JsonObject, Table


class Message(StrEnum):
    """What happens to a record, by the name that Dataverse's event pipeline has for it."""

    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"


@dataclass(slots=True)
class Record:
    """One record, and every version that was ever written of it."""

    id: str
    attributes: JsonObject
    version: int
    versions: list[JsonObject] = field(default_factory=list)

    @property
    def etag(self) -> str:
        """Weak and opaque: it only means equal or not equal."""
        return f'W/"{self.version}"'


@dataclass(frozen=True, slots=True)
class Deletion:
    """That a record went, for change tracking."""

    id: str
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one record. `given` is what the request gave, by the names that answers have.

    `before` and `after` are all attributes, and empty where there was or is no record. `at` is in seconds since the
    epoch.
    """

    message: Message
    table: Table
    record_id: str
    given: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Backup:
    """An environment as it was."""

    version: int
    records: dict[str, dict[str, Record]]
    deletions: dict[str, list[Deletion]]
