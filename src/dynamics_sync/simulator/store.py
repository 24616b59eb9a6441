"""Records and their versions, unique keys, and all-or-nothing changes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.tables import AlternateKey, JsonObject, Table

KeyValues = tuple[str, tuple[Any, ...]]
"""Name of an alternate key, and its columns' values in the key's order."""


@dataclass(slots=True)
class Record:
    """One record, and every version that was ever written of it."""

    id: str
    attributes: JsonObject
    version: int
    versions: list[JsonObject] = field(default_factory=list)

    @property
    def etag(self) -> str:
        return f'W/"{self.version}"'


class Store:
    """All records of an environment. Versions grow over all tables, as Dataverse's row versions do."""

    def __init__(self, tables: tuple[Table, ...], now: Callable[[], float]) -> None:
        self.tables = {table.entity_set: table for table in tables}
        self._now = now
        self._records: dict[str, dict[str, Record]] = {table.entity_set: {} for table in tables}
        self._keys: dict[str, dict[KeyValues, str]] = {table.entity_set: {} for table in tables}
        self._deleted: dict[str, list[Record]] = {table.entity_set: [] for table in tables}
        self._version = 900_000
        self._undo: list[Callable[[], None]] | None = None

    def table(self, entity_set: str) -> Table:
        """The table of an entity set; DataverseError 404 if there is none."""
        if entity_set not in self.tables:
            raise errors.no_such_segment(entity_set)
        return self.tables[entity_set]

    def all(self, table: Table) -> list[Record]:
        return list(self._records[table.entity_set].values())

    def deleted(self, table: Table) -> list[Record]:
        """Records that are gone, with the versions that they had."""
        return self._deleted[table.entity_set]

    def by_id(self, table: Table, record_id: str) -> Record | None:
        return self._records[table.entity_set].get(record_id)

    def by_key(self, table: Table, key: AlternateKey, values: Mapping[str, Any]) -> Record | None:
        """The record with these values, by the names of the key's columns."""
        wanted = (key.name, tuple(values[name] for name in key.columns))
        record_id = self._keys[table.entity_set].get(wanted)
        return None if record_id is None else self._records[table.entity_set][record_id]

    def create(self, table: Table, attributes: Mapping[str, Any], record_id: str | None = None) -> Record:
        """A new record; DataverseError 412 if its id or a key is taken."""
        new_id = record_id or str(uuid4())
        if new_id in self._records[table.entity_set]:
            raise errors.DataverseError(412, "0x80040237", "Cannot insert duplicate key.")
        values = dict.fromkeys(column.read_name for column in table.columns)
        values |= {"statecode": 0, "statuscode": 1, "createdon": self._timestamp()} | dict(attributes)
        record = Record(new_id, {}, 0)
        self._check_keys(table, values, new_id)
        self._records[table.entity_set][new_id] = record
        self._on_undo(lambda: self._records[table.entity_set].pop(new_id))
        self._write(table, record, values)
        return record

    def update(self, table: Table, record: Record, attributes: Mapping[str, Any]) -> Record:
        """Change some attributes; DataverseError 412 if a key is taken."""
        values = record.attributes | dict(attributes)
        self._check_keys(table, values, record.id)
        self._write(table, record, values)
        return record

    def delete(self, table: Table, record: Record) -> None:
        self._forget_keys(table, record)
        del self._records[table.entity_set][record.id]
        self._deleted[table.entity_set].append(record)

        def restore() -> None:
            self._deleted[table.entity_set].remove(record)
            self._records[table.entity_set][record.id] = record
            self._note_keys(table, record)

        self._on_undo(restore)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within hold, or none. A transaction within another one is part of it."""
        if self._undo is not None:
            yield
            return
        self._undo = []
        try:
            yield
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise
        finally:
            self._undo = None

    def _write(self, table: Table, record: Record, values: JsonObject) -> None:
        before, version = record.attributes, record.version
        self._forget_keys(table, record)
        self._version += 1
        record.version = self._version
        record.attributes = values | {"modifiedon": self._timestamp(), "versionnumber": self._version}
        record.versions.append({"at": self._now(), "etag": record.etag, "attributes": dict(record.attributes)})
        self._note_keys(table, record)

        def restore() -> None:
            self._forget_keys(table, record)
            record.attributes, record.version = before, version
            record.versions.pop()
            if before:
                self._note_keys(table, record)

        self._on_undo(restore)

    def _check_keys(self, table: Table, values: Mapping[str, Any], record_id: str) -> None:
        for key, wanted in _key_values(table, values):
            if self._keys[table.entity_set].get(wanted, record_id) != record_id:
                raise errors.key_violated(key.name, ", ".join(key.columns))

    def _note_keys(self, table: Table, record: Record) -> None:
        for _, values in _key_values(table, record.attributes):
            self._keys[table.entity_set][values] = record.id

    def _forget_keys(self, table: Table, record: Record) -> None:
        for _, values in _key_values(table, record.attributes):
            self._keys[table.entity_set].pop(values, None)

    def _on_undo(self, step: Callable[[], None]) -> None:
        if self._undo is not None:
            self._undo.append(step)

    def _timestamp(self) -> str:
        moment = datetime.fromtimestamp(self._now(), UTC).replace(microsecond=0)
        return moment.isoformat().replace("+00:00", "Z")


def _key_values(table: Table, values: Mapping[str, Any]) -> Iterator[tuple[AlternateKey, KeyValues]]:
    """Each key of which every column has a value."""
    for key in table.alternate_keys:
        parts = tuple(values.get(_read_name(table, name)) for name in key.columns)
        if None not in parts:
            yield key, (key.name, parts)


def _read_name(table: Table, name: str) -> str:
    column = table.column(name)
    return name if column is None else column.read_name
